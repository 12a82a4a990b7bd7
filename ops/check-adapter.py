#!/usr/bin/env python3
"""Checks that adapters of ours load in peft and give the same log-probs there, and that those of peft load here.

Set up as `check-export.py` says, with peft beside transformers. Then, after `cargo build --release -p aha`:

    ~/.cache/aha/venv-transformers/bin/python ops/check-adapter.py [BASE ADAPTER MERGED] [--aha PROGRAM]

BASE is a model directory, ADAPTER an adapter of it in peft's layout such as `adapters/NAME` of a run directory, and
MERGED the model with it such as `models/NAME`. Without them models of every architecture are made, each is tuned by
stages with `lora`, and what these leave is checked; and peft makes adapters, which `[models]` reads and an `export`
stage writes merged.

Sequences of random tokens from a fixed seed go through `aha logprobs` with the merged model, and through peft with
model and adapter, in f32 on the processor. Prints the largest distance between two log-probs of each adapter, and how
far the adapter moves them. Exit code: 0 within 1e-4, 1 beyond or not a number, 2 when it can't be checked.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

BOUND = 1e-4
SEED = 1
LENGTHS = (2, 17, 64, 120)
ARCHITECTURES = ("llama", "qwen2", "qwen3")

PROBLEMS = "".join(
    json.dumps({"prompt": f"{a}+{b}=", "completion": str(a + b)}) + "\n" for a in range(9) for b in range(9)
)
BASE = """
[run]
seed = 3

[models]
blank = {{ init = "random", architecture = "{architecture}", hidden_size = 64, intermediate_size = 96, layers = 2, \
heads = 4, kv_heads = 2, max_position_embeddings = 128, init_std = 0.1, tokenizer = {{ train = \
"SELECT prompt || completion AS text FROM problems", vocab_size = 300 }} }}

[tables]
problems = "{problems}"

[[stage]]
name = "base"
kind = "sft"
model = "blank"
data = "SELECT prompt, completion FROM problems"
max_steps = 20
optimizer = {{ lr = 1e-3 }}
"""
TUNED = """
[models]
base = "{base}"

[tables]
problems = "{problems}"

[[stage]]
name = "tuned"
kind = "sft"
model = "base"
data = "SELECT prompt, completion FROM problems"
max_steps = 20
optimizer = {{ lr = 1e-2 }}
lora = {lora}
"""
MERGED = """
[models]
both = {{ base = "{base}", adapter = "{adapter}" }}

[[stage]]
name = "merged"
kind = "export"
model = "both"
"""
# Ours.
SETTINGS = (
    "{}",
    '{ rank = 8, alpha = 12.5, targets = ["q_proj", "v_proj"] }',
    '{ rank = 5, alpha = 4, rslora = true, targets = ["o_proj", "gate_proj", "up_proj", "down_proj"] }',
)
# peft's.
CONFIGS = (
    {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    {"r": 4, "lora_alpha": 6, "target_modules": ["k_proj", "down_proj"], "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 2}},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": [1]},
)


def fail(message, hint):
    """Says what can't be done, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(2)


try:
    import peft
    import torch
    import transformers
except (ImportError, OSError, ValueError) as error:  # torch raises the latter two without its libraries.
    fail(error, "pip install torch transformers peft")


def arguments():
    """What was asked for; the program is looked for where cargo puts it."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(__file__).parents[1] / "target")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=pathlib.Path, help="BASE, ADAPTER and MERGED")
    parser.add_argument("--aha", default=target / "release" / "aha", help="the program (default: %(default)s)")
    args = parser.parse_args()
    if len(args.paths) not in (0, 3):
        fail(f"{len(args.paths)} directories", "give BASE, ADAPTER and MERGED, or none of them")
    return args


def run(args, arguments):
    """What the program prints."""
    try:
        command = [str(args.aha), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except OSError as error:
        fail(error, "build it with `cargo build --release -p aha`, or name it with --aha")
    except subprocess.CalledProcessError as error:
        fail(f"aha {arguments[0]} ended with {error.returncode}:\n{error.stderr}", "see what it said")


def pipeline(args, folder, text):
    """Runs a pipeline; its run directory."""
    folder.mkdir()
    file = folder / "pipeline.toml"
    file.write_text(text)
    run(args, ["run", file, "--dir", folder / "run"])
    return folder / "run"


def made(args, folder):
    """Models, adapters and merged models: those of ours, and those of peft."""
    problems = folder / "problems.jsonl"
    problems.write_text(PROBLEMS)
    for architecture in ARCHITECTURES:
        text = BASE.format(architecture=architecture, problems=problems)
        base = pipeline(args, folder / architecture, text) / "models" / "base"
        for i, lora in enumerate(SETTINGS):
            text = TUNED.format(base=base, problems=problems, lora=lora)
            tuned = pipeline(args, folder / f"{architecture}-ours-{i}", text)
            yield f"{architecture}, ours: {lora}", base, tuned / "adapters" / "tuned", tuned / "models" / "tuned"
        for i, config in enumerate(CONFIGS):
            adapter = folder / f"{architecture}-adapter-{i}"
            torch.manual_seed(SEED)
            # Matrices of noise: by default the second ones are zero.
            settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config)
            peft.get_peft_model(loaded(base), settings).save_pretrained(adapter)
            text = MERGED.format(base=base, adapter=adapter)
            merged = pipeline(args, folder / f"{architecture}-peft-{i}", text)
            yield f"{architecture}, peft: {config}", base, adapter, merged / "models" / "merged"


def loaded(path):
    """A model in transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def random_sequences(config):
    """Sequences of random tokens, none longer than the model's positions."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = [min(length, config.max_position_embeddings) for length in LENGTHS]
    return [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def ours(args, path, sequences):
    """Log-probs of each token after the first, by aha, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "ids.json"
        file.write_text(json.dumps(sequences))
        rows = json.loads(run(args, ["logprobs", "--model", path, "--ids", file]))["logprobs"]
    # JSON has no NaN: it is written as null.
    return torch.tensor([float("nan") if value is None else value for row in rows for value in row])


def theirs(model, sequences):
    """The same, by transformers."""
    found = []
    for ids in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        logps = torch.log_softmax(logits.float(), -1)
        found += [logps[i, ids[i + 1]].item() for i in range(len(ids) - 1)]
    return torch.tensor(found)


def check(args, name, base, adapter, merged):
    """Whether the log-probs of a merged model are near enough to those of model and adapter."""
    model = loaded(base)
    sequences = random_sequences(model.config)
    without = theirs(model, sequences)
    wanted = theirs(peft.PeftModel.from_pretrained(model, adapter).eval(), sequences)
    worst = (ours(args, merged, sequences) - wanted).abs().max().item()
    moved = (wanted - without).abs().max().item()
    # An adapter that does nothing would show nothing.
    is_right = worst <= BOUND < moved
    verdict = "ok" if is_right else "FAILED"
    print(f"{name}: largest distance {worst:.2e}, bound {BOUND:.0e}, moved by {moved:.2e}: {verdict}", flush=True)
    return is_right


def main():
    args = arguments()
    transformers.utils.logging.disable_progress_bar()
    versions = f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    print(versions, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        given = [("given", *args.paths)] if args.paths else made(args, pathlib.Path(folder))
        verdicts = [check(args, *adapter) for adapter in given]
    print(f"{len(verdicts)} adapters, {verdicts.count(False)} failed")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
