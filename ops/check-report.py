#!/usr/bin/env python3
"""Checks that a browser shows the page of `aha report`, from its file alone.

    aha report RUN_DIR --out report.html
    python ops/check-report.py report.html [CHROMIUM]

Chromium opens the file without a network, in a light and a dark theme and in a narrow window. Each time the page must
draw every stage and at least one figure for each kind of stage that measured, the script must fail nowhere, nothing
must be refused by the page's policy, and texts of the run must be texts: there is no element that the page's own
script doesn't make. Prints one line per view. Exit code: 0 when all is so, 1 when something isn't, 2 when it can't be
checked (no Chromium).
"""

import html.parser
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import browser

# What the script makes, and what the file itself has.
MADE = set(
    "a article b button details div dd dl dt figcaption figure footer h1 h2 h3 h4 header i input label li main mark nav"
    " ol option p pre section select small span summary table tbody td th thead tr"
    " circle g line path svg text".split()
)
OWN = {"html", "head", "meta", "title", "style", "body", "noscript", "script"}


class Page(html.parser.HTMLParser):
    """The elements of a page and its texts."""

    def __init__(self):
        super().__init__()
        self.counts = {}
        self.texts = []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_data(self, data):
        self.texts.append(data)


def flags_of(width, height, is_dark):
    """What Chromium is started with."""
    return [f"--window-size={width},{height}"] + ["--blink-settings=preferredColorScheme=0"] * is_dark


def drawn(chromium, page, flags):
    """The page as Chromium has it once the script has run, and what it complained about."""
    with tempfile.TemporaryDirectory() as profile:
        call = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        call += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--proxy-server=127.0.0.1:1", *flags]
        done = subprocess.run([*call, "--dump-dom", page.resolve().as_uri()], capture_output=True, text=True)
    complaints = re.findall(r"CONSOLE[^\n]*", done.stderr)
    return done.stdout, complaints


def problems_of(page, data, complaints):
    """What is wrong with a page that was drawn."""
    found = Page()
    found.feed(page)
    texts = "".join(found.texts)
    problems = list(complaints)
    problems += [f"an element `{tag}` that nobody made" for tag in found.counts if tag not in MADE | OWN]
    if found.counts.get("script") != 2:
        problems.append(f"{found.counts.get('script')} scripts")
    problems += [f"stage `{stage['name']}` isn't shown" for stage in data["stages"] if stage["name"] not in texts]
    kinds = {curve["kind"] for curve in data["curves"]}
    if found.counts.get("figure", 0) < len(kinds):
        problems.append(f"{found.counts.get('figure', 0)} figures")
    return problems, found


def main(path, chromium):
    page = pathlib.Path(path)
    text = page.read_text()
    data = json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])
    failed = False
    for name, view in browser.VIEWS.items():
        shown, complaints = drawn(chromium, page, flags_of(*view))
        problems, found = problems_of(shown, data, complaints)
        failed |= bool(problems)
        count = found.counts.get("figure", 0)
        print(f"{'WRONG' if problems else 'ok':5} {name}: {count} figures", *problems[:5], sep="\n      ")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(print(__doc__) or 2)
    sys.exit(main(sys.argv[1], browser.chromium(sys.argv[2] if len(sys.argv) == 3 else None)))
