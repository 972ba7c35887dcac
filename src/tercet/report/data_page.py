"""The page that `tercet data … --out FILE` writes of a data stage or a file of rows: its account and some rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tercet.report import samples
from tercet.report.collect import Object, Stage
from tercet.report.data import summary
from tercet.report.render import render, write
from tercet.rows import Pair, Row, row_from
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


def write_file_page(name: str, need: str, found: Object, entries: Sequence[Row | Pair], out: Path) -> None:
    """Write the page of a file; `found` is what `tercet.data.preview` says of it, `entries` the rows to show."""
    left = {key: found[key] for key in ("read", "kept", "skipped", "said", "problem")}
    source = left | {"source": name, "removed": {}, "bad": found.get("bad"), "left": found.get("left")}
    quantiles = [key for line in found["lengths"][:1] for key in line if key != "part"]
    flow = {"sources": [source], "columns": ["kept"], "rules": [], "skipped": bool(found["skipped"]), "expected": None}
    rows = [_shown(one, getattr(one, "good", None)) for one in entries if isinstance(one, Row)]
    page = {
        "name": name,
        "kind": f"file of {need}",
        "key": "",
        "made_from": [],
        "summary": found | flow | {"of": need, "rows": found["kept"], "quantiles": quantiles},
        "rows": rows,
        "parts": list(dict.fromkeys(row["part"] for row in rows)),
        "pairs": [samples.shown_pair(one, name, found["kept"]) for one in entries if isinstance(one, Pair)],
    }
    write(out, render("data_page.html.j2", page, "page"))


def row_samples(payload: Path) -> list[Object]:
    """A few rows of every part, those with the smallest hashes of their names; empty where no rows are stored."""
    path = next((payload / name for name in TABLES if (payload / name).is_file()), None)
    if path is None:
        return []
    wanted = _chosen(path)
    found = [_shown(row_from(stored, str(path)), stored.get("good")) for stored in _read(path, wanted)]
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


def _shown(row: Row, good: bool | None) -> Object:
    return {
        "id": row.id,
        "part": row.source or "rows",
        "turns": samples.shown(row.messages),
        "verifier": row.verifier,
        "reference": samples.cut(row.reference, 600),
        "good": good,
    }
