#!/usr/bin/env python3
"""Checks that model directories of ours load in transformers and give the same log-probs there.

Set up once, anywhere outside the repository:

    python3 -m venv ~/.cache/aha/venv-transformers
    ~/.cache/aha/venv-transformers/bin/pip install torch transformers

Then, after `cargo build --release -p aha`:

    ~/.cache/aha/venv-transformers/bin/python ops/check-export.py [MODEL_DIR]... [--text TEXT]... [--aha PROGRAM]

MODEL_DIR is `models/NAME` or `checkpoints/STAGE/step-N/model` of a run directory, or what `aha export` wrote.
Without one, the four tiny models of the tests and, where AHA_SMOLLM2 names its GGUF file, SmolLM2 are exported
by `aha export`, as one file and as several, and all these are checked:

    AHA_SMOLLM2="$(ops/fetch-smollm2)" ~/.cache/aha/venv-transformers/bin/python ops/check-export.py

Sequences of random tokens from a fixed seed, and the texts that are given, go through `aha logprobs` and
through transformers in f32 on the processor. Prints the largest distance between two log-probs of each model.
Exit code: 0 within 1e-4, 1 beyond or not a number, 2 when it can't be checked.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

BOUND = 1e-4
FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "crates/aha-model/tests/fixtures"
TINY = ("tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3")
# Sizes that make several files of these models.
TINY_SHARD, SMOLLM2_SHARD = "100kB", "200MB"
SEED = 1
LENGTHS = (2, 17, 64, 120)


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
    parser.add_argument("model", nargs="*", type=pathlib.Path, help="a Hugging Face directory that aha wrote")
    parser.add_argument("--text", action="append", default=[], help="a text to compare on too; can be repeated")
    parser.add_argument("--aha", default=target / "release" / "aha", help="the program (default: %(default)s)")
    args = parser.parse_args()
    for model in args.model:
        if not model.is_dir():
            fail(f"`{model}` is no directory", "give models/NAME of a run directory")
    return args


def run(args, arguments):
    """What the program prints."""
    try:
        command = [str(args.aha), *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    except OSError as error:
        fail(error, "build it with `cargo build --release -p aha`, or name it with --aha")
    except subprocess.CalledProcessError as error:
        fail(f"aha {arguments[0]} ended with {error.returncode}", "see what it said above")


def exported(args, folder):
    """Exports what the tests have, each model as one file and as several."""
    models = [(name, FIXTURES / name, TINY_SHARD) for name in TINY]
    if gguf := os.environ.get("AHA_SMOLLM2"):
        models.append(("smollm2", pathlib.Path(gguf), SMOLLM2_SHARD))
    for name, source, shard_size in models:
        for kind, more in (("one file", []), ("shards", ["--shard-size", shard_size])):
            out = folder / f"{name}, {kind}"
            run(args, ["export", "--model", source, "--out", out, *more])
            if (out / "model.safetensors").exists() != (kind == "one file"):
                fail(f"`{out}` is not {kind}", "look at `aha export --shard-size`")
            yield out


def random_sequences(config):
    """Sequences of random tokens, none longer than the model's positions."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = [min(length, config.max_position_embeddings) for length in LENGTHS]
    return [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def encoded(args, path, config):
    """The tokens of the texts that were given, by the directory's own tokenizer."""
    if not args.text:
        return []
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    sequences = [tokenizer(text)["input_ids"][: config.max_position_embeddings] for text in args.text]
    for text, ids in zip(args.text, sequences, strict=True):
        if len(ids) < 2:
            fail(f"{text!r} has fewer than 2 tokens", "give a longer text")
    return sequences


def ours(args, path, sequences):
    """Log-probs of each token after the first, by aha."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "ids.json"
        file.write_text(json.dumps(sequences))
        rows = json.loads(run(args, ["logprobs", "--model", path, "--ids", file]))["logprobs"]
    # JSON has no NaN: it is written as null.
    return [[float("nan") if value is None else value for value in row] for row in rows]


def theirs(model, ids):
    """The same, by transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    logps = torch.log_softmax(logits.float(), -1)
    return [logps[i, ids[i + 1]].item() for i in range(len(ids) - 1)]


def check(args, path):
    """Whether a model's log-probs are near enough."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sequences = random_sequences(model.config) + encoded(args, path, model.config)
    distances = []
    for ids, row in zip(sequences, ours(args, path, sequences), strict=True):
        distances += [abs(a - b) for a, b in zip(row, theirs(model, ids), strict=True)]
    # A maximum of tensors is NaN where any value is, unlike Python's.
    worst = torch.tensor(distances, dtype=torch.float64).max().item()
    verdict = "ok" if worst <= BOUND else "FAILED"
    count = f"{len(sequences)} sequences, {len(distances)} log-probs"
    print(f"{path.name}: {count}, largest distance {worst:.2e}, bound {BOUND:.0e}: {verdict}", flush=True)
    return worst <= BOUND


def main():
    args = arguments()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        models = args.model or exported(args, pathlib.Path(folder))
        verdicts = [check(args, path) for path in models]
    print(f"{len(verdicts)} models, {verdicts.count(False)} failed")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
