"""GRPO of TRL on the problems of a pipeline, from the model it starts with; started by ops/bench/word_problems.py.

    trl_grpo.py SETTINGS.json

The settings are an object: `model`, a directory; `problems`, a list of objects with `prompt` (as the model reads
it) and `answer`; `out`, where the trained model goes; `steps`, `prompts_per_step`, `group_size`, `max_tokens`,
`lr`, `seed`, `autocast`, `threads`; `aha`, the program whose verifiers score, so that both are rewarded by the
same rules; and `rewards`, a list of a kind and a weight each. Prints a JSON object per step: its seconds and the
mean reward.
"""

import json
import pathlib
import subprocess
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

MICRO_BATCH = 16


def verifier(aha, kind):
    """A reward function of TRL that asks `aha grade`."""

    def score(completions, answer, **_):
        lines = [
            json.dumps({"id": str(number), "gold": gold, "pred": text})
            for number, (text, gold) in enumerate(zip(completions, answer))
        ]
        done = subprocess.run(
            [aha, "grade", "--reward", kind], input="\n".join(lines), stdout=subprocess.PIPE, check=True, text=True
        )
        return [json.loads(line)["score"] for line in done.stdout.splitlines()]

    score.__name__ = kind
    return score


class Steps(TrainerCallback):
    """Takes the time of each step, and its mean reward from what is logged."""

    def __init__(self):
        self.begun = self.seconds = None

    def on_train_begin(self, *args, **kwargs):
        """The first step begins."""
        self.begun = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        """A step ends, and the next begins."""
        now = time.perf_counter()
        self.seconds, self.begun = now - self.begun, now

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Prints the step that has just ended."""
        if "reward" in logs:
            row = {"step": state.global_step, "seconds": self.seconds, "reward": logs["reward"]}
            print(json.dumps(row), flush=True)


def main(settings):
    """Trains, and saves the model with its tokenizer."""
    torch.set_num_threads(settings["threads"])
    rollouts = settings["prompts_per_step"] * settings["group_size"]
    config = GRPOConfig(
        output_dir=settings["out"],
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=rollouts // MICRO_BATCH,
        num_generations=settings["group_size"],
        max_completion_length=settings["max_tokens"],
        max_steps=settings["steps"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        reward_weights=[weight for _, weight in settings["rewards"]],
        bf16=settings["autocast"],
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        model_init_kwargs={"dtype": "float32"},
        seed=settings["seed"],
    )
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    trainer = GRPOTrainer(
        model=settings["model"],
        reward_funcs=[verifier(settings["aha"], kind) for kind, _ in settings["rewards"]],
        args=config,
        train_dataset=Dataset.from_list(settings["problems"]),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.train()
    trainer.save_model(settings["out"])
    tokenizer.save_pretrained(settings["out"])


if __name__ == "__main__":
    main(json.loads(pathlib.Path(sys.argv[1]).read_text()))
