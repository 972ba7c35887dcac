"""From prompts to optimiser steps: what the stages share that learn from rollouts (paper §6; design §5)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tercet.device.mesh import Mesh
from tercet.models.chat import Chat
from tercet.models.policy import Policy
from tercet.recipe import Rollouts
from tercet.rows import Row, write_table
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Step
from tercet.train.checks import check_schedule
from tercet.train.loop import LossFn, State, fit
from tercet.train.reference import Reference
from tercet.train.rl.generator import PolicyGenerator
from tercet.train.rl.monitors import RolloutMonitor, measure
from tercet.train.rl.prefetch import RolloutPrefetcher
from tercet.train.rl.reward_fn import RewardFunction
from tercet.train.rl.rollout import Group, RolloutWorker, Round, replay
from tercet.train.rl.rollout_log import RolloutLog


class PreparedRound(NamedTuple):
    """A round made ready to learn from: per minibatch its batches, the groups that teach, further metrics."""

    parts: list[list[Batch]]
    useful: list[Group]
    metrics: dict[str, float]


class RLTrainer:
    """Writer, ledger, judges and watchers of a stage, opened where its last checkpoint left it."""

    def __init__(  # noqa: PLR0913
        self,
        rows: list[Row],
        state: State,
        policy: Policy,
        chat: Chat,
        spec: Rollouts,
        inputs: dict[str, Artifact],
        ctx: Context,
    ) -> None:
        """`policy` is the part of `state`'s module that writes."""
        self.rows, self.chat, self.spec, self.state, self.ctx = rows, chat, spec, state, ctx
        self.mesh: Mesh = state.trainable.mesh
        self.updates = spec.minibatches * spec.passes
        check_schedule(spec, spec.steps * self.updates)
        self.first = state.step // self.updates
        self.reference: Reference | None = None
        self.ledger = RolloutLog(ctx.work / "rollouts.jsonl", self.first, self.mesh)
        self.watcher = RolloutMonitor(spec.watch, state.extra.setdefault("watch", {}))
        judge = ctx.open_model(inputs[spec.judge].payload, spec.precision) if spec.judge else None
        assessor = RewardFunction(spec, judge)
        assessor.check(rows)
        source = inputs[spec.model].payload
        self.writer = PolicyGenerator(state.trainable, policy, chat, source, spec, ctx.recipe.placement)
        self.writer.offer(self.first)
        channel = self.mesh.twin() if spec.lag else self.mesh
        make = RolloutWorker(rows, self.writer, assessor, self.ledger, spec, ctx.seed, channel)
        self.ahead = RolloutPrefetcher(make, self.first, spec.steps, spec.lag)

    def run(self, learn: Callable[[Round], PreparedRound], loss: LossFn) -> None:
        """Take every step of the rounds that are left; a run that fails writes no further ones."""
        total = self.spec.steps * self.updates
        steps, settle = self.steps(learn), self.ahead.settle
        try:
            fit(
                self.state, steps, loss, self.spec, self.ctx, total=total, updates_per_round=self.updates, settle=settle
            )
        finally:
            self.ahead.close()

    def steps(self, learn: Callable[[Round], PreparedRound]) -> Iterator[Step]:
        """`minibatches` x `passes` steps of every round that is left."""
        for number in range(self.first, self.spec.steps):
            began = time.monotonic()
            made = self.ahead.take(number)
            taken = time.monotonic()
            lesson = learn(made)
            metrics = measure(made.groups, lesson.useful) | lesson.metrics
            metrics |= {f"seconds_{name}": value for name, value in made.seconds.items()}
            metrics |= {f"generate_{name}": value for name, value in made.speed.items()}
            metrics |= {"seconds_rollout": taken - began, "seconds_score": time.monotonic() - taken}
            metrics["lag"] = float(number - made.version)
            if self.writer.engine is not None:
                metrics["engine_updates"] = float(self.writer.verified)
            yield from self._updates(number, lesson, metrics)

    def _updates(self, number: int, lesson: PreparedRound, metrics: dict[str, float]) -> Iterator[Step]:
        parts = [part for _ in range(self.spec.passes) for part in lesson.parts]
        seen = dict(metrics)  # and, of every figure of the updates, the latest
        for i, part in enumerate(parts):
            yield Step(part, {} if i else metrics, partial(self._learned, number, seen, i == len(parts) - 1))

    def _learned(self, number: int, seen: dict[str, float], last: bool, update: dict[str, float]) -> None:
        """After a round's last update: move the reference, offer the weights, look at the figures."""
        seen.update(update)
        if not last:
            return
        if self.reference is not None:
            self.reference.follow(number + 1, self.state.trainable)
        self.writer.offer(number + 1)
        self.ahead.learn(number + 1)
        for alarm in self.watcher(number, seen):
            if self.mesh.first:
                sys.stderr.write(f"alarm after round {number}: {alarm}\n")  # into the stage's log

    def finish(self, out: Path, advantages: Callable[[list[Group]], object] | None = None) -> None:
        """Leave every rollout and every alarm in the payload (first rank)."""
        if self.mesh.first:
            records = list(flat(self.ledger, self.rows, self.chat, advantages))
            write_table(out / "tercet" / "rollouts.parquet", records)
            (out / "tercet" / "alarms.json").write_text(json.dumps(self.watcher.alarms, indent=2) + "\n")


def flat(
    ledger: RolloutLog, rows: list[Row], chat: Chat, advantages: Callable[[list[Group]], object] | None
) -> Iterator[dict[str, Any]]:
    """One record per completion, in the order they were written."""
    held: list[dict[str, Any]] = []
    for record in ledger.read():
        held.append(record)
        if not record.get("done"):
            continue
        made = replay(held, rows, chat)
        held = []
        if advantages is not None:
            advantages(made.groups)
        for group in made.groups:
            yield from _completions(made, group, advantages is not None)


def _completions(made: Round, group: Group, advantages: bool) -> Iterator[dict[str, Any]]:
    for i, s in enumerate(group.samples):
        yield {
            "step": made.number,
            "prompt_id": group.row.id,
            "sample": i,
            "verifier": group.row.verifier,
            "truth": group.row.truth,
            "prompt": group.row.prompt[-1].content,
            "text": s.completion.text,
            "answer": s.grade.answer,
            "score": s.score,
            "outcome": s.grade.outcome,
            "reward": s.reward,
            "parts": json.dumps(s.parts, sort_keys=True),
            **({"advantage": s.advantage} if advantages else {}),
            "stop": s.completion.stop,
            "length": len(s.completion.token_ids),
            "version": made.version,
        }
