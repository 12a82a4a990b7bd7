"""PyTorch and transformers at what `aha bench --device cuda:0` measures; started by ops/gpu-check.

    peers.py matmul|attention|train|decode|grpo|trl [--tiny] [--device cuda|cpu]

Prints a JSON object per piece of work: kind, name, figures. Models have random weights in the shapes of Qwen2.5-0.5B
and 1.5B, text is random tokens. A figure is the median of a few runs after one that doesn't count; the device is waited
for before the clock is read. `--tiny` takes small shapes, for trying the script out on a processor.

Training is measured twice. `bf16` has weights, gradients and moments in bf16, which is the fastest that PyTorch does
and loses small updates. `autocast` has them in f32, as `aha` has them, and multiplies in bf16.
"""

import argparse
import contextlib
import functools
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

# Vocabulary, width, width of the MLP, layers, heads, key heads.
MODELS = {
    "qwen2.5-0.5b": (151936, 896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": (151936, 1536, 8960, 28, 12, 2),
    "tiny": (512, 64, 96, 2, 2, 1),
}
# Name, rows, inputs, outputs: those of `aha bench matmul --device`.
PRODUCTS = (
    ("square", 8192, 8192, 8192),
    ("0.5b_attention_out", 4096, 896, 896),
    ("0.5b_ffn_up", 4096, 896, 4864),
    ("0.5b_ffn_down", 4096, 4864, 896),
    ("1.5b_attention_out", 4096, 1536, 1536),
    ("1.5b_ffn_up", 4096, 1536, 8960),
    ("1.5b_ffn_down", 4096, 8960, 1536),
    ("1.5b_head", 512, 1536, 151936),
    ("0.5b_ffn_up_1", 1, 896, 4864),
    ("0.5b_ffn_up_64", 64, 896, 4864),
    ("0.5b_head_1", 1, 896, 151936),
    ("0.5b_head_64", 64, 896, 151936),
    ("1.5b_ffn_up_1", 1, 1536, 8960),
    ("1.5b_ffn_up_64", 64, 1536, 8960),
)
DECODE_ROWS_MAX = 64
# Sequences, tokens of each, heads, heads of keys, width of a head: those of `aha bench attention --device`.
ATTENTION = (
    (1, 4096, 14, 2, 64),
    (16, 256, 14, 2, 64),
    (1, 4096, 12, 2, 128),
    (4, 1024, 12, 2, 128),
    (1, 16384, 12, 2, 128),
)
# Sequences decoded together, tokens of a prompt and new ones.
BATCHES, PROMPT_TOKENS, NEW_TOKENS = (1, 16, 64, 256), 64, 128
# Prompts, completions of each, tokens of a prompt, new tokens, sequences of a micro-batch.
GRPO = (8, 16, 64, 128, 32)
RUNS = 3


class Place:
    """A device, and how to wait for it."""

    def __init__(self, name):
        self.name = name
        self.is_cuda = name == "cuda"

    def wait(self):
        if self.is_cuda:
            torch.cuda.synchronize()

    def peak_bytes(self):
        return torch.cuda.max_memory_allocated() if self.is_cuda else None

    def forget(self):
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def report(kind, name, **figures):
    """Prints what was found out."""
    figures = {key: value for key, value in figures.items() if value is not None}
    print(json.dumps({"kind": kind, "name": name, "figures": figures}), flush=True)


def seconds_of(place, run, runs=RUNS, calls=1):
    """The median of the seconds of a call."""
    run()
    place.wait()
    found = []
    for _ in range(runs):
        begun = time.perf_counter()
        for _ in range(calls):
            run()
        place.wait()
        found.append((time.perf_counter() - begun) / calls)
    return statistics.median(found)


def products(place, tiny):
    dtype = torch.bfloat16
    for name, rows, inner, outer in PRODUCTS:
        if tiny:
            rows, inner, outer = min(rows, 8), 32, 48
        x = torch.rand(rows, inner, device=place.name).sub(0.5).to(dtype)
        w = torch.rand(outer, inner, device=place.name).sub(0.5).to(dtype)
        dy = torch.rand(rows, outer, device=place.name).sub(0.5).to(dtype)
        passes = {"forward": lambda: F.linear(x, w)}
        if rows > DECODE_ROWS_MAX:
            passes["backward_input"] = lambda: dy @ w
            passes["backward_weight"] = lambda: dy.t() @ x
        for which, run in passes.items():
            seconds = seconds_of(place, run, calls=20 if place.is_cuda else 1)
            speed = 2 * rows * inner * outer / seconds / 1e9
            report("matmul", f"{which}/{name} {rows}x{inner}x{outer}", seconds_min=seconds, gflop_per_second=speed)


def attention(place, tiny):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for count, length, heads, kv_heads, width in ATTENTION:
        if tiny:
            count, length = 1, 32
        shape = lambda h: (count, h, length, width)
        q, k, v = (
            torch.rand(shape(h), device=place.name).sub(0.5).to(torch.bfloat16).requires_grad_()
            for h in (heads, kv_heads, kv_heads)
        )
        flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if place.is_cuda else contextlib.nullcontext()

        def forward(grouped=True):
            own = (k, v) if grouped else (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
            return F.scaled_dot_product_attention(q, *own, is_causal=True, enable_gqa=grouped)

        with flash:
            try:
                forward()
            except RuntimeError:
                # A version whose flash kernel takes no grouped heads is given each head of keys several times.
                forward = functools.partial(forward, False)
            calls = 10 if place.is_cuda else 1
            with torch.no_grad():
                ahead = seconds_of(place, forward, calls=calls)
            out = forward()
            dout = torch.rand_like(out)
            back = seconds_of(
                place, lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), calls=calls
            )
        pairs = count * length * (length + 1) / 2
        for which, terms, seconds in (("forward", 2, ahead), ("backward", 5, back)):
            flop = terms * 2 * pairs * heads * width
            name = f"{which}/{count}x{length}, {heads}/{kv_heads} heads of {width}"
            report("attention", name, seconds_min=seconds, gflop_per_second=flop / seconds / 1e9)


def config(name, tiny):
    from transformers import Qwen2Config

    vocab, hidden, inner, layers, heads, kv_heads = MODELS["tiny" if tiny else name]
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32768,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        use_cache=True,
    )


