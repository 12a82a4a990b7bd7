#!/usr/bin/env python3
"""Measures how much memory runs take, against what `aha check` predicts for them.

    python3 ops/bench/memory.py [--only NAME]... [--bound 0.10] [--aha PROGRAM]

Ten runs, from 21 to 135 million parameters (made from nothing), of the stages that train and one that samples:
with and without activation checkpointing, with small and large micro-batches and caches. Prints a line for
each: the prediction, the greatest resident memory (VmHWM), both in MiB, and their ratio. Exit code: 0 if every
prediction is within the bound of what was measured, 1 if one isn't, 2 where a run fails.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

SEED = 1
SMALL = "hidden_size = 512, intermediate_size = 1536, layers = 6, heads = 8, kv_heads = 4, vocab_size = 4096"
SMOLLM2 = "hidden_size = 576, intermediate_size = 1536, layers = 30, heads = 9, kv_heads = 3, vocab_size = 49152"
SFT = 'kind = "sft"\ndata = "SELECT text FROM texts"\nmax_tokens = 512\noverlong = "truncate"\n'
PAIRS = 'kind = "reward-model"\ndata = "SELECT prompt, chosen, rejected FROM pairs"\nmax_tokens = 512\n'
DPO = PAIRS.replace("reward-model", "dpo")
RL = (
    'kind = "rl"\nsampling = { max_tokens = 192 }\nprompts = "SELECT id, prompt, answer FROM problems"\n'
    'prompts_per_step = 4\ngroup_size = 8\n'
    'rewards = [{ kind = "repetition", ngram_len_words = 1 }]\n'
    'watchdogs = { truncated = "off", no_signal = "off", unparsed = "off" }\n'
)
SAMPLE = (
    'kind = "sample"\nprompts = "SELECT id, prompt, answer FROM problems"\nn = 4\nsampling = { max_tokens = 192 }\n'
    'rewards = [{ kind = "repetition" }]\n'
)

CHECKPOINTING = "activation_checkpointing = true"
NO_KL = "objective = { kl = 0, entropy = 0.001 }"

# Name, model, size of the cache, and the stage.
CONFIGURATIONS = [
    ("sft", SMALL, "8MiB", SFT + "batch_size = 8\nmicro_batch_tokens = 4096"),
    ("sft-small-batches", SMALL, "8MiB", SFT + "batch_size = 8\nmicro_batch_tokens = 512"),
    ("sft-checkpointing", SMALL, "8MiB", SFT + "batch_size = 8\nmicro_batch_tokens = 4096\n" + CHECKPOINTING),
    ("reward-model", SMALL, "8MiB", PAIRS + "batch_size = 4\nmicro_batch_tokens = 2048"),
    ("dpo", SMALL, "8MiB", DPO + "batch_size = 4\nmicro_batch_tokens = 2048"),
    ("rl", SMALL, "32MiB", RL + "micro_batch_tokens = 2048\n" + NO_KL),
    ("rl-kl", SMALL, "32MiB", RL + "micro_batch_tokens = 1024\nobjective = { kl = 0.01 }"),
    ("rl-large-cache", SMALL, "512MiB", RL + "micro_batch_tokens = 512\n" + NO_KL),
    ("sample", SMALL, "128MiB", SAMPLE),
    ("smollm2-sft", SMOLLM2, "8MiB", SFT + "batch_size = 2\nmicro_batch_tokens = 1024"),
    ("smollm2-reward-model", SMOLLM2, "8MiB", PAIRS + "batch_size = 1\nmicro_batch_tokens = 1024\n" + CHECKPOINTING),
]


def fail(message, hint):
    """Says what can't be done, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(2)


