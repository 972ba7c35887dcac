"""TRL's side of bench/dpo.py: DPO on pairs that are tokens already, with TRL's concatenated forward."""

from __future__ import annotations

import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from trl_common import Clock, Counts, adapters, read_job, read_rows, settings, write


class Counting(DPOTrainer):
    """TRL's trainer on ready tokens, noting what passes through its loss."""

    counts: Counts
    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Dataset, *rest: object, **options: object) -> Dataset:
        return dataset  # `prompt_ids`, `chosen_ids`, `rejected_ids` are there: both sides read the same tokens

    def _precompute_ref_logps(self, *rest: Any, **options: Any) -> Dataset:
        began = time.perf_counter()
        dataset = super()._precompute_ref_logps(*rest, **options)
        self.reference_seconds = time.perf_counter() - began
        return dataset

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        """TRL's loss; a micro-batch weighs as much as it has pairs."""
        tokens, trained = int(inputs["attention_mask"].sum()), int(inputs["completion_mask"].sum())
        loss = super().compute_loss(model, inputs, **options)
        self.counts.add(loss / self.counts.micro_batches, tokens, trained)
        return loss


def main() -> None:
    """Train and report."""
    job = read_job()
    micro = min(job["peer_micro"], job["batch"])
    trainer = Counting(
        model=job["model"],
        args=DPOConfig(
            **settings(job),
            beta=job["beta"],
            max_length=None,
            precompute_ref_log_probs=job["variant"] == "cached",
            precompute_ref_batch_size=micro,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=job["batch"] // micro,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(read_rows(job)),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock := Clock()],
        **adapters(job),
    )
    trainer.counts = Counts(job["batch"] // micro)
    trainer.train()
    write(job, clock, trainer.counts.by_step() | {"reference_seconds": trainer.reference_seconds})


if __name__ == "__main__":
    main()
