"""TRL's side of bench/sft.py: SFT on rows that are tokens already, padded or packed."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_common import Clock, Counts, read_job, read_rows, settings, write


class Counting(SFTTrainer):
    """TRL's trainer, noting what passes through its loss."""

    counts: Counts

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """TRL's loss."""
        labels = inputs["labels"]
        tokens = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else labels.numel()
        loss = super().compute_loss(model, inputs, **options)
        self.counts.add(loss, tokens, int((labels != -100).sum()))
        return loss


def main() -> None:
    """Train and report."""
    job = read_job()
    rows = [
        {
            "input_ids": row["token_ids"],
            "labels": [t if on else -100 for t, on in zip(row["token_ids"], row["mask"], strict=True)],
        }
        for row in read_rows(job)
    ]
    packed = job["variant"] == "packed"
    micro = 1 if packed else min(job["peer_micro"], job["batch"])
    tokens_per_step = job["batch"] * sum(len(row["input_ids"]) for row in rows) / len(rows)
    micro_batches = max(1, round(tokens_per_step / job["max_length"])) if packed else job["batch"] // micro
    trainer = Counting(
        model=job["model"],
        args=SFTConfig(
            **settings(job),
            packing=packed,
            max_length=job["max_length"],
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=micro_batches,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock := Clock()],
    )
    trainer.counts = Counts(micro_batches)
    trainer.train()
    write(job, clock, trainer.counts.by_step())


if __name__ == "__main__":
    main()
