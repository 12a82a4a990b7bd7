#!/usr/bin/env python3
"""Runs pipelines/smollm2-word-problems.toml, and TRL from the same cold start with as many samples.

    python3 ops/bench/word_problems.py --worked SVAMP --problems MAWPS --dir DIR [--autocast] [--aha PROGRAM]

Our pipeline runs into DIR/aha. TRL (`ops/bench/compare --setup` installs it) then trains DIR/aha's cold start on the
same problems, with the same number of steps, prompts, completions and tokens, the same rate and the same verifiers, and
its model is evaluated on the same held-out problems by `aha eval`. Both use all cores, one after the other. What is
there already isn't run again. Prints held-out accuracy with standard errors, and the reward by step and by minute.
Needs Python 3.11. Exit code: 0 when done, 1 when a part failed, 2 when called wrongly.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = pathlib.Path(os.environ.get("PEERS", pathlib.Path.home() / ".cache" / "aha-peers"))
PYTHON = PEERS / "venv" / "bin" / "python"
PIPELINE = ROOT / "pipelines/smollm2-word-problems.toml"
# Steps whose rewards are averaged for a line of the table: one step has 64 completions.
STEPS_PER_LINE = 5
# Minutes of a line where we are done and TRL isn't.
LATE_MINUTES = 5


def fail(message, hint, code=1):
    """Says what went wrong, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(code)


def arguments():
    """What was asked for; the program is looked for where cargo puts it."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worked", type=pathlib.Path, required=True, help="problems with their equations: SVAMP")
    parser.add_argument("--problems", type=pathlib.Path, required=True, help="train and held-out problems: MAWPS")
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="where runs and models are kept")
    parser.add_argument("--autocast", action="store_true", help="TRL computes in bf16 where torch's autocast does")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of either (default: %(default)s)")
    parser.add_argument("--aha", type=pathlib.Path, default=target / "release/aha",
        help="the program (default: %(default)s)")
    return parser.parse_args()


def call(command, log, **more):
    """Runs a command, with what it prints in a file."""
    command = [str(part) for part in command]
    with log.open("w") as lines:
        done = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, check=False, **more)
    if done.returncode != 0:
        fail(f"`{command[0]} {command[1]}` ended with {done.returncode}", f"read {log}")


def query(options, sql, *where):
    """The rows of a query, as objects."""
    command = [str(options.aha), "query", sql, "--json", *map(str, where)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def run_ours(options, run):
    """The pipeline, or what is left of it."""
    model = subprocess.run([ROOT / "ops/fetch-smollm2"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    paths = {"models.smollm2": model, "tables.worked": options.worked.resolve(),
        "tables.problems": options.problems.resolve(), "run.threads": options.threads}
    flags = [flag for key, value in paths.items() for flag in ("--set", f"{key}={value}")]
    resume = ["--resume"] if run.exists() else []
    call([options.aha, "run", PIPELINE, "--dir", run, *flags, *resume], options.dir / "aha.log")


def run_trl(options, run, stage):
    """TRL from the cold start, on the stage's prompts and with its settings."""
    table = ("--table", f"problems={options.problems}")
    problems = query(options, stage["prompts"], *table)
    settings = {
        "model": str(run / "models" / stage["model"]),
        "problems": [
            {"prompt": stage["template"].replace("{prompt}", row["prompt"]), "answer": row["answer"]}
            for row in problems
        ],
        "out": str(options.dir / "trl"),
        "steps": stage["steps"],
        "prompts_per_step": stage["prompts_per_step"],
        "group_size": stage["group_size"],
        "max_tokens": stage["sampling"]["max_tokens"],
        "lr": stage["optimizer"]["lr"],
        "rewards": [[reward["kind"], reward.get("weight", 1.0)] for reward in stage["rewards"]],
        "aha": str(options.aha),
        "seed": 1,
        "autocast": options.autocast,
        "threads": options.threads,
    }
    path = options.dir / "trl.json"
    path.write_text(json.dumps(settings))
    env = dict(os.environ, OMP_NUM_THREADS=str(options.threads), CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    env["TOKENIZERS_PARALLELISM"] = "false"
    call([PYTHON, HERE / "peers/trl_grpo.py", path], options.dir / "trl.log", env=env)


def evaluate_trl(options, stage):
    """TRL's model on the held-out problems, as the pipeline evaluates ours."""
    held_out = options.dir / "held-out.parquet"
    query_command = [options.aha, "query", stage["data"], "--table", f"problems={options.problems}",
        "--format", "parquet", "--out", held_out]
    call(query_command, options.dir / "held-out.log")
    command = [options.aha, "eval", "--model", options.dir / "trl", "--data", held_out, "--k", stage["k"],
        "--temperature", stage["temperature"], "--top-p", stage["top_p"], "--max-tokens", stage["max_tokens"],
        "--template", stage["template"], "--reward", stage["reward"]["kind"], "--dtype", "bf16", "--seed", 1,
        "--threads", options.threads, "--json"]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True)
    (options.dir / "trl-eval.json").write_text(done.stdout)


