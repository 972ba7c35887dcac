"""The ledger of a run's rollouts: every round whole or not at all, so that a resumed run repeats what it had done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tercet.device.mesh import Mesh


class RolloutLog:
    """`rollouts.jsonl`: one line per group of a round, and a closing line with `done`.

    `recorded` holds the whole rounds from `first` on: those that a killed run had written after its last checkpoint, or
    ahead of it. `cursor` is how many prompts had been drawn before round `first`.
    """

    def __init__(self, path: Path, first: int, mesh: Mesh) -> None:
        self.path, self.mesh = path, mesh
        if mesh.first and path.is_file():
            draft = path.with_suffix(".draft")
            with open(draft, "w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in self._whole())
            os.replace(draft, path)
        mesh.barrier()
        self.recorded: dict[int, list[dict[str, Any]]] = {}
        self.cursor = 0
        for record in self.read():
            if record["round"] >= first:
                self.recorded.setdefault(record["round"], []).append(record)
            elif record.get("done"):
                self.cursor = record["cursor"]

    def append(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Add a round, its closing line last (first rank only)."""
        if not self.mesh.first:
            return
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps({"round": number} | one, ensure_ascii=False) + "\n" for one in records))
            stream.flush()
            os.fsync(stream.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """All records, in the order of the file."""
        if self.path.is_file():
            with open(self.path, encoding="utf-8") as stream:
                yield from map(json.loads, stream)

    def _whole(self) -> Iterator[dict[str, Any]]:
        """The records of rounds that were closed; a kill cuts the last one short."""
        held: list[dict[str, Any]] = []
        with open(self.path, encoding="utf-8") as stream:
            for line in stream:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    return
                held.append(record)
                if record.get("done"):
                    yield from held
                    held = []
