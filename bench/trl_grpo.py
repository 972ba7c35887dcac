"""TRL's side of bench/grpo.py: GRPO with generation by transformers inside the trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from trl_common import Clock, adapters, now, read_job, read_rows, settings, write


def alternating(completions: list[list[dict[str, str]]], **rest: object) -> list[float]:
    """Rewards 0, 1, 0, 1: the work of a step must not depend on how well the model does."""
    return [float(number % 2) for number in range(len(completions))]


class Phases(Clock):
    """The clock, the completion tokens of each step as TRL counts them, and where its time went."""

    def __init__(self, completions: int) -> None:
        super().__init__()
        self.completions = completions
        self.trained: list[float] = []
        self.steps: list[dict[str, float]] = []
        self._spent: dict[str, float] = {}
        self._optimizer = 0.0

    def add(self, phase: str, seconds: float) -> None:
        """Add to a phase of the current step."""
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds

    def timed(self, phase: str, call: Callable[[], Any]) -> Any:
        """The result of a call whose time belongs to a phase."""
        began = now()
        result = call()
        self.add(phase, now() - began)
        return result

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimiser begins."""
        self._optimizer = now()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimiser has ended."""
        self.add("optimizer", now() - self._optimizer)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close the step's account."""
        super().on_step_end(args, state, control, **kwargs)
        self.steps.append(self._spent)
        self._spent = {}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the mean length."""
        if "completions/mean_length" in kwargs["logs"]:
            self.trained.append(kwargs["logs"]["completions/mean_length"] * self.completions)

    def by_phase(self) -> dict[str, list[float]]:
        """Seconds of each step; a training step prepares its inputs first, which is generation and all that follows."""
        names = ("generate", "grade", "score", "optimizer")
        found = {name: [step.get(name, 0.0) for step in self.steps] for name in names}
        whole = ((step["training_step"], step["inputs"]) for step in self.steps)
        return found | {"forward_backward": [step - inputs for step, inputs in whole]}


class Timed(GRPOTrainer):
    """TRL's trainer with a clock at each of its phases."""

    phases: Phases

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        """Inputs, forward and backward of a micro-batch."""
        return self.phases.timed("training_step", lambda: super(Timed, self).training_step(*args, **options))

    def _prepare_inputs(self, *args: Any, **options: Any) -> Any:
        return self.phases.timed("inputs", lambda: super(Timed, self)._prepare_inputs(*args, **options))

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        return self.phases.timed("generate", lambda: super(Timed, self)._generate_single_turn(*args, **options))

    def _calculate_rewards(self, *args: Any, **options: Any) -> Any:
        return self.phases.timed("grade", lambda: super(Timed, self)._calculate_rewards(*args, **options))

    def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
        def call() -> Any:
            return super(Timed, self)._get_per_token_logps_and_entropies(*args, **options)

        return call() if torch.is_grad_enabled() else self.phases.timed("score", call)


def main() -> None:
    """Train and report. No completion may end before its budget, so that both sides write equally many tokens."""
    job = read_job()
    completions = job["batch"] * job["num_generations"]
    micro = min(job["peer_micro"], completions)
    options = settings(job) | {"logging_steps": 1}
    trainer = Timed(
        model=job["model"],
        reward_funcs=alternating,
        args=GRPOConfig(
            **options,
            beta=job["kl_beta"],
            num_generations=job["num_generations"],
            generation_batch_size=completions,
            max_completion_length=job["max_new_tokens"],
            generation_kwargs={"min_new_tokens": job["max_new_tokens"]},
            temperature=1.0,
            shuffle_dataset=False,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=completions // micro,
        ),
        train_dataset=Dataset.from_list(read_rows(job)),
        processing_class=AutoTokenizer.from_pretrained(job["model"], padding_side="left"),
        callbacks=[clock := Phases(completions)],
        **adapters(job),
    )
    trainer.phases = clock
    trainer.train()
    write(job, clock, {"trained": clock.trained, "phases": clock.by_phase()})


if __name__ == "__main__":
    main()