def arguments():
    """What was asked for; the program is looked for where cargo puts it."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(__file__).parents[2] / "target")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name, *_ in CONFIGURATIONS]
    parser.add_argument("--only", action="append", choices=names,
        help="a run to measure; can be repeated; default: all")
    parser.add_argument("--bound", type=float, default=0.10,
        help="largest error of a prediction (default: %(default)s)")
    parser.add_argument("--aha", default=target / "release" / "aha", help="the program (default: %(default)s)")
    return parser.parse_args()


def write_tables(folder):
    """Texts of digits, longer than any sequence; pairs of them; problems with prompts of a few tokens."""
    source = random.Random(SEED)
    digits = lambda count: "".join(source.choice("0123456789 ") for _ in range(count))
    tables = {
        "texts": [{"text": digits(1200)} for _ in range(64)],
        "pairs": [{"prompt": digits(20), "chosen": digits(480), "rejected": digits(480)} for _ in range(32)],
        "problems": [{"id": f"p{i}", "prompt": f"{i} + 1 = ", "answer": str(i + 1)} for i in range(32)],
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pipeline(model, cache, stage):
    """A pipeline of one stage, which takes two steps."""
    steps = {"sft": "max_steps = 2\n", "reward-model": "max_steps = 2\n", "dpo": "max_steps = 2\n", "rl": "steps = 2\n"}
    kind = stage.split('"')[1]
    positions = 1024 if "max_tokens = 512" in stage else 256
    tokenizer = "tokenizer = { train = \"SELECT prompt || '0123456789 ' AS text FROM problems\""
    tokenizer += ", vocab_size = 24, alphabet = \"seen\" }"
    return (
        f'[run]\nseed = {SEED}\nthreads = 2\nkv_cache = "{cache}"\nquery_memory = "32MiB"\n\n'
        f'[models]\nblank = {{ init = "random", {model}, max_position_embeddings = {positions}, {tokenizer} }}\n\n'
        '[tables]\ntexts = "texts.jsonl"\npairs = "pairs.jsonl"\nproblems = "problems.jsonl"\n\n'
        f'[[stage]]\nname = "a"\nmodel = "blank"\n{stage}\n{steps.get(kind, "")}'
    )


def predicted(aha, folder):
    """The bytes that the plan says."""
    found = subprocess.run([aha, "check", "pipeline.toml", "--json"], cwd=folder, capture_output=True, text=True)
    if found.returncode != 0:
        fail(found.stderr.strip() or found.stdout.strip(), "mend the pipeline of this script")
    return json.loads(found.stdout)["memory_bytes"]


def measured(aha, folder):
    """The greatest resident memory of the run, which the system counts while it is there."""
    log = open(folder / "log.txt", "w+")
    run = subprocess.Popen([aha, "run", "pipeline.toml", "--dir", "run"], cwd=folder, stdout=log, stderr=log)
    peak_kib = 0
    while run.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{run.pid}/status").read_text()
        except OSError:
            break
        lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        peak_kib = int(lines[0].split()[1]) if lines else peak_kib
        time.sleep(0.02)
    if run.wait() != 0:
        log.seek(0)
        fail(f"the run failed: {log.read().strip()}", "run the pipeline by hand")
    return peak_kib * 1024


def main():
    """Measures each and prints a line of it."""
    args = arguments()
    aha = pathlib.Path(args.aha).absolute()
    if not aha.is_file():
        fail(f"there is no program `{aha}`", "cargo build --release -p aha, or give --aha")
    is_within = True
    print(f"{'run':<22} {'predicted':>10} {'measured':>10} {'ratio':>6}")
    for name, model, cache, stage in CONFIGURATIONS:
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            write_tables(folder)
            (folder / "pipeline.toml").write_text(pipeline(model, cache, stage))
            plan, peak = predicted(aha, folder), measured(aha, folder)
        ratio = plan / peak
        is_within &= abs(ratio - 1) <= args.bound
        print(f"{name:<22} {plan / 2**20:>10.0f} {peak / 2**20:>10.0f} {ratio:>6.2f}", flush=True)
    sys.exit(0 if is_within else 1)


if __name__ == "__main__":
    main()
