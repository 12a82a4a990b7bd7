#!/usr/bin/env python3
"""Measures what the daemon costs a run: the same pipeline by `aha run` and under `aha daemon`, in turn.

    python3 ops/bench/daemon.py [--pairs 5] [--steps 12] [--load] [--aha PROGRAM]

An RL stage on a model of about 5 million parameters. Of each run counts the time from its first step's end to its
last one's, as its metrics have it, so start and check are not in it; `whole` is from the command to the end. With
--load the second run of each pair has 500 event streams and 200 reads a second on its daemon, and both are under it.
Prints a line for each pair, the medians and their ratio. Exit code: 0 where the daemon takes at most 2 % (5 % with
--load), 1 where it takes more, 2 where it can't be measured.
"""

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from daemon_process import Daemon

STREAMS, READS_PER_SECOND = 500, 200

PIPELINE = """
[run]
seed = 1
kv_cache = "32MiB"

[tables]
problems = "problems.jsonl"

[models.base]
init = "random"
hidden_size = 256
intermediate_size = 768
layers = 6
heads = 8
kv_heads = 4
max_position_embeddings = 512
tokenizer = { train = "SELECT prompt AS text FROM problems", vocab_size = 512 }

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT id, prompt, answer FROM problems"
steps = STEPS
prompts_per_step = 4
group_size = 8
checkpoint_every = 5
sampling = { max_tokens = 96 }
rewards = [{ kind = "repetition", ngram_len_words = 1 }]
watchdogs = { truncated = "off", no_signal = "off", unparsed = "off", trains_on_nothing = "off" }
"""


def fail(message, hint):
    """Says what can't be done, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(2)


class Bench:
    """A folder with the pipeline, and the program."""

    def __init__(self, aha, folder, steps):
        self.aha, self.folder, self.steps = aha, folder, steps
        rows = [{"id": str(n), "prompt": f"{n} + {n % 7} =", "answer": str(n + n % 7)} for n in range(64)]
        (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "bench.toml").write_text(PIPELINE.replace("STEPS", str(steps)))

    def run(self, *args):
        done = subprocess.run([self.aha, *args], cwd=self.folder, text=True, capture_output=True)
        if done.returncode != 0:
            fail(f"aha {' '.join(map(str, args))}: {done.stderr[-1000:]}", "see above")
        return done.stdout

    def seconds(self, run_dir):
        """From the end of the first step to the end of the last one."""
        sql = "SELECT max(at) AS last, min(at) AS first, count(DISTINCT step) AS steps FROM metrics"
        found = json.loads(self.run("query", sql, "--run", run_dir, "--only-runs", "--json"))[0]
        if found["steps"] != self.steps:
            fail(f"{run_dir} has {found['steps']} steps", "was it broken off?")
        parsed = [time_of(found[key]) for key in ("last", "first")]
        return parsed[0] - parsed[1]

    def alone(self, name):
        began = time.monotonic()
        self.run("run", "bench.toml", "--dir", name)
        return self.seconds(name), time.monotonic() - began

    def under_daemon(self, home, load):
        with Daemon(self.aha, self.folder, home=home) as daemon:
            began = time.monotonic()
            with Load(daemon.port) if load else Nothing() as load:
                self.run("submit", "bench.toml", "--home", home, "--wait")
                whole = time.monotonic() - began
                told = load.told()
            return self.seconds(f"{home}/runs/1"), whole, told


def time_of(text):
    """Seconds of a time as queries write it, with or without a fraction."""
    import datetime

    return datetime.datetime.fromisoformat(str(text).rstrip("Z")).timestamp()


class Nothing:
    """No load."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def told(self):
        return ""


class Load:
    """Event streams and reads, from a thread of their own."""

    def __init__(self, port):
        self.port, self.stop, self.reads, self.events = port, False, 0, 0
        self.thread = threading.Thread(target=lambda: asyncio.run(self.work()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()

    def told(self):
        return f", {self.reads} reads and {self.events} events"

    async def work(self):
        streams = [asyncio.create_task(self.listen()) for _ in range(STREAMS)]
        readers = [asyncio.create_task(self.read(20)) for _ in range(READS_PER_SECOND // 20)]
        while not self.stop:
            await asyncio.sleep(0.1)
        for task in streams + readers:
            task.cancel()
        await asyncio.gather(*streams, *readers, return_exceptions=True)

    async def ask(self, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n\r\n"
        return reader, writer, request.encode()

    async def listen(self):
        reader, writer, request = await self.ask("/api/v1/events")
        writer.write(request)
        while line := await reader.readline():
            self.events += line.startswith(b"event: ")

    async def read(self, per_second):
        reader, writer, request = await self.ask("/api/v1/runs")
        began, count = time.monotonic(), 0
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(length[0].split(b":")[1]))
            self.reads += 1
            count += 1
            await asyncio.sleep(max(0.0, began + count / per_second - time.monotonic()))


def main():
    parser = argparse.ArgumentParser(description="Measures what the daemon costs a run.")
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    default = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release/aha"
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--aha", type=pathlib.Path, default=default)
    args = parser.parse_args()
    if not args.aha.is_file():
        fail(f"there is no program at {args.aha}", "cargo build --release -p aha")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.aha.resolve(), pathlib.Path(folder), args.steps)
        bench.alone("warm")
        pairs = []
        for idx in range(args.pairs):
            if args.load:
                before = bench.under_daemon(f"quiet-{idx}", False)
            else:
                before = bench.alone(f"alone-{idx}")
            after = bench.under_daemon(f"home-{idx}", args.load)
            pairs.append((before, after))
            shares = [f"{seconds:.3f} s (whole {whole:.3f} s)" for seconds, whole, *_ in (before, after)]
            ratio = after[0] / before[0]
            print(f"pair {idx + 1}: {shares[0]}, then {shares[1]}{after[2]}: {ratio:.4f}", flush=True)
        first, second = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(after[0] / before[0] for before, after in pairs)
        wholes = [statistics.median(pair[side][1] for pair in pairs) for side in (0, 1)]
        print(f"medians: {first:.3f} s and {second:.3f} s; of the ratios {ratio:.4f}; "
              f"whole {wholes[0]:.3f} s and {wholes[1]:.3f} s")
    return 0 if ratio <= (1.05 if args.load else 1.02) else 1


if __name__ == "__main__":
    sys.exit(main())
