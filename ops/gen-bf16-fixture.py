#!/usr/bin/env python3
"""Writes crates/aha-model/tests/fixtures/torch_bf16.json: what PyTorch computes in bf16 for our fixtures.

Set up as `check-export.py` says, and export the real model, which is left out where --smollm2 isn't given:

    aha export --model "$(ops/fetch-smollm2)" --out DIR
    ~/.cache/aha/venv-transformers/bin/python ops/gen-bf16-fixture.py --smollm2 DIR

For each model, the sequences of its fixture go through transformers with weights and activations in bf16
(`dtype=torch.bfloat16`, as it loads checkpoints that are stored so). Kept are the log-probs of all tokens from the
second on, from the log-softmax in f32 of the bf16 logits; and, for the tiny models, how far the gradient of each
weight is from the f32 one, as a share of that one's L2 norm. Beside them is `moved`: the same log-probs after
`model.to(torch.bfloat16)`, which rounds the frequencies of RoPE as well. Fails when transformers in f32 is not the
fixture's. Exit code: 0 when written, 1 when f32 differs, 2 when something is missing.
"""

import argparse
import json
import os
import pathlib
import sys

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "crates/aha-model/tests/fixtures"
TINY = ("tiny_llama", "tiny_llama3rope", "tiny_qwen2", "tiny_qwen3")
# Two orders of summation in f32 are a few 1e-6 apart in the tiny models, a few 1e-5 in the real one.
F32_BOUND = 1e-4
GRADIENT_KEY = "len64"


def fail(message, hint, code=2):
    """Says what can't be done, and what to do about it."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    sys.exit(code)


try:
    import torch
    import transformers
    from safetensors.torch import load_file
except (ImportError, OSError, ValueError) as error:  # torch raises the latter two without its libraries.
    fail(error, "pip install torch transformers")


def load(path, dtype):
    """A model with weights and activations of that type."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def log_probs(model, ids):
    """Log-probs of the tokens from the second on."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    logps = torch.log_softmax(logits.float(), -1)
    return [logps[i, ids[i + 1]].item() for i in range(len(ids) - 1)]


def distances(a, b):
    """Mean, 99th percentile and maximum of the distances between log-probs."""
    values = torch.tensor([abs(x - y) for x, y in zip(a, b, strict=True)], dtype=torch.float64)
    return {"mean": values.mean().item(), "p99": values.quantile(0.99).item(), "max": values.max().item()}


def gradient_distances(model, ids, reference):
    """Each weight's distance from the gradient of the mean loss in f32, as a share of its norm."""
    tokens = torch.tensor([ids])
    logits = model(tokens, use_cache=False).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits.float(), tokens[0, 1:]).backward()
    shares = {}
    for name, weight in model.named_parameters():
        want = reference[name].double()
        shares[name] = ((weight.grad.double() - want).norm() / want.norm()).item()
    return shares


def measure(name, path, sequences):
    """The entry of one model."""
    wide, loaded = load(path, torch.float32), load(path, torch.bfloat16)
    moved = load(path, torch.float32).to(torch.bfloat16)
    entry = {"sequences": {}}
    kept = {"f32": [], "bf16": [], "moved": []}
    for key, sequence in sequences.items():
        ids, reference = sequence["ids"], sequence["next_logprobs_f32"]
        if len(ids) < 2:
            continue
        off = distances(log_probs(wide, ids), reference)["max"]
        if not off <= F32_BOUND:
            fail(f"{name} {key}: f32 is {off:.2e} from the fixture", "is it the model of the fixture?", 1)
        rows = {"bf16": log_probs(loaded, ids), "moved": log_probs(moved, ids)}
        entry["sequences"][key] = rows
        for kind, values in [("f32", reference), *rows.items()]:
            kept[kind] += values
    for kind in ("bf16", "moved"):
        shown = ", ".join(f"{k} {v:.2e}" for k, v in distances(kept[kind], kept["f32"]).items())
        print(f"{name} {kind}, {len(kept['f32'])} log-probs: {shown}")
    if name in TINY:
        reference = load_file(path / f"lm_grads_{GRADIENT_KEY}.safetensors")
        shares = gradient_distances(loaded, sequences[GRADIENT_KEY]["ids"], reference)
        entry["lm_grad_distances"] = {GRADIENT_KEY: shares}
        print(f"{name} gradients, {len(shares)} weights: max {max(shares.values()):.2e}")
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smollm2", type=pathlib.Path, help="SmolLM2-135M-Instruct as `aha export` wrote it")
    parser.add_argument("--out", type=pathlib.Path, default=FIXTURES / "torch_bf16.json", help="default: %(default)s")
    args = parser.parse_args()
    out = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    torch.set_num_threads(os.cpu_count() or 1)
    out["made_with"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text(),
    }
    for name in TINY:
        fixture = json.loads((FIXTURES / name / "fixture.json").read_text())
        out["models"][name] = measure(name, FIXTURES / name, fixture["sequences"])
    if args.smollm2:
        fixture = json.loads((FIXTURES / "smollm2_135m.json").read_text())
        out["models"]["smollm2_135m"] = measure("smollm2_135m", args.smollm2, fixture["sequences"])
    args.out.write_text(json.dumps(out) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
