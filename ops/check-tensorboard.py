#!/usr/bin/env python3
"""Checks that TensorBoard reads the event files of `aha report --tensorboard`.

    aha report RUN_DIR --tensorboard BOARD
    aha query "SELECT stage, step, name, value FROM metrics" --run RUN_DIR --json > metrics.json
    python ops/check-tensorboard.py BOARD metrics.json

Every metric of the run must be a scalar of its stage's folder, at its step, with its value as float32. Prints
one line per stage. Exit code: 0 when all agree, 1 when something doesn't, 2 when it can't be checked
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


def main(board, metrics):
    wanted = collections.defaultdict(lambda: collections.defaultdict(dict))
    for row in json.loads(pathlib.Path(metrics).read_text()):
        wanted[row["stage"]][row["name"]][row["step"]] = single(row["value"])
    failed = not wanted
    for stage, names in wanted.items():
        found = scalars(pathlib.Path(board) / stage)
        wrong = [
            f"{name} at step {step}: {found.get(name, {}).get(step)} is not {value}"
            for name, values in names.items()
            for step, value in values.items()
            if not same(found.get(name, {}).get(step), value)
        ]
        failed |= bool(wrong)
        count = sum(len(values) for values in names.values())
        said = f"{'WRONG' if wrong else 'ok':5} {stage}: {count} values of {len(names)} metrics"
        print(said, *wrong[:5], sep="\n      ")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(print(__doc__) or 2)
    sys.exit(main(*sys.argv[1:]))
