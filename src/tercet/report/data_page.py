"""The page of a data stage: its account and some of its rows, as `tercet data ARTIFACT --out FILE` writes it."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from tercet.report import samples
from tercet.report.collect import Object, Stage
from tercet.report.data import summary
from tercet.report.render import render, write
from tercet.rows import row_from
from tercet.store import Artifact

TABLES = ("rows.parquet", "unpaired.parquet")  # of rows; pairs have a table of their own
MOST_ROWS, MOST_OF_PART = 60, 6


def write_page(artifact: Artifact, out: Path) -> None:
    """Write the page of a data stage that has a summary."""
    stage = Stage(artifact.name, artifact.kind, artifact.key, artifact.path, artifact.inputs, artifact.record)
    rows = row_samples(artifact.payload)
    page = {
        "name": artifact.name,
        "kind": artifact.kind,
        "key": artifact.key,
        "made_from": list(artifact.inputs),
        "summary": summary(artifact.kind, artifact.payload),
        "rows": rows,
        "parts": list(dict.fromkeys(row["part"] for row in rows)),
        "pairs": samples.pair_samples(stage),
    }
    write(out, render("data_page.html.j2", page, "page"))


def row_samples(payload: Path) -> list[Object]:
    """A few rows of every part, those with the smallest hashes of their names; empty where no rows are stored."""
    path = next((payload / name for name in TABLES if (payload / name).is_file()), None)
    if path is None:
        return []
    wanted = _chosen(path)
    found = [_shown(row, str(path)) for row in _read(path, wanted)]
    return sorted(found, key=lambda row: str(row["part"]))


def _chosen(path: Path) -> set[int]:
    """The places of the rows to show; only names and parts are read."""
    import pyarrow.parquet as pq

    ranked: list[tuple[str, str, int]] = []
    with pq.ParquetFile(path) as table:
        if "source" not in table.schema_arrow.names:
            return set()
        columns = (piece.to_pydict() for piece in table.iter_batches(20_000, columns=["id", "source"]))
        named = (one for piece in columns for one in zip(piece["id"], piece["source"], strict=True))
        ranked = [(hashlib.sha256(name.encode()).hexdigest(), part, i) for i, (name, part) in enumerate(named)]
    taken: Counter[str] = Counter()
    rounds: list[tuple[int, int]] = []  # of every part one, then of every part a second
    for _, part, place in sorted(ranked):
        if taken[part] < MOST_OF_PART:
            rounds.append((taken[part], place))
            taken[part] += 1
    return {place for _, place in sorted(rounds)[:MOST_ROWS]}


def _read(path: Path, places: set[int]) -> list[Object]:
    import pyarrow.parquet as pq

    rows: list[Object] = []
    start = 0
    with pq.ParquetFile(path) as table:
        for piece in table.iter_batches(1000):
            here = sorted(place - start for place in places if start <= place < start + piece.num_rows)
            rows += piece.take(here).to_pylist() if here else []
            start += piece.num_rows
    return rows


def _shown(stored: Object, where: str) -> Object:
    row = row_from(stored, where)
    return {
        "id": row.id,
        "part": row.source or "rows",
        "turns": samples.shown(row.messages),
        "verifier": row.verifier,
        "reference": samples.cut(row.reference, 600),
        "good": stored.get("good"),
    }
