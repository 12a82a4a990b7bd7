#!/usr/bin/env python3
"""Measures what curation finds of what was planted, in which time and memory.

    python3 ops/bench/curation.py [--rows 100000] [--memory 1GiB] [--dir DIR] [--aha PROGRAM] [--xtask PROGRAM]

Makes a table with known exact duplicates, near duplicates (one or two words of 40 to 80 changed) and overlaps with an
evaluation set (13 words in a row or more, or a short text as a whole), and among them rows that come close and must
stay: 12 words in a row, and half a text in common. Then runs the queries in `datasets/` one after the other, each on
what the one before has left, with the limit `--memory`. Prints for each its time, greatest resident memory, rows, and
the shares of rows that it took away. Exit code: 1 where less was found than 100 % of the exact duplicates and overlaps
and 95 % of the near duplicates, or more than 1 % of other rows went; 2 where a query fails.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

DATASETS = pathlib.Path(__file__).resolve().parents[2] / "datasets"
# A query, and the least share of each kind that it has to take away.
STEPS = [
    ("exact-duplicates", {"exact": 1.0}),
    ("near-duplicates", {"near": 0.95}),
    ("decontaminate", {"overlap": 1.0}),
    ("mixture", None),
    ("split", {}),
]
OTHERS_MAX = 0.01


def measured(command):
    """Runs a command; gives its output, seconds, and greatest resident memory in MiB."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        print(f"error: {' '.join(map(str, command))} failed", file=sys.stderr)
        sys.exit(2)
    return output, time.monotonic() - start, usage.ru_maxrss / 1024


def kinds(aha, path):
    """How many rows of each planted kind a table has."""
    sql = "SELECT planted, count(*) AS n FROM t GROUP BY planted"
    output, *_ = measured([aha, "query", sql, "--table", f"t={path}", "--json"])
    return {row["planted"]: row["n"] for row in json.loads(output)}


def judged(name, least, before, after):
    """The shares that are gone of each kind, and what is wrong with them."""
    gone = {kind: 1 - after.get(kind, 0) / count for kind, count in before.items()}
    wrong = []
    for kind, share in gone.items():
        if kind in least and share < least[kind]:
            wrong.append(f"{name}: only {share:.4f} of `{kind}` are gone")
        # Short evaluation texts, planted as a whole, are duplicates of one another.
        if kind not in least and kind != "overlap" and share > OTHERS_MAX:
            wrong.append(f"{name}: {share:.4f} of `{kind}` are gone")
    return gone, wrong


def run(args, folder):
    """Measures all steps; returns what is wrong."""
    _, seconds, _ = measured([args.xtask, "planted", str(args.rows), folder])
    table = folder / "pool.parquet"
    size = table.stat().st_size / 2**20
    print(f"{args.rows} rows, {size:.0f} MiB of Parquet, made in {seconds:.0f} s; limit {args.memory}", flush=True)
    print("| query | seconds | greatest resident memory (MiB) | rows in | rows out | gone |\n" + "| --- " * 6 + "|")
    before, wrong = kinds(args.aha, table), []
    for idx, (name, least) in enumerate(STEPS):
        out = folder / f"{idx}-{name}.parquet"
        command = [args.aha, "query", "--file", DATASETS / f"{name}.sql", "--memory", args.memory]
        command += ["--table", f"pool={table}", "--table", f"evaluation={folder}/evaluation.parquet"]
        _, seconds, memory = measured(command + ["--format", "parquet", "--out", out])
        after = kinds(args.aha, out)
        gone, more = judged(name, least, before, after) if least is not None else ({}, [])
        wrong += more
        shown = ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in sorted(gone.items()))
        counts = f"{sum(before.values())} | {sum(after.values())}"
        print(f"| `{name}` | {seconds:.1f} | {memory:.0f} | {counts} | {shown} |", flush=True)
        table, before = out, after
    return wrong


def main():
    """Reads the arguments and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--dir", help="where tables are written; by default a folder that is removed")
    parser.add_argument("--aha", default="target/release/aha")
    parser.add_argument("--xtask", default="target/release/xtask")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        wrong = run(args, pathlib.Path(folder))
    print("\n".join(wrong) or "all bounds are met")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
