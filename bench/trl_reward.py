"""TRL's side of bench/reward.py: a reward model from pairs that are tokens already, answers padded side by side."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from trl_common import Clock, Counts, adapters, read_job, read_rows, settings, write


class Counting(RewardTrainer):
    """TRL's trainer, noting what passes through its loss."""

    counts: Counts

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """TRL's loss; a micro-batch weighs as much as it has pairs."""
        tokens = int(inputs["attention_mask"].sum())
        loss = super().compute_loss(model, inputs, **options)
        self.counts.add(loss / self.counts.micro_batches, tokens, 0)
        return loss


def main() -> None:
    """Train and report; tokens of answers are counted in the rows, for the trainer sees whole conversations."""
    job = read_job()
    micro, rows = min(job["peer_micro"], job["batch"]), read_rows(job)
    sides = ("chosen_ids", "rejected_ids")
    trainer = Counting(
        model=job["model"],
        args=RewardConfig(
            **settings(job),
            max_length=None,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=job["batch"] // micro,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list([{side: row["prompt_ids"] + row[side] for side in sides} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock := Clock()],
        **adapters(job),
    )
    trainer.counts = Counts(job["batch"] // micro)
    trainer.train()
    answers = [sum(len(row[side]) for side in sides) for row in rows]
    starts = range(0, job["steps"] * job["batch"], job["batch"])
    figures = trainer.counts.by_step() | {"trained": [sum(answers[i : i + job["batch"]]) for i in starts]}
    write(job, clock, figures)


if __name__ == "__main__":
    main()
