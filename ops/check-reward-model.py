#!/usr/bin/env python3
"""Checks that a reward model of ours loads in transformers and gives the same scores there.

Set up as `check-export.py` says. Then:

    ~/.cache/aha/venv-transformers/bin/python ops/check-reward-model.py RUN_DIR STAGE [--batch N] [--aha PROGRAM]

RUN_DIR is a run directory with a `reward-model` stage STAGE that is done. Its pairs are read with `aha query`
from the table STAGE, and scored by `models/STAGE` in transformers in f32 on the processor: each alone, and N at a
time filled up on the right with the token that the model's config names. Two things are compared: the accuracy on
held-out pairs, and how far apart their scores are, with what the stage recorded, and the mean and standard
deviation of the scores of the other pairs with the card in `config.json`. Exit code: 0 within 1e-3, 1 beyond or
not a number, 2 when it can't be checked.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

BOUND = 1e-3


def fail(message, hint):
    """Says what can't be done, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(2)


try:
    import torch
    import transformers
except (ImportError, OSError, ValueError) as error:  # torch raises the latter two without its libraries.
    fail(error, "pip install torch transformers")


def arguments():
    """What was asked for; the program is looked for where cargo puts it."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(__file__).parents[1] / "target")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="a run directory")
    parser.add_argument("stage", help="the name of its reward-model stage")
    parser.add_argument("--batch", type=int, default=16, help="sequences at a time (default: %(default)s)")
    parser.add_argument("--aha", default=target / "release" / "aha", help="the program (default: %(default)s)")
    args = parser.parse_args()
    if not (args.run / "models" / args.stage).is_dir():
        fail(f"`{args.run}` has no model `{args.stage}`", "give a run whose reward-model stage is done")
    return args


def query(args, sql):
    """The rows of a query over the run, as dictionaries."""
    command = [str(args.aha), "query", sql, "--run", str(args.run), "--format", "json"]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        fail(error, "build it with `cargo build --release -p aha`, or name it with --aha")
    except subprocess.CalledProcessError as error:
        fail(f"aha query ended with {error.returncode}", "see what it said above")
    return json.loads(done.stdout)


def score(model, batch):
    """Scores of sequences that go through the model at once."""
    longest = max(map(len, batch))
    pad = model.config.pad_token_id
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in batch])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch])
    with torch.no_grad():
        return model(ids, attention_mask=mask, use_cache=False).logits[:, 0].tolist()


def recorded(args, name):
    """The last value of a metric."""
    where = f"stage = '{args.stage}' AND name = '{name}'"
    rows = query(args, f"SELECT value FROM metrics WHERE {where} ORDER BY step DESC LIMIT 1")
    return rows[0]["value"] if rows else None


def main():
    args = arguments()
    path = args.run / "models" / args.stage
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    if model.config.num_labels != 1:
        fail(f"the model has {model.config.num_labels} labels", "a reward model has one")
    pairs = query(args, f"SELECT * FROM {args.stage}")
    sequences = [pair[f"{which}_token_ids"] for pair in pairs for which in ("chosen", "rejected")]
    together = []
    for start in range(0, len(sequences), args.batch):
        together += score(model, sequences[start : start + args.batch])
    alone = [score(model, [ids])[0] for ids in sequences]
    distances = {"filled up and alone": max(abs(a - b) for a, b in zip(together, alone, strict=True))}

    scored = list(zip(pairs, alone[::2], alone[1::2], strict=True))
    trained = torch.tensor([s for pair, *two in scored if not pair["is_held_out"] for s in two], dtype=torch.float64)
    card = json.loads((path / "config.json").read_text())["aha_reward"]
    found = (trained.mean(), trained.std(correction=0))
    for value, ours, name in zip(found, card["moments"], ("mean", "std"), strict=True):
        distances[f"{name} of the scores"] = abs(value.item() - ours)
    held_out = [(chosen, rejected) for pair, chosen, rejected in scored if pair["is_held_out"]]
    ours = recorded(args, "held_out_accuracy")
    if held_out and ours is not None:
        accuracy = sum(chosen > rejected for chosen, rejected in held_out) / len(held_out)
        distances["accuracy on held-out pairs"] = abs(accuracy - ours)
        margin = sum(chosen - rejected for chosen, rejected in held_out) / len(held_out)
        distances["margin of held-out pairs"] = abs(margin - recorded(args, "held_out_margin"))

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{len(pairs)} pairs, {type(model).__name__}, {versions}")
    for name, distance in distances.items():
        print(f"{name}: distance {distance:.2e}")
    # A maximum of tensors is NaN where any value is, unlike Python's.
    worst = torch.tensor(list(distances.values()), dtype=torch.float64).max().item()
    print(f"largest distance {worst:.2e}, bound {BOUND:.0e}: {'ok' if worst <= BOUND else 'FAILED'}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
