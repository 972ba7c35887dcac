"""TRL's side of bench/grpo.py: GRPO with generation by transformers inside the trainer."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from trl_common import Clock, read_job, read_rows, settings, write


def alternating(completions: list[list[dict[str, str]]], **rest: object) -> list[float]:
    """Rewards 0, 1, 0, 1: the work of a step must not depend on how well the model does."""
    return [float(number % 2) for number in range(len(completions))]


class Lengths(Clock):
    """The clock, and the completion tokens of each step as TRL counts them."""

    def __init__(self, completions: int) -> None:
        super().__init__()
        self.completions = completions
        self.trained: list[float] = []

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the mean length."""
        if "completions/mean_length" in kwargs["logs"]:
            self.trained.append(kwargs["logs"]["completions/mean_length"] * self.completions)


def main() -> None:
    """Train and report."""
    job = read_job()
    completions = job["batch"] * job["samples"]
    micro = min(job["peer_micro"], completions)
    options = settings(job) | {"logging_steps": 1}
    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=alternating,
        args=GRPOConfig(
            **options,
            beta=job["kl_beta"],
            num_generations=job["samples"],
            generation_batch_size=completions,
            max_completion_length=job["max_new_tokens"],
            temperature=1.0,
            shuffle_dataset=False,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=completions // micro,
        ),
        train_dataset=Dataset.from_list(read_rows(job)),
        processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        callbacks=[clock := Lengths(completions)],
    )
    trainer.train()
    write(job, clock, {"trained": clock.trained})


if __name__ == "__main__":
    main()
