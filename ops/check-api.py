#!/usr/bin/env python3
"""Checks the daemon's API with other people's programs, over a run of a tiny pipeline.

    python ops/check-api.py [--aha PROGRAM] [--only PART…] [--examples N]

Starts `aha daemon` on a free port with a home folder of its own, submits a run and waits for it. Then, part by part:

    openai         the official client lists models, completes and streams, with log-probs, and is refused politely
    query          pyarrow reads the answer of a query as an Arrow IPC stream, with the rows that JSON has
    metrics        Prometheus' parser reads /metrics; every family is declared once, and named as its kind is
    lm-eval        the evaluation harness runs a task of each kind through the API (left out if it isn't installed)
    schemathesis   requests made from the OpenAPI document, right ones and wrong ones: no answer is a 5xx, none has a
                   status, a type or a form that the document doesn't have

Prints a line for each part. Exit code: 0 when all hold, 1 when something doesn't, 2 when it can't be checked
(pip install -r ops/requirements.txt -r ops/requirements-api.txt).
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

import daemon_process

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ["openai", "query", "metrics", "lm-eval", "schemathesis"]

PIPELINE = """
[run]
seed = 3

[tables]
problems = "problems.jsonl"

[models.base]
init = "random"
hidden_size = 32
intermediate_size = 48
layers = 1
heads = 2
kv_heads = 1
max_position_embeddings = 256
tokenizer = { train = "SELECT prompt || ' ' || answer AS text FROM problems", vocab_size = 280 }

[[stage]]
name = "cold"
kind = "sft"
model = "base"
data = "SELECT prompt, answer AS completion FROM problems"
epochs = 2
batch_size = 4
max_tokens = 32

[[stage]]
name = "zero"
kind = "rl"
model = "cold"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 2
prompts_per_step = 2
group_size = 2
sampling = { max_tokens = 6 }
rewards = [{ kind = "math" }]
watchdogs = { truncated = "off", no_signal = "off", unparsed = "warn", trains_on_nothing = "off" }
"""

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{ data_files: {{ test: {data} }} }}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: {target}
{more}
"""

GENERATE = """generation_kwargs: { until: ["\\n"], max_gen_toks: 8, do_sample: false }
metric_list:
  - { metric: exact_match, aggregation: mean, higher_is_better: true }"""

CHOOSE = """doc_to_choice: "{{choices}}"
metric_list:
  - { metric: acc, aggregation: mean, higher_is_better: true }"""


class Failed(Exception):
    """Something doesn't hold."""


def hold(condition, *what):
    if not condition:
        raise Failed(" ".join(str(part) for part in what))


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read(), answer.headers


class Checked(daemon_process.Daemon):
    """A daemon with one finished run."""

    def __init__(self, program, folder):
        problems = [{"id": str(n), "prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(8)]
        (folder / "problems.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
        super().__init__(program, folder)

    def submit(self):
        _, headers = post(f"{self.url}/api/v1/runs", {"pipeline": PIPELINE, "name": "tiny"})
        path = headers["location"]
        # One more, to be removed: the document's examples name the first two.
        post(f"{self.url}/api/v1/runs", {"pipeline": PIPELINE, "name": "second"})
        status = lambda: json.loads(get(self.url + path))["status"]
        self.wait_for(lambda: status() in ("finished", "failed"), 180)
        hold(status() == "finished", "the run failed:", get(self.url + path))


def check_openai(daemon, _):
    import openai

    client = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)
    models = [model.id for model in client.models.list()]
    hold(models[:2] == ["1/cold", "1/zero"], "models:", models)
    hold(client.models.retrieve("1/zero").owned_by == "aha")
    asked = {"model": "1/zero", "seed": 5, "max_tokens": 8, "temperature": 1.0}

    text = client.completions.create(prompt="1 + 1 =", logprobs=2, n=2, **asked)
    hold(len(text.choices) == 2 and text.usage.completion_tokens > 0, text)
    for choice in text.choices:
        hold(all(value <= 0 for value in choice.logprobs.token_logprobs), choice)
        hold(len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs), choice)
        # Of tokens whose texts look alike, such as halves of characters, one is shown.
        hold(all(1 <= len(top) <= 3 for top in choice.logprobs.top_logprobs), choice)
    pieces = list(client.completions.create(prompt="1 + 1 =", logprobs=0, stream=True, **asked))
    streamed = "".join(piece.choices[0].text for piece in pieces)
    hold(streamed == text.choices[0].text, "streamed:", streamed)
    whole = list(client.completions.create(prompt="1 + 1 =", logprobs=2, stream=True, **asked))
    hold(whole[0].choices[0].logprobs.top_logprobs == text.choices[0].logprobs.top_logprobs, whole)

    messages = [{"role": "user", "content": "1 + 1 ="}]
    chat = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=2, **asked)
    tokens = chat.choices[0].logprobs.content
    hold(all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens), chat)
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        messages=messages, logprobs=True, stream=True, stream_options=options, **asked
    )
    pieces = list(stream)
    said = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
    hold(said == chat.choices[0].message.content, "streamed:", said)
    drawn = [t.logprob for p in pieces if p.choices and p.choices[0].logprobs for t in p.choices[0].logprobs.content]
    hold(drawn == [token.logprob for token in tokens], "log-probs of the stream differ")
    hold(pieces[-1].usage.completion_tokens == chat.usage.completion_tokens, pieces[-1])

    for wrong, expected in [({"model": "none"}, openai.NotFoundError), ({"top_p": 0}, openai.BadRequestError)]:
        try:
            client.completions.create(**{"prompt": "a", **asked, **wrong})
            raise Failed(f"{wrong} was not refused")
        except expected:
            pass
    return f"openai {openai.__version__}: {len(models)} models, completions, chat, streams, log-probs"