def model(place, name, tiny, dtype):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(place.name):
            return AutoModelForCausalLM.from_config(config(name, tiny), attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)


def multiplied(net):
    """Parameters that take part in a product for each token; the embedding is the head."""
    return sum(p.numel() for p in net.parameters())


def train_flop(net, count, length):
    """6 per token and parameter, and three times those of causal attention forward, as `aha bench train` has it."""
    c = net.config
    width = c.num_hidden_layers * c.hidden_size
    pairs = count * length * (length + 1) / 2
    return 6 * multiplied(net) * count * length + 3 * 4 * width * pairs


def stepper(net, mode):
    """An optimizer, and what its products are computed in."""
    fused = next(net.parameters()).is_cuda
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=0.01, fused=fused)
    device = next(net.parameters()).device.type
    return adamw, lambda: torch.autocast(device, torch.bfloat16, enabled=mode == "autocast")


def train(place, tiny):
    shapes = ((1, 32),) if tiny else ((1, 4096), (4, 1024))
    for name in ("qwen2.5-0.5b", "qwen2.5-1.5b"):
        for mode in ("bf16", "autocast"):
            place.forget()
            net = model(place, name, tiny, torch.bfloat16 if mode == "bf16" else torch.float32).train()
            adamw, cast = stepper(net, mode)
            for count, length in shapes:
                ids = torch.randint(net.config.vocab_size, (count, length), device=place.name)

                def step():
                    with cast():
                        loss = net(input_ids=ids, labels=ids, use_cache=False).loss
                    loss.backward()
                    adamw.step()
                    adamw.zero_grad(set_to_none=True)
                    return loss.item()

                seconds = seconds_of(place, step)
                report(
                    "train",
                    f"{name} {count}x{length}, {mode}",
                    tokens_per_second=count * length / seconds,
                    gflop_per_second=train_flop(net, count, length) / seconds / 1e9,
                    seconds_median=seconds,
                    peak_device_bytes=place.peak_bytes(),
                )
            del net, adamw, cast, step


@torch.no_grad()
def generate(net, ids, new_tokens):
    """Completions at temperature 1, none of which ends by itself."""
    net.eval()
    out = net.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out


def decode(place, tiny):
    prompt, new = (8, 4) if tiny else (PROMPT_TOKENS, NEW_TOKENS)
    place.forget()
    net = model(place, "qwen2.5-0.5b", tiny, torch.bfloat16)
    for count in (1, 2) if tiny else BATCHES:
        ids = torch.randint(1, net.config.vocab_size, (count, prompt), device=place.name)
        first = seconds_of(place, lambda: generate(net, ids, 1), runs=1)
        whole = seconds_of(place, lambda: generate(net, ids, new), runs=1)
        report(
            "decode",
            f"{count}x1, {prompt}+{new}",
            tokens_per_second=count * new / whole,
            decode_tokens_per_second=count * (new - 1) / (whole - first),
            seconds_median=whole,
            peak_device_bytes=place.peak_bytes(),
        )


