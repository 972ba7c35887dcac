"""The log of a run's rollouts: every round whole or not at all, so that a resumed run trains on the same rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tercet import journal
from tercet.device import checkpoint
from tercet.device.mesh import Mesh
from tercet.recipe import RLSpec
from tercet.store import Context

LOG = "rollouts.jsonl"


class RolloutLog:
    """`rollouts.jsonl`: one line per round, with a record per group and a closing record with `done`.

    `recorded` holds the rounds from `first` on: those that a killed run had written after its last checkpoint, or
    ahead of it. `cursor` is how many prompts had been drawn before round `first`. For a stream, `draws` are those that
    some round has, beside all below `in_turn`, and `dropped` counts how often a draw came back too late.
    """

    def __init__(self, path: Path, first: int, mesh: Mesh) -> None:
        self.path, self.first, self.mesh = path, first, mesh
        self.recorded: dict[int, list[dict[str, Any]]] = {}
        self.cursor = 0
        self.in_turn = 0
        self.draws: set[int] = set()
        self.dropped: Counter[int] = Counter()
        for record in self.read():
            self._count(record)
            if record["round"] >= first:
                self.recorded.setdefault(record["round"], []).append(record)
            elif record.get("done"):
                self.cursor = record["cursor"]

    def _count(self, record: dict[str, Any]) -> None:
        if "draw" in record:
            self.draws.add(record["draw"])
        elif "dropped" in record:
            self.dropped.update(record["dropped"])
        elif record.get("done"):  # of a round without draws: it has all that were drawn so far
            self.in_turn = record["cursor"]

    @staticmethod
    def mend(spec: RLSpec, ctx: Context, ranks: Mesh) -> None:
        """Before a run goes on: take what is damaged off its log, and remove checkpoints that need what is lost.

        A checkpoint between rounds needs those before it, and the next `lag` ones, which older weights have written;
        where weights are given in flight, newer ones may write them.
        """
        path, updates = ctx.work / LOG, spec.minibatches * spec.passes
        if ranks.first:
            journal.mend(path, ctx.track.note, tail=True)
            rounds = sum(1 for _ in journal.read(path))
            lag = 0 if spec.in_flight else spec.lag
            last = spec.rounds if rounds >= spec.rounds else max(0, rounds - lag)
            checkpoint.forget(ctx.work / "checkpoints", last * updates, f"{path} has {rounds} rounds", ctx.track.note)
        ranks.barrier()

    def append(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Add a round, its closing record last (first rank only)."""
        if self.mesh.first:
            journal.append(self.path, {"round": number, "records": records}, checked=True)

    def read(self) -> Iterator[dict[str, Any]]:
        """All records, in the order of the file, each with its round."""
        for line in journal.read(self.path):
            yield from ({"round": line["round"]} | record for record in line["records"])
