#!/usr/bin/env python3
"""Checks that TensorBoard reads the event files of `aha report --tensorboard`.

    aha report RUN_DIR --tensorboard BOARD
    aha query "SELECT stage, step, name, value FROM metrics" --run RUN_DIR --json > metrics.json
    aha query "SELECT * FROM evals" --run RUN_DIR --json > evals.json
    python ops/check-tensorboard.py BOARD metrics.json evals.json

Every metric of the run must be a scalar of its stage's folder, at its step, with its value as float32; every figure of
an evaluation one of its model's folder, at step 0, and one by the number of samples at that number. Prints one line
per folder. Exit code: 0 when all agree, 1 when something doesn't, 2 when it can't be checked
(pip install tensorboard).
"""

import collections
import json
import pathlib
import struct
import sys

try:
    from tensorboard.backend.event_processing import event_accumulator
except ImportError as error:
    sys.exit(print(f"error: {error}\nhint: pip install tensorboard") or 2)


FIGURES = (
    "pass_at_1 pass_at_k cons_at_k weighted_cons_at_k bon_at_k rating completion_len_tokens_mean truncated_share"
    " answered_share"
).split()
BY_SAMPLES = "pass_at_ks cons_at_ks weighted_cons_at_ks bon_at_ks".split()


def single(value):
    """The value as float32 holds it; "NaN" and the like are texts in JSON."""
    return struct.unpack("<f", struct.pack("<f", float(value)))[0]


def scalars(folder):
    """What TensorBoard reads: by tag, its values by step."""
    every = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
    events = event_accumulator.EventAccumulator(str(folder), size_guidance=every)
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def same(a, b):
    """Whether two values are equal, or both no numbers."""
    return a == b or (a != a and b != b)


def wanted_of(metrics, evals):
    """By folder and tag, the values by step that have to be there."""
    wanted = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in metrics:
        wanted[row["stage"]][row["name"]][row["step"]] = single(row["value"])
    for row in evals:
        folder = wanted[f"{row['stage']}/{row['model']}"]
        for name in FIGURES:
            if row[name] is not None:
                folder[f"{row['dataset']}/{name}"][0] = single(row[name])
        for name in BY_SAMPLES:
            for k, value in zip(row["ks"], row[name] or []):
                folder[f"{row['dataset']}/{name}"][k] = single(value)
    return wanted


def main(board, *tables):
    wanted = wanted_of(*(json.loads(pathlib.Path(table).read_text()) for table in tables))
    failed = not wanted
    for folder, names in wanted.items():
        found = scalars(pathlib.Path(board) / folder)
        wrong = [
            f"{name} at step {step}: {found.get(name, {}).get(step)} is not {value}"
            for name, values in names.items()
            for step, value in values.items()
            if not same(found.get(name, {}).get(step), value)
        ]
        failed |= bool(wrong)
        count = sum(len(values) for values in names.values())
        said = f"{'WRONG' if wrong else 'ok':5} {folder}: {count} values of {len(names)} scalars"
        print(said, *wrong[:5], sep="\n      ")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(print(__doc__) or 2)
    sys.exit(main(*sys.argv[1:]))