def advantages(rewards, samples):
    groups = rewards.view(-1, samples)
    spread = groups.std(1, keepdim=True)
    return ((groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)).view(-1)


def grpo(place, tiny):
    prompts, samples, prompt, new, rows = (2, 2, 8, 4, 2) if tiny else GRPO
    for mode in ("bf16", "autocast"):
        place.forget()
        net = model(place, "qwen2.5-0.5b", tiny, torch.bfloat16 if mode == "bf16" else torch.float32)
        adamw, cast = stepper(net, mode)
        questions = torch.randint(1, net.config.vocab_size, (prompts, prompt), device=place.name)
        times = []

        def step():
            begun = time.perf_counter()
            with cast():
                texts = generate(net, questions.repeat_interleave(samples, 0), new)
            place.wait()
            drawn = time.perf_counter()
            net.train()
            rewards = (texts[:, prompt:] % 2 == 0).float().mean(1)
            values = advantages(rewards, samples)
            # As many terms as there are completions' tokens; one step, so that all ratios are 1.
            for start in range(0, len(texts), rows):
                part, weight = texts[start : start + rows], values[start : start + rows]
                with cast():
                    logits = net(input_ids=part, use_cache=False, logits_to_keep=new + 1).logits[:, :-1]
                picked = part[:, prompt:].unsqueeze(-1)
                logps = torch.log_softmax(logits.float(), -1).gather(-1, picked).squeeze(-1)
                ratio = torch.exp(logps - logps.detach())
                clipped = ratio.clamp(0.8, 1.2)
                terms = torch.minimum(ratio * weight[:, None], clipped * weight[:, None])
                (-terms.sum() / (len(texts) * new)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            place.wait()
            times.append((drawn - begun, time.perf_counter() - drawn))

        for _ in range(3):
            step()
        drawing, learning = (statistics.median(t[i] for t in times[1:]) for i in (0, 1))
        report(
            "grpo",
            f"{prompts}x{samples}, {prompt}+{new}, transformers and torch, {mode}",
            seconds_median=statistics.median(sum(t) for t in times[1:]),
            generate_seconds=drawing,
            train_seconds=learning,
            tokens_per_second=prompts * samples * new / statistics.median(sum(t) for t in times[1:]),
            peak_device_bytes=place.peak_bytes(),
        )
        del net, adamw, cast, step


def trl(place, tiny):
    """The same step by TRL's trainer, with transformers' generate; text of a tokenizer that has a word for each id."""
    import tempfile

    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    prompts, samples, prompt, new, rows = (2, 2, 8, 4, 2) if tiny else GRPO
    place.forget()
    net = model(place, "qwen2.5-0.5b", tiny, torch.float32)
    words = {f"w{i}": i for i in range(net.config.vocab_size)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No token that is ever drawn ends a completion: `min_new_tokens` sees to it.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w0", eos_token="w1", unk_token="w0")
    ids = torch.randint(2, net.config.vocab_size, (prompts, prompt)).tolist()
    steps = 3
    texts = [" ".join(f"w{i}" for i in row) for row in ids]
    clock = {"at": 0.0, "found": []}

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            place.wait()
            clock["at"] = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            place.wait()
            clock["found"].append(time.perf_counter() - clock["at"])

    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=prompts * samples // rows,
            num_generations=samples,
            max_completion_length=new,
            generation_kwargs={"min_new_tokens": new},
            beta=0.0,
            temperature=1.0,
            max_steps=steps,
            learning_rate=1e-6,
            bf16=place.is_cuda,
            use_cpu=not place.is_cuda,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            seed=1,
        )
        reward = lambda completions, **_: [len(set(text.split())) / new for text in completions]
        trainer = GRPOTrainer(
            model=net,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": texts * (steps + 1)}),
            processing_class=tokenizer,
        )
        trainer.add_callback(Clock())
        # What it logs is not what is asked for here.
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
    # Drawing is part of the first of a step's calls, which the callback comes before.
    seconds = statistics.median(clock["found"][1:])
    report(
        "grpo",
        f"{prompts}x{samples}, {prompt}+{new}, TRL",
        seconds_median=seconds,
        tokens_per_second=prompts * samples * new / seconds,
        peak_device_bytes=place.peak_bytes(),
    )


PARTS = {
    "matmul": products,
    "attention": attention,
    "train": train,
    "decode": decode,
    "grpo": grpo,
    "trl": trl,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    args = parser.parse_args()
    if args.part == "trl":
        try:
            import trl as _  # noqa: F401
        except ImportError:
            print("error: TRL is not installed", file=sys.stderr)
            sys.exit(3)
    torch.manual_seed(1)
    PARTS[args.part](Place(args.device), args.tiny)


if __name__ == "__main__":
    main()
