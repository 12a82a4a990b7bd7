"""PyTorch and transformers at what `aha bench` measures; started by ops/bench/compare.

    torch_bench.py train|logprob f32|bf16|autocast 8x256
    torch_bench.py decode|matmul|start f32|bf16

Prints a JSON object per piece of work, after one run to warm up and one that counts.
"""

import json
import os
import resource
import sys
import time

import torch

THREADS = int(os.environ["OMP_NUM_THREADS"])
# Data types of weights; with autocast they are f32.
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "autocast": torch.float32}
# Name, rows, inputs, outputs: those of `aha bench matmul`.
SHAPES = (
    ("attention_out", 2048, 576, 576),
    ("ffn_up", 2048, 576, 1536),
    ("ffn_down", 2048, 1536, 576),
    ("square", 2048, 2048, 2048),
    ("head", 2048, 576, 49152),
    ("head_chunk", 256, 576, 49152),
    ("quick_out", 512, 96, 96),
    ("quick_up", 512, 96, 288),
    ("quick_batch", 16000, 96, 288),
    ("ffn_up_64", 64, 576, 1536),
    ("ffn_up_8", 8, 576, 1536),
    ("ffn_up_4", 4, 576, 1536),
    ("ffn_up_1", 1, 576, 1536),
    ("head_64", 64, 576, 49152),
    ("head_8", 8, 576, 49152),
    ("head_1", 1, 576, 49152),
    ("quick_1", 1, 96, 288),
)
DECODE_ROWS_MAX = 64
MATMUL_S = 0.5


def report(work, value, **more):
    """Prints what was found out."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"work": work, "value": value, "peak_rss_bytes": peak, **more}), flush=True)


def timed(run):
    """Seconds of a run, after one that doesn't count."""
    run()
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def tokens(count):
    """Tokens of a text that ships with the repository, from its beginning again where it is too short."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.environ["AHA_BENCH_MODEL"])
    with open(os.environ["AHA_BENCH_TEXT"], encoding="utf-8") as file:
        ids = tokenizer(file.read()).input_ids
    while len(ids) < count:
        ids = ids + ids
    return torch.tensor(ids[:count])


def load(dtype):
    """The model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(os.environ["AHA_BENCH_MODEL"], dtype=DTYPES[dtype])


def train(dtype, shape):
    """A step of AdamW on the mean negative log-prob of every next token."""
    model = load(dtype).train()
    count, length = map(int, shape.split("x"))
    ids = tokens(count * length).view(count, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    report(shape, ids.numel() / timed(step))


def logprob(dtype, shape):
    """The log-prob of every next token."""
    model = load(dtype).eval()
    count, length = map(int, shape.split("x"))
    ids = tokens(count * length).view(count, length)

    @torch.no_grad()
    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])

    report(shape, ids.numel() / timed(run))


def decode(dtype):
    """Eight completions of eight prompts at temperature 1, all of them as long as asked for; and a single one."""
    model = load(dtype).eval()
    prompts = tokens(8 * 64).view(8, 64).repeat_interleave(8, 0)
    for work, ids in (("64 sequences", prompts), ("1 sequence", prompts[:1])):
        settings = {"max_new_tokens": 128, "min_new_tokens": 128, "do_sample": True, "temperature": 1.0}
        settings.update(top_k=0, top_p=1.0, pad_token_id=2, attention_mask=torch.ones_like(ids))
        seconds = timed(lambda: model.generate(ids, **settings))
        report(work, ids.shape[0] * 128 / seconds)


def matmul(dtype):
    """Products with a weight as a linear layer stores it, and both of its gradients."""
    for name, rows, inputs, outputs in SHAPES:
        x = torch.randn(rows, inputs).to(DTYPES[dtype])
        w = torch.randn(outputs, inputs).to(DTYPES[dtype])
        dy = torch.randn(rows, outputs).to(DTYPES[dtype])
        passes = {"forward": lambda: torch.nn.functional.linear(x, w)}
        if rows > DECODE_ROWS_MAX:
            passes["backward_input"] = lambda: dy @ w
            passes["backward_weight"] = lambda: dy.t() @ x
        for kind, run in passes.items():
            run()
            best, begun = float("inf"), time.perf_counter()
            while time.perf_counter() - begun < MATMUL_S:
                start = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - start)
            report(f"{kind}/{name} {rows}x{inputs}x{outputs}", 2 * rows * inputs * outputs / best / 1e9)


def start(dtype):
    """Loads the model and samples one token; compare takes the time of the whole process."""
    load(dtype).eval().generate(tokens(4).view(1, 4), max_new_tokens=1, do_sample=True, pad_token_id=2)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    torch.manual_seed(1)
    {"train": train, "logprob": logprob, "decode": decode, "matmul": matmul, "start": start}[sys.argv[1]](*sys.argv[2:])
