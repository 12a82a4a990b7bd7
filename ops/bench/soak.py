#!/usr/bin/env python3
"""Lets a daemon work for an hour, as many people would use it, and watches its memory.

    python3 ops/bench/soak.py [--minutes 60] [--aha PROGRAM]

All the time small runs are submitted, trained, now and then paused and resumed, and deleted when twenty later ones are
there; 100 clients listen to events, every second one of which hangs up and comes again every 30 seconds; runs, figures,
logs and rollouts are read and queried, and finished models are asked for completions. Each minute prints a line with
the resident memory of the daemon (its runs' processes are not in it), its threads and its open files. Exit code: 0
where memory, threads and files are flat: the median of the last sixth of the time is at most 5 % over that of the
second sixth (the first one fills caches); 1 where they grow or something was answered with a 5xx; 2 where it can't be
measured.
"""

import argparse
import asyncio
import collections
import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from daemon_process import Daemon

STREAMS, KEPT_RUNS, GROWTH_MAX = 100, 20, 1.05

PIPELINE = """
[run]
seed = SEED
threads = 1
kv_cache = "8MiB"

[tables]
problems = "problems.jsonl"

[models.base]
init = "random"
hidden_size = 64
intermediate_size = 128
layers = 2
heads = 4
kv_heads = 2
max_position_embeddings = 256
tokenizer = { train = "SELECT prompt AS text FROM problems", vocab_size = 300 }

[[stage]]
name = "zero"
kind = "rl"
model = "base"
prompts = "SELECT id, prompt, answer FROM problems"
steps = 60
prompts_per_step = 4
group_size = 4
checkpoint_every = 20
sampling = { max_tokens = 48 }
rewards = [{ kind = "repetition", ngram_len_words = 1 }]
watchdogs = { truncated = "off", no_signal = "off", unparsed = "off", trains_on_nothing = "off" }
"""