def check_query(daemon, _):
    import pyarrow

    sql = "SELECT step, sample_idx, completion, reward FROM zero ORDER BY rollout_id"
    url = f"{daemon.url}/api/v1/runs/1/query"
    rows = json.loads(post(url, {"sql": sql})[0])
    stream, _ = post(url, {"sql": sql, "format": "arrow"})
    table = pyarrow.ipc.open_stream(stream).read_all()
    hold(table.to_pylist() == rows and len(rows) == 8, table, rows)
    return f"pyarrow {pyarrow.__version__}: {table.num_rows} rows of {', '.join(table.column_names)}"


def check_metrics(daemon, _):
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(get(f"{daemon.url}/metrics")))
    names = [family.name for family in families]
    hold(len(names) == len(set(names)), "a family comes twice:", names)
    for family in families:
        hold(re.fullmatch(r"aha_[a-z_]+", family.name), family.name)
        hold(family.type in ("gauge", "counter") and family.documentation, family)
        labels = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        hold(len(labels) == len(set(labels)), "a sample comes twice:", family)
        hold(all(math.isfinite(sample.value) for sample in family.samples), family)
    return f"{len(families)} families of metrics"


def write_tasks(folder):
    """A task whose answers are generated, and one whose answers are chosen by their log-probs."""
    folder.mkdir()
    data = folder / "data.jsonl"
    rows = [
        {"prompt": f"{n} + 1 =", "answer": str(n + 1), "choices": [str(n + 1), str(n + 2)], "label": 0}
        for n in range(6)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, target, more in [
        ("tiny_generate", "generate_until", '"{{answer}}"', GENERATE),
        ("tiny_choose", "multiple_choice", "label", CHOOSE),
    ]:
        text = TASK.format(name=name, kind=kind, data=data, target=target, more=more)
        (folder / f"{name}.yaml").write_text(text)


def check_lm_eval(daemon, _):
    if importlib.util.find_spec("lm_eval") is None:
        return "left out: lm-eval is not installed"
    write_tasks(daemon.folder / "tasks")
    tokenizer = daemon.folder / "home/runs/1/models/zero"
    told = []
    for model, path, tasks, more in [
        ("local-completions", "completions", "tiny_generate,tiny_choose", []),
        ("local-chat-completions", "chat/completions", "tiny_generate", ["--apply_chat_template"]),
    ]:
        args = f"model=1/zero,base_url={daemon.url}/v1/{path},tokenizer={tokenizer},num_concurrent=1,max_retries=1"
        out = daemon.folder / f"out-{model}"
        command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", args, "--tasks", tasks]
        command += ["--include_path", daemon.folder / "tasks", "--output_path", out, *more]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(daemon.folder / "hf"), "OPENAI_API_KEY": "none"}
        done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=300)
        hold(done.returncode == 0, done.stdout[-2000:], done.stderr[-4000:])
        found = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
        for task in tasks.split(","):
            scores = {k.split(",")[0]: v for k, v in found[task].items() if isinstance(v, float)}
            told.append(f"{model} {task} {scores}")
    return "; ".join(told)


def check_schemathesis(daemon, examples):
    checks = ["not_a_server_error", "status_code_conformance", "content_type_conformance"]
    checks += ["response_headers_conformance", "response_schema_conformance"]
    command = [pathlib.Path(sys.executable).parent / "schemathesis", "run", f"{daemon.url}/api/v1/openapi.json"]
    command += ["--checks", ",".join(checks), "--max-examples", str(examples), "--seed", "1", "--no-color"]
    # Streams of events have no end, so no whole answer either: `aha`'s own tests read them.
    command += ["--exclude-path-regex", "/events$", "--request-timeout", "60", "--generation-database", "none"]
    done = subprocess.run(command, cwd=daemon.folder, text=True, capture_output=True, timeout=1500)
    hold(done.returncode == 0, done.stdout[-8000:], done.stderr[-2000:])
    hold(daemon.process.poll() is None, "the daemon ended:", daemon.said())
    wanted = re.compile(r"Operations:|\d+ generated")
    return "; ".join(" ".join(line.split()) for line in done.stdout.splitlines() if wanted.match(line.strip()))


CHECKS = {
    "openai": check_openai,
    "query": check_query,
    "metrics": check_metrics,
    "lm-eval": check_lm_eval,
    "schemathesis": check_schemathesis,
}


def main():
    parser = argparse.ArgumentParser(description="Checks the daemon's API with other people's programs.")
    default = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/aha"
    parser.add_argument("--aha", type=pathlib.Path, default=default)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--examples", type=int, default=20, help="requests of each kind that schemathesis makes")
    args = parser.parse_args()
    if not args.aha.is_file():
        print(f"error: there is no program at {args.aha}\nhint: cargo build --release -p aha", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        daemon = None
        try:
            daemon = Checked(args.aha.resolve(), pathlib.Path(folder))
            daemon.submit()
            for part in args.only:
                print(f"{part}: {CHECKS[part](daemon, args.examples)}", flush=True)
        except ImportError as error:
            hint = "pip install -r ops/requirements.txt -r ops/requirements-api.txt"
            print(f"error: {error}\nhint: {hint}", file=sys.stderr)
            return 2
        except (Failed, daemon_process.Ended, urllib.error.URLError) as error:
            print(f"error: {part if 'part' in locals() else 'start'}: {error}", file=sys.stderr)
            return 1
        finally:
            if daemon:
                daemon.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
