"""A GRPO step of TRL: 8 prompts of 64 tokens, 8 completions of 128 tokens each; started by ops/bench/compare.

    trl_bench.py f32|autocast BETA NAME

Two steps are made, the first to warm up. Prints the second one's seconds under NAME, and those of its phases.
"""

import os
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from torch_bench import THREADS, report, tokens

STEPS = 2


class Clock:
    """Adds up the time of some functions."""

    def __init__(self):
        self.seconds = {}

    def around(self, phase, function):
        """The function, timed."""

        def call(*args, **kwargs):
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun

        return call


class Steps(TrainerCallback):
    """Takes the time of each step, and what the clock says of its phases."""

    def __init__(self, clock):
        self.clock, self.begun, self.found = clock, None, []

    def on_train_begin(self, *args, **kwargs):
        """The first step begins."""
        self.begun = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        """A step ends, and the next begins."""
        now = time.perf_counter()
        self.found.append((now - self.begun, dict(self.clock.seconds)))
        self.begun = now
        self.clock.seconds.clear()


def reward(completions, **_):
    """Something that differs between completions."""
    return [float(sum(c.isdigit() for c in text)) for text in completions]


def main(dtype, beta, work):
    """Trains for a few steps."""
    path = os.environ["AHA_BENCH_MODEL"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompts = [tokenizer.decode(row) for row in tokens(8 * 64).view(8, 64)]
    clock = Clock()
    steps = Steps(clock)
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=8,
            num_generations=8,
            max_completion_length=128,
            generation_kwargs={"min_new_tokens": 128},
            beta=float(beta),
            temperature=1.0,
            max_steps=STEPS,
            learning_rate=1e-6,
            bf16=dtype == "autocast",
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            shuffle_dataset=False,
            model_init_kwargs={"dtype": "float32"},
            seed=1,
        )
        trainer = GRPOTrainer(
            model=path,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts * (STEPS + 1)}),
            processing_class=tokenizer,
        )
        trainer.model.generate = clock.around("generate_seconds", trainer.model.generate)
        trainer.add_callback(steps)
        trainer.train()
    seconds, phases = steps.found[-1]
    generate = phases.get("generate_seconds", 0.0)
    report(work, seconds, generate_seconds=generate, train_seconds=seconds - generate)


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    main(*sys.argv[1:])