class Client:
    """Asks a daemon, and counts what it answers by status."""

    def __init__(self, port):
        self.port = port
        self.statuses = collections.Counter()
        self.events = 0

    async def ask(self, method, path, body=None):
        """Status and body of an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await self.send(writer, method, path, body)
            status, _ = await self.head(reader)
            text = await reader.read()
            self.statuses[status] += 1
            return status, text
        finally:
            writer.close()

    async def send(self, writer, method, path, body):
        text = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nconnection: close\r\n"
                f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n")
        writer.write(head.encode() + text)
        await writer.drain()

    async def head(self, reader):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        return int(head.split()[1]), head

    async def listen(self, seconds):
        """Listens to events; hangs up after some seconds, if told to, and comes again."""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                await self.send(writer, "GET", "/api/v1/events", None)
                async with asyncio.timeout(seconds):
                    while line := await reader.readline():
                        self.events += line.startswith(b"event: ")
            except TimeoutError:
                pass
            finally:
                writer.close()


class Soak:
    """What goes on while memory is watched."""

    def __init__(self, client):
        self.client = client
        self.submitted = 0

    async def runs(self):
        status, text = await self.client.ask("GET", "/api/v1/runs")
        return json.loads(text)["runs"] if status == 200 else []

    async def submit(self):
        """Keeps the queue short but never empty, and old runs away."""
        while True:
            runs = await self.runs()
            waiting = [run for run in runs if run["status"] in ("queued", "running")]
            if len(waiting) < 3:
                self.submitted += 1
                body = {"pipeline": PIPELINE.replace("SEED", str(self.submitted)), "name": f"soak {self.submitted}"}
                await self.client.ask("POST", "/api/v1/runs", body)
            over = sorted(run["id"] for run in runs if run["status"] == "finished")[:-KEPT_RUNS]
            for run in over:
                await self.client.ask("DELETE", f"/api/v1/runs/{run}")
            await asyncio.sleep(1)

    async def pause(self):
        while True:
            await asyncio.sleep(20)
            running = [run["id"] for run in await self.runs() if run["status"] == "running"]
            for run in running[:1]:
                await self.client.ask("POST", f"/api/v1/runs/{run}/pause")
                await asyncio.sleep(3)
                await self.client.ask("POST", f"/api/v1/runs/{run}/resume")

    async def read(self):
        paths = ["", "/metrics", "/curves", "/usage", "/logs", "/tables", "/checkpoints", "/models", "/pipeline"]
        while True:
            for run in (await self.runs())[-3:]:
                for path in paths:
                    await self.client.ask("GET", f"/api/v1/runs/{run['id']}{path}")
                    await asyncio.sleep(0.05)
            await self.client.ask("GET", "/metrics")

    async def query(self):
        sql = "SELECT step, avg(reward) AS reward, count(*) AS n FROM zero GROUP BY step ORDER BY step"
        while True:
            await asyncio.sleep(5)
            for run in [run["id"] for run in await self.runs() if run["status"] == "finished"][-1:]:
                await self.client.ask("POST", f"/api/v1/runs/{run}/query", {"sql": sql})

    async def complete(self):
        while True:
            await asyncio.sleep(2)
            _, text = await self.client.ask("GET", "/v1/models")
            for model in json.loads(text).get("data", [])[-1:]:
                body = {"model": model["id"], "prompt": "3 + 4 =", "max_tokens": 16, "n": 4, "logprobs": 1}
                await self.client.ask("POST", "/v1/completions", body)

    async def patiently(self, work):
        """A client whose connection ends begins again: a run may be deleted while it is read."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError, KeyError):
                await work()
            await asyncio.sleep(0.5)

    async def go(self, seconds, watch):
        streams = [functools.partial(self.client.listen, 30 if idx % 2 else None) for idx in range(STREAMS)]
        works = [self.submit, self.pause, self.read, self.query, self.complete, *streams]
        tasks = [asyncio.create_task(self.patiently(work)) for work in works]
        await watch(self, time.monotonic() + seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Watch:
    """Reads what the system says of a process."""

    def __init__(self, pid):
        self.proc = pathlib.Path(f"/proc/{pid}")
        self.seen = []

    def sample(self):
        status = dict(line.split(":", 1) for line in (self.proc / "status").read_text().splitlines())
        return {
            "MiB": int(status["VmRSS"].split()[0]) / 1024,
            "threads": int(status["Threads"]),
            "files": len(list((self.proc / "fd").iterdir())),
        }

    async def __call__(self, soak, until):
        began = printed = time.monotonic()
        while (now := time.monotonic()) < until:
            self.seen.append(self.sample())
            if now >= printed:
                printed += 60
                last = self.seen[-1]
                told = ", ".join(f"{count} x {status}" for status, count in sorted(soak.client.statuses.items()))
                print(f"{(now - began) / 60:3.0f} min: {last['MiB']:6.1f} MiB, {last['threads']} threads, "
                      f"{last['files']} files; {soak.submitted} runs, {soak.client.events} events, {told}", flush=True)
            await asyncio.sleep(2)

    def sixths(self, key):
        """Medians of the second and the last sixth of the time."""
        part = max(1, len(self.seen) // 6)
        return [statistics.median(one[key] for one in some) for some in (self.seen[part : 2 * part], self.seen[-part:])]


def write_problems(folder):
    rows = [{"id": str(n), "prompt": f"{n} + {n % 7} =", "answer": str(n + n % 7)} for n in range(64)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main():
    parser = argparse.ArgumentParser(description="Lets a daemon work for an hour and watches its memory.")
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    default = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release/aha"
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--aha", type=pathlib.Path, default=default)
    args = parser.parse_args()
    if not args.aha.is_file():
        sys.exit(print(f"error: no program at {args.aha}\nhint: cargo build --release -p aha", file=sys.stderr) or 2)
    with tempfile.TemporaryDirectory() as folder:
        write_problems(pathlib.Path(folder))
        with Daemon(args.aha.resolve(), folder) as daemon:
            client, watch = Client(daemon.port), Watch(daemon.process.pid)
            asyncio.run(Soak(client).go(args.minutes * 60, watch))
    grown = False
    for key in ("MiB", "threads", "files"):
        early, late = watch.sixths(key)
        grown |= late > early * GROWTH_MAX
        print(f"{key}: {early:.1f} in the second sixth of the time, {late:.1f} in the last: {late / early:.3f}")
    refused = {status: count for status, count in client.statuses.items() if status >= 500}
    print(f"answers of 5xx: {refused or 'none'}")
    return 1 if grown or refused else 0


if __name__ == "__main__":
    sys.exit(main())