def trl_steps(log):
    """Steps that TRL printed, behind its bar of progress."""
    lines = [line for line in log.read_text().splitlines() if '{"step": ' in line]
    return [json.loads(line[line.index('{"step": '):]) for line in lines]


def our_steps(options, run):
    """Seconds of sampling and learning, and the mean reward, of our steps."""
    sql = """
        SELECT step, max(value) FILTER (WHERE name = 'reward') AS reward,
               sum(value) FILTER (WHERE name IN ('sampling_seconds', 'learning_seconds')) AS seconds
        FROM metrics WHERE stage = 'grpo' GROUP BY step ORDER BY step"""
    return query(options, sql, "--run", run)


def mean(values):
    """Their mean."""
    values = list(values)
    return sum(values) / len(values)


def by_step(ours, theirs):
    """Lines of STEPS_PER_LINE steps each: mean reward, and the minute at which the last of them ended."""
    print("| steps | aha: reward | minute | TRL: reward | minute |\n| --- | --- | --- | --- | --- |")
    for first in range(0, max(len(ours), len(theirs)), STEPS_PER_LINE):
        cells = []
        for steps in (ours, theirs):
            some = steps[first : first + STEPS_PER_LINE]
            ended = sum(step["seconds"] for step in steps[: first + STEPS_PER_LINE]) / 60
            cells += [f"{mean(step['reward'] for step in some):.3f}", f"{ended:.1f}"] if some else ["", ""]
        print(f"| {first + 1} to {first + STEPS_PER_LINE} | {' | '.join(cells)} |")


def by_minute(ours, theirs):
    """Mean reward of the steps that ended in each of so many minutes: as many lines as we need minutes, then fewer."""
    print("\n| minutes | aha: reward | TRL: reward |\n| --- | --- | --- |")
    ends = []
    for steps in (ours, theirs):
        clock, found = 0.0, []
        for step in steps:
            clock += step["seconds"] / 60
            found.append((clock, step["reward"]))
        ends.append(found)
    last, width, begun = max(found[-1][0] for found in ends), 1, 0
    while begun < last:
        if begun >= ends[0][-1][0]:
            width = LATE_MINUTES
        cells = []
        for found in ends:
            rewards = [reward for end, reward in found if begun < end <= begun + width]
            cells.append(f"{mean(rewards):.3f}" if rewards else "")
        print(f"| {begun} to {begun + width} | {' | '.join(cells)} |")
        begun += width


def accuracy(row):
    """pass@1 in per cent, with its standard error."""
    return f"{100 * row['pass_at_1']:.1f} ± {100 * row['pass_at_1_se']:.1f}"


def main():
    """Runs what isn't there yet and prints the tables."""
    options = arguments()
    if not PYTHON.exists():
        fail(f"{PYTHON} isn't there", "install TRL first: ops/bench/compare --setup", 2)
    options.dir.mkdir(parents=True, exist_ok=True)
    stages = {stage["name"]: stage for stage in tomllib.loads(PIPELINE.read_text())["stage"]}
    run = options.dir / "aha"
    run_ours(options, run)
    if not (options.dir / "trl/config.json").exists():
        run_trl(options, run, stages["grpo"])
    if not (options.dir / "trl-eval.json").exists():
        evaluate_trl(options, stages["after"])
    evals = {row["stage"]: row for row in query(options, "SELECT * FROM evals", "--run", run)}
    print("| held-out problems, pass@1 in per cent | |\n| --- | --- |")
    print(f"| cold start | {accuracy(evals['before'])} |\n| aha | {accuracy(evals['after'])} |")
    print(f"| TRL | {accuracy(json.loads((options.dir / 'trl-eval.json').read_text()))} |\n")
    ours, theirs = our_steps(options, run), trl_steps(options.dir / "trl.log")
    by_step(ours, theirs)
    by_minute(ours, theirs)


if __name__ == "__main__":
    main()
