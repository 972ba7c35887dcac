"""From prompts to weights: the rounds of PPO and GRPO, one after another (paper §6)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import nn

from tercet.environments.names import where
from tercet.environments.pool import EnvironmentPool
from tercet.journal import write_json
from tercet.models.policy import Policy
from tercet.recipe import RLSpec
from tercet.rows import write_table
from tercet.stop import Stopped
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Step
from tercet.train.checks import check_schedule
from tercet.train.loop import Loop, Loss, State
from tercet.train.rl.episodes import EpisodeWriter
from tercet.train.rl.generator import PolicyGenerator
from tercet.train.rl.monitors import RolloutMonitor, measure
from tercet.train.rl.prefetch import RolloutPrefetcher
from tercet.train.rl.reward_fn import RewardFunction
from tercet.train.rl.rollout import Prompts, RolloutGroup, RolloutWorker, Round, replay, set_advantages
from tercet.train.rl.rollout_log import LOG, RolloutLog
from tercet.train.rl.stream import RolloutStream, staleness

# Of a round's completions, what other trackers show, and how many.
SHOWN = (
    "prompt",
    "text",
    "reference",
    "answer",
    "outcome",
    "score",
    "reward",
    "advantage",
    "stop",
    "length",
    "version",
)
MOST_SHOWN = 64


class PreparedRound(NamedTuple):
    """A round made ready to train on: each update's batches in order, the groups with a signal, further metrics."""

    updates: list[list[Batch]]
    useful: list[RolloutGroup]
    metrics: dict[str, float]


class Algorithm(Protocol):
    """What GRPO and PPO differ in."""

    def prepare(self, made: Round) -> PreparedRound:
        """All that the losses of a round's updates need, computed with the weights before the first of them."""

    def loss(self, module: nn.Module, batch: Batch) -> Loss:
        """The loss of one batch."""


