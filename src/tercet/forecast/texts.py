"""How long made rows and pairs are, in tokens: counted on the first of them, at four characters a token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SAMPLE = 256
CHARACTERS, TURN = 4.0, 5.0  # of a token; tokens that a chat template puts around a turn
Turns = Sequence[dict[str, Any]]


def texts_of(payload: Path) -> dict[str, float]:
    """Mean tokens of a `row` and of its `prompt`, or of a `side` of a pair; nothing where there are neither."""
    rows, pairs = payload / "rows.parquet", payload / "pairs.parquet"
    if rows.is_file() and (turns := _first(rows, "messages")):
        return {"row": _mean(turns), "prompt": _mean(map(_prompt, turns))}
    if pairs.is_file() and (turns := _first(pairs, "chosen") + _first(pairs, "rejected")):
        return {"side": _mean(turns)}
    return {}


def _first(file: Path, column: str) -> list[Turns]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        batch = next(table.iter_batches(SAMPLE, columns=[column]), None)
    return [] if batch is None else batch.column(column).to_pylist()


def _prompt(turns: Turns) -> Turns:
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def _mean(conversations: Iterable[Turns]) -> float:
    sizes = [sum(len(turn["content"] or "") / CHARACTERS + TURN for turn in turns) for turns in conversations]
    return sum(sizes) / len(sizes)
