#!/usr/bin/env python3
"""Checks the daemon's dashboard in a browser, with a real daemon and real runs.

    cargo build --release -p aha
    pip install --requirement ops/requirements-browser.txt
    python ops/check-dashboard.py target/release/aha [--shots FOLDER] [--chromium PATH]

Starts a daemon on a loopback address in a temporary folder and uses the dashboard as a person does: a pipeline with a
mistake is refused with its line, a good one submitted; figures get more points; the run is paused, resumed and at last
cancelled; a group of completions is opened, among them `<script>alert(1)</script>`, which a model has learnt to
write and which has to be a text; SQL is asked, right and wrong; runs are compared; lines of the log come; a daemon with
a token asks for it. Meanwhile nothing may be asked of another host, the page may complain of nothing, no dialog
may open, and axe-core must find no fault with any view, in light, dark and narrow windows. With --shots each view is
left as a picture. Prints a line for each check. Exit code: 0 when all is so, 1 when something isn't, 2 when it can't
be checked.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile

import browser
from daemon_process import Daemon

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import Error, expect, sync_playwright
except ImportError as error:
    print(f"error: {error}\nhint: pip install --requirement ops/requirements-browser.txt", file=sys.stderr)
    sys.exit(2)

PATIENCE_MS = 60_000
HOSTILE = "<script>alert(1)</script>"
HOSTILE_PROMPT = "<img src=x onerror=alert(2)> & <b>bold</b> ="
HOSTILE_NAME = "<i>small</i> & run"

# A model that learns its examples by heart, the hostile one among them, and then goes on by reinforcement learning.
PIPELINE = """
[run]
seed = 3
threads = 1

[tables]
problems = "problems.jsonl"

[models.base]
init = "random"
hidden_size = 32
intermediate_size = 64
layers = 1
heads = 2
kv_heads = 2
max_position_embeddings = 128

[models.base.tokenizer]
train = "SELECT prompt || '<answer>' || answer || '</answer>' AS text FROM problems"
vocab_size = 320

[[stage]]
name = "cold"
kind = "sft"
model = "base"
data = "SELECT prompt, '<answer>' || answer || '</answer>' AS completion FROM problems"
epochs = 200
batch_size = 3
max_tokens = 96
optimizer = { lr = 5e-3 }

[[stage]]
name = "zero"
kind = "rl"
model = "cold"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 100000
prompts_per_step = 3
group_size = 4
checkpoint_every = 20
sampling = { max_tokens = 48 }
rewards = [{ kind = "math" }, { kind = "format", weight = 0.1 }]
optimizer = { lr = 1e-5 }
watchdogs = { truncated = "off", no_signal = "off", unparsed = "warn", trains_on_nothing = "off" }