class RLTrainer:
    """Trains on the rounds after a stage's last checkpoint; opens the generator, the reward function and the log."""

    def __init__(
        self, prompts: Prompts, state: State, policy: Policy, spec: RLSpec, inputs: dict[str, Artifact], ctx: Context
    ) -> None:
        """`policy` is the part of `state`'s module that generates."""
        self.prompts, self.spec, self.state, self.ctx = prompts, spec, state, ctx
        self.mesh = state.trainable.mesh
        self.updates = spec.minibatches * spec.passes  # in a round
        self.total = spec.rounds * self.updates
        check_schedule(spec, self.total)
        self.first = state.step // self.updates  # checkpoints are written between rounds only
        self.log = RolloutLog(ctx.work / LOG, self.first, self.mesh)
        self.monitor = RolloutMonitor(spec.monitor, state.extra.setdefault("monitor", {}))
        judge = ctx.open_model(inputs[spec.judge].payload, spec.precision) if spec.judge else None
        reward_fn = RewardFunction(spec, judge)
        reward_fn.check(prompts.rows)
        source = inputs[spec.model].payload
        self.generator = PolicyGenerator(state.trainable, policy, prompts.chat, source, spec, ctx.recipe.placement)
        self.generator.offer(self.first)
        self.pool = _pool(spec)
        self.rollouts = self._rollouts(reward_fn)

    def _rollouts(self, reward_fn: RewardFunction) -> RolloutPrefetcher | RolloutStream:
        """What hands out rounds: a stream where weights are given in flight, else rounds one after another."""
        spec, prompts, generator, seed = self.spec, self.prompts, self.generator, self.ctx.seed
        if spec.in_flight and self.pool is None and generator.for_all:
            return RolloutStream(prompts, generator.submitting(), reward_fn, self.log, spec, seed)
        channel = self.mesh.twin() if spec.lag else self.mesh  # collectives of two threads must not mix
        worker = RolloutWorker(prompts, generator, reward_fn, self.log, seed, channel)
        if self.pool is not None:
            worker.episodes = EpisodeWriter(generator, self.pool, prompts.chat, spec)
        return RolloutPrefetcher(worker, self.first, spec.rounds, spec.lag)

    def run(self, algorithm: Algorithm) -> None:
        """Train on every round that is left; after an error no further round is made."""
        loop = Loop(self.state, algorithm.loss, self.spec, self.ctx, total=self.total)
        # Rounds that older weights have to write must be in the log: a resumed run has the newest only.
        loop.settle = lambda: self.rollouts.settle(self.state.step // self.updates)
        try:
            for number in range(self.first, self.spec.rounds):
                began = time.monotonic()
                made = self.rollouts.take(number)
                taken = time.monotonic()
                self.generator.rest()
                if self.state.kept:  # a reference that moves while a round is prepared
                    self.state.whole = False
                prepared = algorithm.prepare(made)
                metrics = self._metrics(made, prepared)
                metrics |= {"seconds_rollout": taken - began, "seconds_score": time.monotonic() - taken}
                latest = dict(metrics)  # and each figure of the updates, from the last that has it
                for i, batches in enumerate(prepared.updates):
                    latest |= loop.update(Step(batches, {} if i else metrics))
                if self.generator.in_turn:
                    self.rollouts.settle(number + 1)
                # `offer` before `advance`: the thread that waits for this version reads its weights at once.
                self.generator.offer(number + 1)
                self.rollouts.advance()
                # Alerts before the checkpoint, which holds them; of a round that stops the run nothing is saved.
                self._monitor(number, latest)
                self._show(made)
                loop.rest()
            loop.finish()
        except Stopped:
            loop.keep()  # here, as it may have to wait for rounds that are being made
            raise
        finally:
            self.rollouts.close()
            if self.pool is not None:
                self.pool.close()

    def _metrics(self, made: Round, prepared: PreparedRound) -> dict[str, float]:
        metrics = measure(made.groups, prepared.useful) | prepared.metrics
        metrics |= {f"seconds_{name}": value for name, value in made.seconds.items()}
        metrics |= {f"generate_{name}": value for name, value in made.speed.items()}
        metrics |= staleness(made, self.spec.lag)
        if self.generator.engine is not None:
            metrics["engine_updates"] = float(self.generator.updates)
        return metrics

    def _monitor(self, number: int, metrics: dict[str, float]) -> None:
        for alert in self.monitor(number, metrics):
            if self.mesh.first:
                sys.stderr.write(f"alert after round {number}: {alert}\n")  # into the stage's log

    def _show(self, made: Round) -> None:
        """Every so many rounds the first completions, with their rewards, to whom is told beside our own log."""
        every, track = self.ctx.recipe.placement.completions_every, self.ctx.track
        if self.mesh.first and track.shown and every and made.number % every == 0:
            records = [record for group in made.groups for record in _records(made, group, True)]
            rows = [{key: record[key] for key in SHOWN} for record in records[:MOST_SHOWN]]
            track.table("completions", self.state.step, rows)

    def finish(self, out: Path, advantage: str = "") -> None:
        """Write every rollout and alert into the payload (first rank); `advantage` is its kind, if there is one."""
        if self.mesh.first:
            write_table(out / "tercet" / "rollouts.parquet", list(self._completions(advantage)))
            write_json(out / "tercet" / "alerts.json", self.monitor.alerts)

    def _completions(self, advantage: str) -> Iterator[dict[str, Any]]:
        """One record per completion, in the order they were written."""
        held: list[dict[str, Any]] = []
        for record in self.log.read():
            held.append(record)
            if not record.get("done"):
                continue
            made, held = replay(held, self.prompts), []
            if advantage:
                set_advantages(made.groups, advantage)
            for group in made.groups:
                yield from _records(made, group, bool(advantage))


def _pool(spec: RLSpec) -> EnvironmentPool | None:
    """The processes of the stage's environment, which is tried before anything is written."""
    if not spec.environment:
        return None
    pool = EnvironmentPool(where(spec.environment), spec.environment_args, spec.environment_seconds)
    pool.check()
    return pool


def _records(made: Round, group: RolloutGroup, with_advantage: bool) -> Iterator[dict[str, Any]]:
    for i, s in enumerate(group.samples):
        yield {
            "step": made.number,
            "prompt_id": group.row.id,
            "sample": i,
            "verifier": group.row.verifier,
            "reference": group.row.reference,
            "prompt": group.row.prompt[-1].content,
            "text": s.said or s.completion.text,
            "answer": s.grade.answer,
            "score": s.score,
            "outcome": s.grade.outcome,
            "reward": s.reward,
            "parts": json.dumps(s.parts, sort_keys=True),
            **({"advantage": s.advantage} if with_advantage else {}),
            "stop": s.completion.stop,
            "length": len(s.completion.token_ids),
            "version": made.version if group.origin is None else group.origin.first,
            **({} if group.origin is None else {"version_last": group.origin.last, "replica": group.origin.replica}),
            **({"turns": len(s.turns)} if s.turns else {}),
        }
