"""A rollout is a dataset the model writes: sample, grade, compute advantages, emit steps (paper §6, Tülu 3.1).

Shape suffixes: N prompts of a round, G samples of each, L leaves and P predicted tokens of a batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tercet.algos.advantage import group_advantages, zero_variance
from tercet.device.mesh import Mesh, release_memory
from tercet.device.shard import Trainable
from tercet.models.chat import Chat
from tercet.models.forest import Forest, Leaf, Tree
from tercet.models.generate import LocalGenerator
from tercet.models.policy import Policy
from tercet.recipe import RLVR
from tercet.rows import Completion, Row, Sampling
from tercet.store import Context
from tercet.train.batch import Batch, Step, batches, chosen_rows
from tercet.train.export import open_policy
from tercet.verify import Grade, verifier


@dataclass
class Sample:
    """One completion with its verdict. `reward` is what training sees: scaled score, or the no-end-token reward."""

    completion: Completion
    grade: Grade
    reward: float
    advantage: float = 0.0


@dataclass
class Group:
    """The samples of one prompt."""

    row: Row
    prompt_ids: Sequence[int]
    samples: list[Sample]

    def tree(self) -> Tree:
        """The prompt with one leaf per sample, as sampled: text is never tokenised again."""
        leaves = [Leaf(s.completion.token_ids, [True] * len(s.completion.token_ids)) for s in self.samples]
        return Tree(self.prompt_ids, leaves)


class Writer:
    """The generator of a rank. One rank writes with the trainer's own weights; several keep a whole copy each."""

    def __init__(self, trainable: Trainable, source: Path, chat: Chat, rows: int) -> None:
        self.trainable = trainable
        self.copy: Policy | None = None
        if trainable.mesh.size > 1:
            self.copy = open_policy(source, trainable.dtype).to(trainable.mesh.device)
        policy = trainable.module if self.copy is None else self.copy
        self.generator = LocalGenerator(policy, chat, rows=rows)  # type: ignore[arg-type]

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the trainer's weights."""
        if self.copy is None:
            return
        targets = dict(self.copy.named_parameters())
        for name, value in self.trainable.full_state():
            targets[name].copy_(value)


