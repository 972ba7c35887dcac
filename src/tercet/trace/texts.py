"""The texts that a model was trained on: which artifacts of a lineage hold them, and how their rows are read.

A stage that trains names its rows (`rows`, `pairs` or `prompts`), and a stage of reinforcement learning also trains on
the completions that it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tercet.recipe import TrainSpec, kinds_of
from tercet.rows import CONVERSATIONS
from tercet.store import Artifact

NAMED = ("rows", "pairs", "prompts")  # the settings of a training stage that name its data
TABLES = ("rows.parquet", "pairs.parquet", "unpaired.parquet")
ROLLOUTS = "tercet/rollouts.parquet"
UNSTATED, OWN = "not known here", "written by the model itself"  # licences that nobody states
_AT_ONCE = 1000  # rows in memory


class TextRow(NamedTuple):
    """The texts of one row, each with who says it: `TextRow("w-1", "words@1", ["user"], ["What is 2 + 2?"])`."""

    id: str
    source: str
    roles: list[str]
    texts: list[str]


@dataclass(frozen=True)
class Taught:
    """A table of texts and the stages that learned from it."""

    artifact: Artifact
    file: str  # in the payload
    stages: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The table."""
        return self.artifact.payload / self.file

    @property
    def what(self) -> str:
        """What its rows are: rows, pairs, unpaired or rollouts."""
        return Path(self.file).stem


def taught(line: Iterable[Artifact]) -> list[Taught]:
    """The tables that the training stages among these artifacts learned from, in the order they were learned."""
    known = {(one.name, one.key): one for one in line}
    found: dict[tuple[Path, str], Taught] = {}
    for stage in [one for one in known.values() if one.kind in kinds_of(TrainSpec)]:
        spec = stage.record["spec"]
        tables = [
            (data, table)
            for name in dict.fromkeys(spec[key] for key in NAMED if isinstance(spec.get(key), str))
            if (data := known.get((name, stage.inputs.get(name, ""))))
            for table in TABLES
        ]
        for data, table in [*tables, (stage, ROLLOUTS)]:
            if (data.payload / table).is_file():
                one = found.get((data.path, table), Taught(data, table, ()))
                found[data.path, table] = replace(one, stages=(*one.stages, stage.name))
    return list(found.values())


def read(path: Path) -> Iterator[TextRow]:
    """The rows of a table, few in memory at a time."""
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
        columns = set(table.schema_arrow.names)
        wanted = [name for name in (*CONVERSATIONS, "id", "source", "good") if name in columns]
        rollouts = ["prompt_id", "verifier", "step", "text"]
        turns = [name for name in wanted if name in CONVERSATIONS]
        for piece in table.iter_batches(_AT_ONCE, columns=wanted if turns else rollouts):
            for value in piece.to_pylist():
                yield _row(value, turns) if turns else _rollout(value)


def _rollout(value: Mapping[str, Any]) -> TextRow:
    source = f"round {value['step']}, {value['verifier']}"
    return TextRow(str(value["prompt_id"]), source, ["rollout"], [value["text"] or ""])


def _row(value: Mapping[str, Any], columns: Sequence[str]) -> TextRow:
    said = list(_said(value[columns[0]]))
    if "good" in value and said:
        said[-1] = (f"{said[-1][0]} ({'good' if value['good'] else 'bad'})", said[-1][1])
    if len(columns) == 2:  # of a pair: what both sides share, then both answers
        sides = [list(_said(value[name][-1:], as_role=name)) for name in columns]
        said = [*_said(value[columns[0]][:-1]), *sides[0], *sides[1]]
    return TextRow(value["id"], value["source"] or "", [role for role, _ in said], [text for _, text in said])


def _said(turns: Iterable[Mapping[str, Any]], as_role: str = "") -> Iterator[tuple[str, str]]:
    """The texts of turns with their roles: a thought before what is said, the calls of tools behind it."""
    for turn in turns:
        role = as_role or turn["role"]
        details = json.loads(turn["details"]) if turn.get("details") else {}
        for kind in ("tools", "thought"):
            if details.get(kind):
                yield f"{role} ({kind})", details[kind]
        if turn["content"]:
            yield role, turn["content"]
        if details.get("tool_calls"):
            yield f"{role} (calls)", details["tool_calls"]
