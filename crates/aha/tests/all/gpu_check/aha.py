#!/usr/bin/env python3
"""What `aha` says on a machine with a GPU, for the test of ops/gpu-check: one part of the checks crashes, one hangs,
one has a failing case."""

import json
import os
import signal
import sys
import time

FACTS = {
    "cuda_version": "13.0",
    "compiler_version": "13.0",
    "compiler_error": None,
    "products_error": None,
    "devices": [
        {"name": "NVIDIA H200", "compute_capability": "9.0", "multiprocessor_count": 132, "memory_bytes": 150 << 30}
    ],
}
ARGS = sys.argv[1:]


def say(value):
    print(json.dumps(value), flush=True)


def case(part, name, passed, figure, what="of the bound"):
    say({"part": part, "name": name, "passed": passed, "figure": figure, "bound": 1.0, "what": what, "seconds": 0.1})


def value_of(flag):
    return ARGS[ARGS.index(flag) + 1]


def bench(kind):
    rows, model = [], {"name": "qwen2.5-1.5b"}
    if kind == "peak":
        rows.append(("NVIDIA H200", {"bf16_gflop_per_second": 7.8e5, "copy_gb_per_second": 4300.0}))
    if kind == "attention":
        figures = {"gflop_per_second": 3e5, "peak_share": 0.4, "peak_device_bytes": 1 << 30}
        rows.append(("backward/1x4096, 12/2 heads of 128", figures))
    if kind == "train":
        speed = {"tokens_per_second": 5e4, "gflop_per_second": 5e5, "peak_share": 0.6, "peak_device_bytes": 60 << 30}
        rows.append(("1x4096", speed))
        model = {"name": value_of("--shape-of")}
    if kind == "decode":
        model = {"name": "qwen2.5-0.5b"}
        for count, share, speed in ((1, 0.5, 600.0), (256, 0.2, 40000.0)):
            rows.append((f"{count}x1, 64+128", {"decode_tokens_per_second": speed, "read_share_with_cache": share}))
    if kind == "grpo":
        model = {"name": "qwen2.5-0.5b"}
        times = {"seconds_median": 1.0, "generate_seconds": 0.6, "train_seconds": 0.4, "peak_device_bytes": 10 << 30}
        rows.append(("8x16, 64+128, no KL", times))
    if kind == "matmul":
        print("error: out of memory on the device", file=sys.stderr)
        sys.exit(1)
    results = [{"kind": kind, "name": name, "threads": 1, "figures": figures} for name, figures in rows]
    say({"version": "0", "machine": {}, "model": model, "results": results})


def check(part):
    if part == "models":
        case(part, "llama, f32", True, 0.5)
        os.kill(os.getpid(), signal.SIGSEGV)
    if part == "determinism":
        case(part, "f32: a training step twice", True, 0.0)
        time.sleep(600)
    if part == "paths":
        case(part, "qwen2, bf16: sampler and learner", True, 0.0, "nats at most; 0 of 42 tokens have other bits")
    else:
        case(part, "one", part != "grpo", 0.25 if part != "grpo" else 2.0)
    say({"summary": "done", "cases": 1, "failed": int(part == "grpo")})
    sys.exit(int(part == "grpo"))


if ARGS[0] == "doctor" and "--check" in ARGS:
    check(value_of("--parts"))
elif ARGS[0] == "doctor":
    say({"checks": [{"name": "cuda", "found": "a GPU", "facts": FACTS}]})
elif ARGS[:2] == ["run", "--help"]:
    print("--device <DEVICE>")
elif ARGS[0] == "run":
    os.makedirs(value_of("--dir"))
elif ARGS[0] == "query":
    off = 1e-5 if "cuda" in value_of("--run") else 0.0
    say([{"stage": "zero", "step": 1, "name": "loss", "value": 0.5 + off}])
elif ARGS[0] == "bench":
    bench(ARGS[1])