class Ledger:
    """Every sample of the run, appended per round; a resumed run drops what came after its checkpoint."""

    def __init__(self, path: Path, rounds: int, mesh: Mesh) -> None:
        self.path, self.mesh = path, mesh
        if mesh.first and path.is_file():
            kept = [line for line in path.read_text("utf-8").split("\n") if _round(line, rounds)]
            draft = path.with_suffix(".draft")
            draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(draft, path)

    def append(self, records: list[dict[str, Any]]) -> None:
        """Add a round's samples (first rank only)."""
        if not self.mesh.first:
            return
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All records."""
        return [json.loads(line) for line in self.path.read_text("utf-8").split("\n") if line]


def _round(line: str, rounds: int) -> bool:
    try:
        return bool(line) and json.loads(line)["step"] < rounds
    except json.JSONDecodeError:
        return False  # the line a kill cut short


def rounds(  # noqa: PLR0913
    rows: Sequence[Row],
    writer: Writer,
    reference: Policy | None,
    ledger: Ledger,
    spec: RLVR,
    ctx: Context,
    *,
    first: int,
) -> Iterator[Step]:
    """`spec.minibatches` steps per round, from round `first` on."""
    chat, mesh = writer.generator.chat, writer.trainable.mesh
    for number in range(first, spec.steps):
        began = time.monotonic()
        picked = [rows[i] for i in chosen_rows(number, len(rows), spec.batch, ctx.seed)]
        writer.refresh()
        groups = sample(picked, writer.generator, chat, spec, ctx.seed * 100_003 + number, mesh)
        release_memory(mesh.device)
        useful = set_advantages(groups, spec)
        ledger.append([record for group in groups for record in _records(number, group)])
        metrics = watch(groups, useful)
        metrics["seconds_rollout"] = time.monotonic() - began
        parts = [useful[part :: spec.minibatches] for part in range(spec.minibatches)]
        for made in [_batches(part, writer, reference, spec, ctx) for part in parts]:  # all before the first update
            yield Step(made, metrics)
            metrics = {}


def sample(
    rows: Sequence[Row], generator: LocalGenerator, chat: Chat, spec: RLVR, seed: int, mesh: Mesh
) -> list[Group]:
    """G completions of each prompt, graded. Ranks share the prompts; every rank returns all groups."""
    prompts = [chat.prompt_ids(row.prompt) for row in rows]
    sampling = Sampling(spec.max_new_tokens, spec.temperature, n=spec.samples, seed=seed)
    mine = list(range(mesh.rank, len(rows), mesh.size))
    written = generator.write([prompts[i] for i in mine], sampling, streams=mine)
    whole = {i: group for rank in mesh.gather(dict(zip(mine, written, strict=True))) for i, group in rank.items()}
    return [
        Group(row, prompts[i], [_graded(row, completion, spec) for completion in whole[i]])
        for i, row in enumerate(rows)
    ]


def _graded(row: Row, completion: Completion, spec: RLVR) -> Sample:
    """alpha x score; an answer that never ended gets `no_eos_reward` instead, it is not added (paper §6)."""
    grade = verifier(row.verifier)(completion.text, row.truth)
    reward = spec.reward_scale * grade.score if completion.stop == "eos" else spec.no_eos_reward
    return Sample(completion, grade, reward)


def set_advantages(groups: list[Group], spec: RLVR) -> list[Group]:
    """Write advantages into the samples; returns the groups whose rewards differ."""
    rewards_NG = torch.tensor([[s.reward for s in group.samples] for group in groups], dtype=torch.float64)
    advantages = group_advantages(rewards_NG, spec.advantage)
    for group, row in zip(groups, advantages.tolist(), strict=True):
        for one, advantage in zip(group.samples, row, strict=True):
            one.advantage = advantage
    flat = zero_variance(rewards_NG).tolist()
    return [group for group, same in zip(groups, flat, strict=True) if not same]


def watch(groups: list[Group], useful: list[Group]) -> dict[str, float]:
    """Mean reward (all and per verifier), length, truncation, zero-variance share, entropy estimate."""
    samples = [s for group in groups for s in group.samples]
    lengths = [len(s.completion.token_ids) for s in samples]
    logps = [logp for s in samples for logp in s.completion.logps]
    found = {
        "reward": _mean([s.reward for s in samples]),
        "solved": _mean([s.grade.score for s in samples]),
        "length": _mean(lengths),
        "truncated": _mean([s.completion.stop != "eos" for s in samples]),
        "zero_variance": 1.0 - len(useful) / max(1, len(groups)),
        "skipped_groups": float(len(groups) - len(useful)),
        "entropy": -_mean(logps),
        "unparsed": _mean([s.grade.outcome == "unparsed" for s in samples]),
    }
    for name in sorted({group.row.verifier for group in groups}):
        found[f"reward_{name}"] = _mean([s.reward for g in groups if g.row.verifier == name for s in g.samples])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _records(number: int, group: Group) -> list[dict[str, Any]]:
    prompt = group.row.prompt[-1].content
    return [
        {
            "step": number,
            "prompt_id": group.row.id,
            "sample": i,
            "verifier": group.row.verifier,
            "prompt": prompt,
            "text": s.completion.text,
            "answer": s.grade.answer,
            "score": s.grade.score,
            "outcome": s.grade.outcome,
            "reward": s.reward,
            "advantage": s.advantage,
            "stop": s.completion.stop,
            "length": len(s.completion.token_ids),
        }
        for i, s in enumerate(group.samples)
    ]


def _batches(groups: list[Group], writer: Writer, reference: Policy | None, spec: RLVR, ctx: Context) -> list[Batch]:
    """Forests with advantages, generator log-probs, and where needed old and reference log-probs."""
    mesh = writer.trainable.mesh

    def values(items: list[int], forest: Forest) -> dict[str, Tensor]:
        samples = [s for i in items for s in groups[i].samples]
        advantages_L = torch.tensor([s.advantage for s in samples] or [0.0], dtype=torch.float32)
        sampled_P = torch.tensor([logp for s in samples for logp in s.completion.logps], dtype=torch.float32)
        return {"advantages_P": advantages_L[forest.leaf_P], "sampled_P": sampled_P}

    made = batches([group.tree() for group in groups], ctx.recipe.placement.micro_tokens, mesh, values)
    with torch.no_grad():
        for batch in made:
            if reference is not None:
                batch.values["reference_P"] = reference(batch.forest, temperature=spec.temperature)[0]
            if spec.minibatches > 1:
                batch.values["old_P"] = writer.trainable.module(batch.forest, temperature=spec.temperature)[0]
    return made