[[stage]]
name = "curve"
kind = "query"
sql = "SELECT step, avg(reward) AS reward FROM zero GROUP BY step ORDER BY step"
"""


class Check:
    """A page, what was wrong with it, and where pictures go."""

    def __init__(self, page, url, shots):
        self.page = page
        self.url = url
        self.shots = shots
        self.failures = []
        self.expected_refusals = 0
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        page.on("console", self.on_console)
        page.on("pageerror", lambda error: self.wrong(f"the script failed: {error}"))
        page.on("dialog", lambda dialog: (self.wrong(f"a dialog opened: {dialog.message}"), dialog.dismiss()))
        page.on("request", self.on_request)

    def wrong(self, what):
        self.failures.append(what)
        print(f"WRONG {what}", flush=True)

    def on_console(self, message):
        # What is refused on purpose, a browser tells of as well.
        is_refusal = "the server responded with a status of 4" in message.text
        if message.type in ("error", "warning") and not (is_refusal and self.expected_refusals):
            self.wrong(f"the page complains: {message.text}")

    def on_request(self, request):
        if not request.url.startswith((self.url + "/", "blob:" + self.url)):
            self.wrong(f"something is asked of {request.url}")

    @contextlib.contextmanager
    def refusals(self):
        """Within it requests may be refused."""
        self.expected_refusals += 1
        yield
        self.page.wait_for_timeout(100)
        self.expected_refusals -= 1

    def ok(self, what):
        print(f"ok    {what}", flush=True)

    def attempt(self, step, *args):
        """Goes through a step; what is wrong with it is no reason to leave out the next one."""
        try:
            return step(self, *args)
        except (AssertionError, Error) as error:
            self.wrong("\n      ".join([step.__name__, *str(error).splitlines()[:8]]))
            if self.shots:
                self.page.screenshot(path=self.shots / f"failed-{step.__name__}.png", full_page=True)
            return None

    def goto(self, place):
        self.page.goto(f"{self.url}/{place}")

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def look(self, name):
        """Has axe look at what is shown, in each view, and leaves pictures."""
        for view, (width, height, is_dark) in browser.VIEWS.items():
            self.page.set_viewport_size({"width": width, "height": height})
            self.page.emulate_media(color_scheme="dark" if is_dark else "light")
            self.page.wait_for_timeout(350)
            if self.shots:
                self.page.screenshot(path=self.shots / f"{name}-{view}.png", full_page=True)
            for fault in Axe().run(self.page).response["violations"]:
                where = "; ".join(" ".join(map(str, node["target"])) for node in fault["nodes"][:3])
                self.wrong(f"{name}, {view}: {fault['id']}: {fault['help']}: {where}")
            wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            if wide > 0:
                self.wrong(f"{name}, {view}: the page is {wide} pixels too wide")
        width, height, _ = browser.VIEWS["light"]
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="light")
        self.ok(f"{name}: axe-core finds nothing, light, dark and narrow")


def submit(check):
    """Submits the pipeline, first with a mistake; returns the run's number."""
    page = check.page
    check.goto("")
    expect(page.get_by_text("No run yet.")).to_be_visible()
    check.look("empty")
    page.get_by_role("link", name="Submit a run").click()
    page.get_by_label("Pipeline", exact=True).fill(PIPELINE.replace("epochs", "epoch"))
    page.get_by_label("Name").fill(HOSTILE_NAME)
    with check.refusals():
        check.button("Check").click()
        expect(page.get_by_role("alert")).to_contain_text("hint")
    page.get_by_role("alert").get_by_role("button", name="line").first.click()
    marked = page.evaluate("document.activeElement.value.slice(document.activeElement.selectionStart).slice(0, 5)")
    if marked != "epoch":
        check.wrong(f"the line with the mistake isn't marked, but `{marked}`")
    check.look("submit")
    page.get_by_label("Pipeline", exact=True).fill(PIPELINE)
    check.button("Check").click()
    expect(page.get_by_text("It may be submitted.")).to_be_visible()
    check.button("Submit").click()
    page.wait_for_url("**/#/runs/*")
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE_NAME)
    check.ok("a pipeline with a mistake is refused at its line, and a good one submitted")
    return int(page.url.rsplit("/", 1)[1])


def points(check, title):
    """The number of points of a figure."""
    figure = check.page.get_by_role("figure", name=title, exact=True)
    return int(figure.locator(".plotted").get_attribute("data-points"))


def watch(check, run):
    """Figures go on by themselves; values are read by keyboard and as a table."""
    page = check.page
    figure = page.get_by_role("figure", name="Reward", exact=True)
    expect(figure).to_be_visible()
    before = points(check, "Reward")
    page.wait_for_function(
        "(least) => [...document.querySelectorAll('figure')].some((figure) =>"
        " figure.querySelector('.title').textContent === 'Reward' &&"
        " Number(figure.querySelector('.plotted').dataset.points) > least)",
        arg=before + 10,
    )
    check.ok(f"figures move: {before} points, then {points(check, 'Reward')}")
    plotted = figure.locator(".plotted")
    plotted.focus()
    plotted.press("Home")
    plotted.press("ArrowRight")
    expect(figure.locator("[aria-live]")).to_contain_text("step 2")
    figure.get_by_text("Values").click()
    expect(figure.get_by_role("row").nth(1)).to_contain_text("step")
    figure.get_by_text("Values").click()
    for title in ["Reward: math", "Entropy", "Response length", "Speed", "Memory", "Queues of actors"]:
        expect(page.get_by_role("figure", name=title, exact=True).first).to_be_visible()
    check.ok("values are read by keyboard and as a table")
    check.look("run")


