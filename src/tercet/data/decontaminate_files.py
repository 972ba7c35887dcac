"""Decontamination of whole files of any layout: scan them, write what stays, prove that it is clean.

Files are streamed in batches and searched by any number of processes; results are joined in the order of the rows, so
the number of processes changes nothing. Memory holds the index, a few batches, a few bytes a row and, for each
benchmark item that a data set copies, its best copy.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tercet.data.decontaminator import Cell, Decontaminator, Document, Found, prove
from tercet.data.disk_list import batched
from tercet.data.process_pool import ProcessPool
from tercet.data.user_texts import user_texts
from tercet.journal import to_disk
from tercet.outside import read_json
from tercet.rows import RowError
from tercet.rows_file import read_file
from tercet.rows_limits import opened
from tercet.rows_parquet import parquet_batches

Where = Literal["user", "all"]  # whose turns are searched

BATCH_BYTES = 2 << 20
BATCH_ROWS = 2000
LARGE = 32 << 20  # bytes of rows for which processes are started at once


@dataclass(frozen=True)
class RowBatch:
    """Some rows of one file: lines of JSON, a pyarrow batch, or objects. `first` is the number of its first row."""

    path: Path
    first: int
    rows: Any

    def plain(self) -> Sequence[Any]:
        """The rows as lines or objects."""
        return self.rows.to_pylist() if hasattr(self.rows, "to_pylist") else self.rows

    def objects(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Every row as an object, with the place where it stands; RowError where it is none."""
        for number, row in enumerate(self.plain(), self.first):
            where = f"{self.path}, row {number}"
            try:
                value = read_json(row.decode()) if isinstance(row, bytes) else row
            except ValueError as error:
                raise RowError(f"{where}: not valid JSON in UTF-8 ({error}); fix or remove the row") from None
            if not isinstance(value, dict):
                raise RowError(f"{where}: expected a JSON object, got {type(value).__name__}")
            yield value, where


@dataclass
class Scan:
    """The result of a scan. Rows are numbered over all files; `origin` holds the number of each row's data set."""

    sources: dict[str, int] = field(default_factory=dict)
    origin: array[int] = field(default_factory=lambda: array("I"))
    tokens: int = 0
    rows: dict[tuple[Cell, ...], array[int]] = field(default_factory=dict)  # rows by the cells that they count in


def clean(
    files: Sequence[Path], out: Path, cleaner: Decontaminator, workers: int = 1, *, where: Where = "user"
) -> dict[str, Any]:
    """Write the rows that stay to `out`, prove by a scan of that file that they are clean, and return the report.

    With `where = "all"` no turn of a row may copy, whoever says it.
    """
    if out.exists() and any(out.samefile(file) for file in files):
        raise ValueError(f"{out} is one of the files to read; write to another")
    if not out.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(f"{out}: expected an output named .jsonl, .jsonl.gz or .parquet")
    with search_pool(files, cleaner, workers, where) as pool:
        found = scan(files, cleaner, pool)
        gone = _gone(found, cleaner)
        _write(out, _kept(files, gone))
        spared = sum(int((~gone[np.asarray(rows)]).sum()) for rows in found.rows.values())
        stays = len(gone) - int(gone.sum())
        written = batches(out) if out.exists() else ()  # of parquet no table is written where nothing stays
        prove(pool, written, rows=stays, spared=spared)
    named = {"files": [str(file) for file in files], "out": str(out), "proof": {"rows": stays, "copy": spared}}
    return {**_report(found, cleaner, gone), **named}


def documents(batch: RowBatch, where: Where = "user") -> list[Document]:
    """The searched part of each row of a batch; a row's data set is its own `source` or `dataset`, else the file."""
    found = []
    for number, (value, place) in enumerate(batch.objects(), batch.first):
        source = next((value[key] for key in ("source", "dataset") if value.get(key)), batch.path.name)
        name = str(value.get("id") or f"{batch.path.name}-{number}")
        texts = user_texts(value, place) if where == "user" else list(dict.fromkeys(_texts(value)))
        found.append(Document(str(source), name, texts))
    return found


def search_pool(
    files: Sequence[Path], cleaner: Decontaminator, workers: int, where: Where = "user"
) -> ProcessPool[RowBatch, Found]:
    """Processes that search batches of these files; they start at once where the files are large."""
    large = sum(file.stat().st_size for file in files if file.exists()) > LARGE
    return ProcessPool(cleaner.search(partial(documents, where=where)), workers, 0 if large else None)


def scan(files: Sequence[Path], cleaner: Decontaminator, pool: ProcessPool[RowBatch, Found]) -> Scan:
    """Search every row of some files; RowError names file and row of a bad one."""
    whole = Scan()
    for found in pool.map(chain.from_iterable(map(batches, files))):
        start = len(whole.origin)
        whole.origin.extend(whole.sources.setdefault(name, len(whole.sources)) for name in found.sources)
        whole.tokens += found.tokens
        for row in found.rows:
            cells = cleaner.note(found.sources[row.place], row)
            whole.rows.setdefault(cells, array("Q")).append(start + row.place)
    return whole


