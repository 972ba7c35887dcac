"""What the peer's scripts share. Runs with the interpreter of the peer's own environment, never with ours."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def read_job() -> dict[str, Any]:
    """The job that the comparison wrote, as JSON in the file named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    return job


def read_rows(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the job, already tokens where the method takes tokens."""
    return [json.loads(line) for line in Path(job["rows"]).read_text().split("\n") if line]


def settings(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments for any of the peer's configs: same optimiser, no logging services, no saving, rows in order."""
    half = job["dtype"] == "bfloat16"
    return {
        "output_dir": str(Path(job["out"]).parent / "trl"),
        "max_steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": job["seed"],
        "use_cpu": not torch.cuda.is_available(),
        "bf16": half and job["peer_weights"] == "float32",  # autocast over fp32 weights; bf16 weights need none
        "model_init_kwargs": {"dtype": job["peer_weights"] if half else "float32"},
        "gradient_checkpointing": job["peer_checkpointing"],
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": job["steps"],
    }


def adapters(job: dict[str, Any]) -> dict[str, Any]:
    """A trainer's further arguments when the job wants low-rank adapters instead of all weights."""
    if "lora" not in job.get("fit", {}):
        return {}
    from peft import LoraConfig

    lora = job["fit"]["lora"]
    return {"peft_config": LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules="all-linear")}


def now() -> float:
    """The time when all that was asked of the card is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """Seconds of each optimiser step, from the end of one to the end of the next, data loading included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start."""
        self._last = now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Note the time since the last step."""
        ended = now()
        self.seconds.append(ended - self._last)
        self._last = ended


class Counts:
    """Per optimiser step: the loss, tokens read (without padding) and tokens trained, summed over micro-batches."""

    def __init__(self, micro_batches: int) -> None:
        self.micro_batches = micro_batches
        self.calls: list[tuple[float, int, int]] = []

    def add(self, loss: torch.Tensor, tokens: int, trained: int) -> None:
        """Note one forward pass."""
        self.calls.append((float(loss.detach()), tokens, trained))

    def by_step(self) -> dict[str, Any]:
        """Sums over the micro-batches of each step."""
        size = self.micro_batches
        steps = [self.calls[start : start + size] for start in range(0, len(self.calls), size)]
        names = ("losses", "tokens", "trained")
        return {name: [sum(call[i] for call in step) for step in steps] for i, name in enumerate(names)}


def write(job: dict[str, Any], clock: Clock, figures: dict[str, Any]) -> None:
    """Hand the figures back to the comparison."""
    if torch.cuda.is_available():
        figures = figures | {"memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    Path(job["out"]).write_text(json.dumps({"seconds": clock.seconds, **figures}))