def pause_and_resume(check, run):
    page = check.page
    check.goto(f"#/runs/{run}")
    status = page.locator(".lead .status")
    page.get_by_role("button", name="Pause run").click()
    expect(status).to_contain_text("paused")
    page.get_by_role("button", name="Resume run").click()
    expect(status).to_contain_text("running")
    check.ok("the run is paused, and goes on")


def rollouts(check, run):
    """The hostile completion is found by a filter, and is a text."""
    page = check.page
    check.goto(f"#/runs/{run}/rollouts")
    expect(page.get_by_role("table")).to_be_visible()
    check.look("rollouts")
    page.get_by_label("Prompt or completion contains").fill(HOSTILE)
    check.button("Show").click()
    row = page.get_by_role("row").filter(has_text=HOSTILE_PROMPT).first
    expect(row).to_be_visible()
    row.get_by_role("link").click()
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    expect(page.locator(".asked")).to_contain_text(HOSTILE_PROMPT)
    if page.locator("main script, main img, main b:text('bold')").count():
        check.wrong("a text became markup")
    if page.locator(".completion").count() != 4:
        check.wrong(f"{page.locator('.completion').count()} completions in a group of 4")
    check.ok("a group is open, and its markup is text")
    check.look("group")


def sql(check, run):
    page = check.page
    check.goto(f"#/runs/{run}/sql")
    good = "SELECT count(*) AS n, min(reward) AS least FROM zero WHERE step <= 3"
    page.get_by_label("Query").fill(good)
    page.get_by_label("Query").press("Control+Enter")
    answer = page.get_by_role("group", name="Answer")
    expect(answer.get_by_role("columnheader").first).to_contain_text("Int64")
    expect(answer.get_by_role("cell").first).to_have_text("36")
    page.locator(".tables summary").filter(has_text="metrics").click()
    check.look("sql")
    with check.refusals():
        page.get_by_label("Query").fill("SELECT count(*) FROM zeros")
        check.button("Run").click()
        expect(page.get_by_role("alert")).to_contain_text("hint:")
    page.get_by_label("History").select_option(index=2)
    expect(page.get_by_label("Query")).to_have_value(good)
    check.ok("SQL is answered with its types, and a mistake with its remedy")
    check.look("sql-refused")


def logs(check, run):
    page = check.page
    check.goto(f"#/runs/{run}")
    page.get_by_role("link", name="Logs").click()
    expect(page.get_by_role("log")).to_contain_text("Stage started.")
    check.ok("the log is followed")
    check.look("logs")


def compare(check, run):
    """Submits the run again with another seed, and compares both."""
    page = check.page
    check.goto(f"#/runs/{run}/files")
    expect(page.locator("pre")).to_contain_text("[models.base]")
    check.look("files")
    page.get_by_role("link", name="Submit it again…").click()
    # The view before has a part of that name, which has no value.
    expect(page.get_by_role("textbox", name="Pipeline", exact=True)).to_have_value(PIPELINE)
    page.get_by_label("Overrides").fill("run.seed=4\nstage.zero.steps=30")
    page.get_by_label("Name").fill("another seed")
    check.button("Submit").click()
    page.wait_for_url("**/#/runs/*")
    other = int(page.url.rsplit("/", 1)[1])
    expect(page.locator(".lead .status")).to_contain_text("finished")
    check.look("finished")
    page.get_by_role("navigation", name="Dashboard").get_by_role("link", name="Runs").click()
    for one in (run, other):
        page.get_by_role("checkbox", name=f"Compare run {one},").check()
    check.look("runs")
    page.get_by_role("link", name="Compare 2 runs").click()
    figure = page.get_by_role("figure", name="Reward", exact=True)
    expect(figure.locator(".keyline > span")).to_have_count(2)
    check.ok("two runs are in one figure")
    check.look("compare")