def _texts(value: Any) -> Iterator[str]:
    """Every text of a row, whatever its layout; of JSON in a text (a conversation, a tool call), the texts in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts, value))
    elif isinstance(value, str):
        inside = None
        if value.lstrip()[:1] in ("{", "["):
            with suppress(ValueError):
                inside = read_json(value)
        yield from [value] if inside is None else _texts(inside)


def _gone(found: Scan, cleaner: Decontaminator) -> NDArray[np.bool_]:
    """Which rows are removed (rows,): those of dropped sets, and those that copy where the verdict removes rows."""
    verdicts = {(cell["source"], cell["task"]): cell["verdict"] for cell in cleaner.matrix()}
    dropped = [found.sources[name] for name in cleaner.dropped()]
    gone: NDArray[np.bool_] = np.isin(np.asarray(found.origin), dropped)
    for cells, rows in found.rows.items():
        if any(verdicts[cell] == "rows removed" for cell in cells):
            gone[np.asarray(rows)] = True
    return gone


def _report(found: Scan, cleaner: Decontaminator, gone: NDArray[np.bool_]) -> dict[str, Any]:
    """The findings as plain values: benchmarks, sets, the matrix of both, and every copied item."""
    index, rule, dropped = cleaner.index, cleaner.rule, cleaner.dropped()
    origin = np.asarray(found.origin)
    read, lost = (np.bincount(some, minlength=len(found.sources)).tolist() for some in (origin, origin[gone]))
    sets = [
        {"source": name, "rows": rows, "removed": removed, "dropped_for": [c["task"] for c in dropped.get(name, ())]}
        for name, rows, removed in zip(found.sources, read, lost, strict=True)
    ]
    items = [
        {"source": source, "task": task, "item": index.items[number].item, "rows": copied.rows}
        | (asdict(copied.best) if copied.best else {})
        for (source, task), numbers in sorted(cleaner.copied.items())
        for number, copied in sorted(numbers.items())
    ]
    return {
        "rule": {"ngram": index.n, "exact": index.exact, "published": index.published}
        | asdict(rule)
        | {"unseen": sorted(rule.unseen)},
        "rows": len(origin),
        "kept": len(origin) - int(gone.sum()),
        "removed": int(gone.sum()),
        "tokens": found.tokens,
        "benchmarks": cleaner.benchmarks(),
        "unsearched": cleaner.unsearched(),
        "sources": sets,
        "matrix": cleaner.matrix(),
        "items": items,
    }


def batches(path: Path) -> Iterator[RowBatch]:
    """A jsonl, json, csv, tsv or parquet file (or .gz) in batches; only .json is read whole. Rows count from 1."""
    name = path.name.removesuffix(".gz")
    if not path.is_file() or not name.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet")):
        raise RowError(f"{path}: expected a file named .jsonl, .json, .csv, .tsv or .parquet (optionally .gz)")
    first = 1
    try:
        for rows in _pieces(path, name):
            if len(rows):
                yield RowBatch(path, first, rows)
            first += len(rows)
    except RowError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise RowError(f"{path}: cannot be read after row {first - 1} ({error}); is the file whole?") from error


def _pieces(path: Path, name: str) -> Iterator[Any]:
    if name.endswith(".parquet"):
        yield from parquet_batches(path)
    elif name.endswith(".jsonl"):
        with opened(path) as stream:
            lines, size = list[bytes](), 0
            for line in stream:
                lines += [] if line.isspace() else [line]
                size += len(line)
                if size >= BATCH_BYTES:
                    yield lines
                    lines, size = [], 0
            yield lines
    else:
        yield from batched(read_file(path), BATCH_ROWS)


def _kept(files: Sequence[Path], gone: NDArray[np.bool_]) -> Iterator[tuple[RowBatch, list[bool]]]:
    """Every batch with the rows that stay."""
    start = 0
    for batch in chain.from_iterable(map(batches, files)):
        end = start + len(batch.rows)
        yield batch, (~gone[start:end]).tolist()
        start = end
    if start != len(gone):
        raise RuntimeError(f"the files had {len(gone)} rows and now have {start}; they changed while being read")


def _write(path: Path, kept: Iterable[tuple[RowBatch, list[bool]]]) -> None:
    """Write rows to .jsonl, .jsonl.gz or .parquet; the file appears under its name when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        (_write_table if path.suffix == ".parquet" else _write_lines)(partial, path, kept)
        if partial.exists():
            to_disk(partial)
            os.replace(partial, path)
            to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _write_lines(partial: Path, path: Path, kept: Iterable[tuple[RowBatch, list[bool]]]) -> None:
    """A line of JSON is written byte for byte as it was read."""
    with open(partial, "wb") as raw, ExitStack() as stack:
        packed = path.suffix == ".gz"
        stream = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)) if packed else raw
        for batch, stays in kept:
            for row in compress(batch.plain(), stays):
                line = row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False, default=str).encode()
                stream.write(line.rstrip(b"\r\n") + b"\n")


def _write_table(partial: Path, path: Path, kept: Iterable[tuple[RowBatch, list[bool]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: Any = None
    with ExitStack() as stack:
        for batch, stays in kept:
            if not hasattr(batch.rows, "schema"):
                raise ValueError(f"{path}: only parquet can become parquet, and {batch.path} is not; choose .jsonl")
            table = table or stack.enter_context(pq.ParquetWriter(partial, batch.rows.schema, compression="zstd"))
            if not table.schema.equals(batch.rows.schema):
                raise ValueError(f"{path}: {batch.path} has other columns than the first file; choose .jsonl")
            table.write_batch(batch.rows.filter(pa.array(stays, pa.bool_())))
