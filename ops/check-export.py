#!/usr/bin/env python3
"""Checks that a model directory of ours loads in transformers and gives the same log-probs there.

    pip install torch transformers
    python ops/check-export.py MODEL_DIR [--aha target/release/aha]

MODEL_DIR is `models/NAME` or `checkpoints/STAGE/step-N/model` of a run directory, or what `aha export`
wrote. Sequences of random tokens go through `aha logprobs` and through transformers in f32; prints the
largest distance between two log-probs. Exit code: 0 within 1e-3, 1 beyond, 2 when it can't be checked.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(print(f"error: {error}\nhint: pip install torch transformers") or 2)

BOUND = 1e-3
LENGTHS = (2, 17, 64, 120)


def theirs(model, ids):
    """Log-probs of each token after the first, by transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    logps = torch.log_softmax(logits.float(), -1)
    return [logps[i, ids[i + 1]].item() for i in range(len(ids) - 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--aha", default="target/release/aha")
    args = parser.parse_args()

    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, model.config.vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(sequences, file)
        file.flush()
        command = [args.aha, "logprobs", "--model", str(args.model), "--ids", file.name]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["logprobs"]

    pairs = [(a, b) for ids, row in zip(sequences, ours, strict=True) for a, b in zip(row, theirs(model, ids), strict=True)]
    worst = max(abs(a - b) for a, b in pairs)
    print(f"{len(pairs)} log-probs, transformers {transformers.__version__}: largest distance {worst:.2e}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