def cancel(check, run):
    page = check.page
    check.goto(f"#/runs/{run}")
    page.get_by_role("button", name="Cancel run").click()
    check.look("question")
    check.button("Cancel the run").click()
    expect(page.locator(".lead .status")).to_contain_text("cancelled")
    check.goto("")
    page.get_by_role("row").filter(has_text="another seed").get_by_role("button", name="Delete").click()
    check.button("Delete all of it").click()
    expect(page.get_by_role("link", name="another seed")).to_have_count(0)
    check.ok("a run is cancelled, and another deleted")


def keyboard(check, _run):
    """The first stop of the keyboard leads past the bar, and colours can be chosen."""
    page = check.page
    check.goto("")
    page.reload()
    expect(page.get_by_role("table")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_label("Colours").select_option("light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if dark == light:
        check.wrong("the switch of colours changes none")
    page.get_by_label("Colours").select_option("system")
    check.ok("keyboard and switch of colours")


def asks_for_token(check, token):
    page = check.page
    with check.refusals():
        check.goto("")
        expect(page.get_by_role("heading", name="Token")).to_be_visible()
        check.look("token")
        page.get_by_label("Token", exact=True).fill("not the token, though long enough")
        check.button("Go on").click()
        expect(page.get_by_text("doesn't know this token")).to_be_visible()
    page.get_by_label("Token", exact=True).fill(token)
    check.button("Go on").click()
    expect(page.get_by_text("No run yet.")).to_be_visible()
    expect(page.locator(".connection.live")).to_be_visible()
    page.reload()
    expect(page.get_by_text("No run yet.")).to_be_visible()
    check.ok("a token is asked for, and kept by the tab")


def write_problems(folder):
    problems = [{"id": str(n), "prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(1, 6)]
    problems.append({"id": "hostile", "prompt": HOSTILE_PROMPT, "answer": HOSTILE})
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))


@contextlib.contextmanager
def checking(chrome, daemon, shots):
    """A fresh browser at a daemon."""
    context = chrome.new_context()
    page = context.new_page()
    yield Check(page, daemon.url, shots)
    context.close()


def main(aha, chromium, shots):
    failures = []
    with tempfile.TemporaryDirectory() as temp, sync_playwright() as playwright:
        folder = pathlib.Path(temp)
        write_problems(folder)
        chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with Daemon(aha, folder, "--runs", "2") as daemon, checking(chrome, daemon, shots) as check:
            run = check.attempt(submit)
            steps = [watch, pause_and_resume, rollouts, sql, logs, compare, keyboard, cancel]
            for step in steps if run else []:
                check.attempt(step, run)
        failures += check.failures
        (folder / "locked").mkdir()
        with Daemon(aha, folder / "locked", "--require-token") as daemon, checking(chrome, daemon, shots) as check:
            check.attempt(asks_for_token, (daemon.home / "token").read_text().strip())
        failures += check.failures
        chrome.close()
    print(f"{len(failures)} things are wrong" if failures else "all is well")
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Checks the daemon's dashboard in a browser.")
    parser.add_argument("aha", help="the program")
    parser.add_argument("--shots", type=pathlib.Path, help="a folder for pictures")
    parser.add_argument("--chromium", help="the browser; by default Debian's")
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    sys.exit(main(pathlib.Path(args.aha).resolve(), browser.chromium(args.chromium), args.shots))
