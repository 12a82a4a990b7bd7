#!/usr/bin/env python3
"""Runs pipelines/ablation.toml for several seeds: what each objective reached, in what time and memory.

    python3 ops/bench/ablation.py [--seeds 1 2 3] [--dir DIR]

For each seed the pipeline runs as it is, into DIR/seed-N; a run that is there is finished rather than begun again.
Then each objective runs alone, from that run's base model and with that seed, so that the greatest resident memory is
its own: three steps of it, whose memory is that of all. pass@1 is in per cent, mean over the seeds and, in brackets,
least and greatest; seconds are those of sampling and learning, which include neither evaluation nor the start. Needs
Python 3.11 and `cargo build --release -p aha`. Exit code: 0 when done, 1 when a run failed, 2 when called wrongly.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "pipelines/ablation.toml"
MEMORY_STEPS = 3


def fail(message, hint, code=1):
    """Says what went wrong, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(code)


def arguments():
    """What was asked for; the program is looked for where cargo puts it."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds (default: 1 2 3)")
    parser.add_argument("--dir", type=pathlib.Path, default=ROOT / "runs/ablation",
        help="where the runs are kept (default: %(default)s)")
    parser.add_argument("--aha", type=pathlib.Path, default=target / "release/aha",
        help="the program (default: %(default)s)")
    given = parser.parse_args()
    if not given.aha.is_file():
        fail(f"there is no program {given.aha}", "build it: cargo build --release -p aha", code=2)
    return given


def run(aha, arguments):
    """Runs the program in the repository's root and gives the greatest resident memory of its process, in bytes."""
    process = subprocess.Popen([aha, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        fail(f"`aha {' '.join(map(str, arguments))}` failed:\n{said.strip()}", "run it by hand")
    return usage.ru_maxrss * 1024


def results(aha, folder):
    """The rows of the pipeline's last query, by model."""
    found = subprocess.run(
        [aha, "query", "SELECT * FROM results", "--run", folder, "--format", "json"], capture_output=True, text=True)
    if found.returncode != 0:
        fail(f"the results of {folder} can't be read: {found.stderr.strip()}", "remove the folder and start again")
    return {row["model"]: row for row in json.loads(found.stdout)}


def alone(stage, base, seed, steps):
    """A pipeline of one objective, from a base model that is there."""
    text = PIPELINE.read_text()
    head, *stages = text.split("\n[[stage]]\n")
    own = next(body for body in stages if body.startswith(f'name = "{stage}"\n'))
    tables = head[head.index("\n[tables]\n"):]
    run_table = head[head.index("\n[run]\n"):head.index("\n[models.")].replace("seed = 1", f"seed = {seed}")
    own = own.replace('model = "base"', f'model = "base"\ncheckpoint_every = {steps}', 1)
    own = "\n".join(f"steps = {steps}" if line.startswith("steps = ") else line for line in own.splitlines())
    return f"{run_table}\n[models]\nbase = {json.dumps(str(base))}\n{tables}\n[[stage]]\n{own}\n"


def memory(given, seed, stage):
    """Greatest resident memory of a run of this objective alone."""
    folder = given.dir / f"memory-{seed}-{stage}"
    file = given.dir / f"memory-{seed}-{stage}.toml"
    file.write_text(alone(stage, given.dir / f"seed-{seed}/models/base", seed, MEMORY_STEPS))
    subprocess.run(["rm", "-rf", folder], check=True)
    return run(given.aha, ["run", file, "--dir", folder])


def main():
    """Runs, measures, prints."""
    given = arguments()
    given.dir = given.dir.resolve()
    given.dir.mkdir(parents=True, exist_ok=True)
    stages = [stage["name"] for stage in tomllib.loads(PIPELINE.read_text())["stage"] if stage["kind"] == "rl"]
    by_seed, bytes_by_stage = [], {stage: [] for stage in stages}
    for seed in given.seeds:
        folder = given.dir / f"seed-{seed}"
        resume = ["--resume"] if folder.is_dir() else []
        run(given.aha, ["run", PIPELINE, "--dir", folder, "--set", f"run.seed={seed}", *resume])
        by_seed.append(results(given.aha, folder))
        for stage in stages:
            bytes_by_stage[stage].append(memory(given, seed, stage))
    print(f"| objective | pass@1, mean (least to greatest) of seeds {', '.join(map(str, given.seeds))} | cons@16 | "
        "tokens | clipped, % | seconds | memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in by_seed[0]:
        values = lambda name: [row[model][name] for row in by_seed]
        mean = lambda name, places: "" if None in values(name) else f"{statistics.mean(values(name)):.{places}f}"
        passed = values("pass@1")
        mib = max(bytes_by_stage[model]) / 2**20 if model in bytes_by_stage else None
        print(f"| `{model}` | {statistics.mean(passed):.1f} ({min(passed):.1f} to {max(passed):.1f}) | "
            f"{mean('cons@16', 1)} | {mean('tokens', 1)} | {mean('clipped', 2)} | {mean('seconds', 1)} | "
            f"{'' if mib is None else f'{mib:.0f}'} |")


if __name__ == "__main__":
    main()
