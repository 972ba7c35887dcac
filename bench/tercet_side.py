"""Tercet's side of the comparisons: the stages' own steps and loop, on the job's rows in the job's order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from tercet.device.mesh import mesh
from tercet.models.chat import Chat
from tercet.models.folder import load_tokenizer
from tercet.models.forest import Forest, Leaf, Tree
from tercet.recipe import DPO, RLVR, SFT, Base, Placement, Recipe
from tercet.rows import Row, messages_from
from tercet.store import Context
from tercet.track import Tracker
from tercet.train import rollout
from tercet.train.batch import Step, batches
from tercet.train.export import open_policy
from tercet.train.loop import fit, start
from tercet.train.preference import preference_loss, reference_logps
from tercet.train.rlvr import grpo_loss
from tercet.train.sft import sft_loss

Job = dict[str, Any]


class Notes:
    """Stands where the tracker stands and keeps what the loop logs."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def log(self, step: int, **figures: float) -> None:
        """Keep a step's figures."""
        self.steps.append(figures)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Nobody watches."""

    def column(self, name: str) -> list[float]:
        """One figure of every step."""
        return [step[name] for step in self.steps]


def sft(file: Path) -> None:
    """Supervised finetuning."""
    job, rows, notes, ctx = prepare(file)
    trees = [Tree([], [Leaf(row["token_ids"], row["mask"])]) for row in rows]
    spec = SFT(model="base", rows="rows", max_tokens=job["max_tokens"], **common(job))
    with mesh() as ranks:
        state = start(open_policy(Path(job["model"])), spec, ranks, ctx)
        parts = (trees[k * spec.batch : (k + 1) * spec.batch] for k in range(job["steps"]))
        steps = (Step(batches(part, ctx.recipe.placement.micro_tokens, ranks)) for part in parts)
        fit(state, steps, partial(sft_loss, reduction="token_mean"), spec, ctx, total=job["steps"])
    write(job, notes)


def dpo(file: Path) -> None:
    """Preference tuning; the reference pass is counted in."""
    job, rows, notes, ctx = prepare(file)
    trees = [pair(row) for row in rows]
    spec = DPO(model="base", pairs="pairs", loss="dpo", beta=job["beta"], max_tokens=job["max_tokens"], **common(job))
    with mesh() as ranks:
        began = time.perf_counter()
        frozen = open_policy(Path(job["model"]), getattr(torch, spec.dtype))
        reference = reference_logps(frozen, trees, ranks)
        seconds = time.perf_counter() - began
        del frozen
        state = start(open_policy(Path(job["model"])), spec, ranks, ctx)

        def steps() -> Iterator[Step]:
            for first in range(0, job["steps"] * spec.batch, spec.batch):

                def values(items: list[int], forest: Forest, first: int = first) -> dict[str, torch.Tensor]:
                    return {"reference_L": reference[[first + i for i in items]].reshape(-1)}

                part = trees[first : first + spec.batch]
                yield Step(batches(part, ctx.recipe.placement.micro_tokens, ranks, values))

        fit(state, steps(), partial(preference_loss, spec=spec), spec, ctx, total=job["steps"])
    write(job, notes, reference_seconds=seconds)


def grpo(file: Path) -> None:
    """Rollouts and updates."""
    job, raw, notes, ctx = prepare(file)
    rows = [Row(str(i), messages_from(r["prompt"]), verifier="gsm8k@1", truth=r["truth"]) for i, r in enumerate(raw)]
    names = ("samples", "max_new_tokens", "kl_beta")
    spec = RLVR(model="base", prompts="rows", **{name: job[name] for name in names}, **common(job))
    source, dtype = Path(job["model"]), getattr(torch, spec.dtype)
    rollout.set_advantages = partial(alternating, learn=rollout.set_advantages)
    with mesh() as ranks:
        state = start(open_policy(source), spec, ranks, ctx)
        reference = open_policy(source, dtype).requires_grad_(False) if spec.kl_beta > 0 else None
        placement = ctx.recipe.placement
        writer = rollout.Writer(state.trainable, source, Chat(load_tokenizer(source)), placement.gen_rows)
        ledger = rollout.Ledger(ctx.work / "rollouts.jsonl", 0, ranks)
        steps = rollout.rounds(rows, writer, reference, ledger, spec, ctx, first=0)
        fit(state, steps, partial(grpo_loss, spec=spec), spec, ctx, total=job["steps"])
    write(job, notes)


def alternating(groups: list[rollout.Group], spec: RLVR, learn: Any) -> list[rollout.Group]:
    """Rewards 0, 1, 0, 1 on both sides: a group of equal rewards would be skipped here and computed there."""
    for group in groups:
        for number, one in enumerate(group.samples):
            one.reward = float(number % 2)
    return learn(groups, spec)


def prepare(file: Path) -> tuple[Job, list[dict[str, Any]], Notes, Context]:
    """The job, its rows, and a context without a store."""
    job: Job = json.loads(file.read_text())
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().split("\n") if line]
    placement = Placement(checkpoint_seconds=1e9, micro_tokens=job["micro_tokens"])
    recipe = Recipe(name="bench", base=Base(model=job["model"]), stage={}, placement=placement)
    notes = Notes()
    work = file.parent / "work"
    work.mkdir(exist_ok=True)
    return job, rows, notes, Context("bench", job["seed"], recipe, work, cast(Tracker, notes), {}, cast(Any, None))


def common(job: Job) -> dict[str, Any]:
    """Settings of any training stage; the peer has the same."""
    names = ("learning_rate", "batch", "steps", "dtype")
    return {name: job[name] for name in names} | {"schedule": "constant", "warmup": 0.0, "clip": 1.0}


def pair(row: dict[str, Any]) -> Tree:
    """A prompt with its two answers."""
    leaves = [Leaf(row[side], [True] * len(row[side])) for side in ("chosen_ids", "rejected_ids")]
    return Tree(row["prompt_ids"], leaves)


def write(job: Job, notes: Notes, **more: float) -> None:
    """Hand the figures back to the comparison."""
    figures = {"seconds": notes.column("seconds"), "losses": notes.column("loss"), **more}
    figures["trained"] = notes.column("useful_tokens")
    figures["tokens"] = notes.column("tokens")
    Path(job["out"]).write_text(json.dumps(figures))
