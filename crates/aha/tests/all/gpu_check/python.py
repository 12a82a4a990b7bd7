#!/usr/bin/env python3
"""A Python with torch, for the test of ops/gpu-check: says what ops/bench/gpu/peers.py would."""

import json
import sys


def say(kind, name, **figures):
    print(json.dumps({"kind": kind, "name": name, "figures": figures}))


part = sys.argv[-1]
if part == "attention":
    say(part, "backward/1x4096, 12/2 heads of 128", gflop_per_second=3.2e5)
if part == "train":
    say(part, "qwen2.5-1.5b 1x4096, autocast", tokens_per_second=4e4, peak_device_bytes=70 << 30)
if part == "grpo":
    name = "8x16, 64+128, transformers and torch, autocast"
    say(part, name, seconds_median=6.0, tokens_per_second=3e3, peak_device_bytes=20 << 30)
if part == "trl":
    sys.exit(3)
