"""Raw rows of a local file in any of the common forms, one at a time."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tercet.outside import mended, read_json, unicode_error
from tercet.rows import RowError, SourceError
from tercet.rows_limits import longest, opened
from tercet.rows_parquet import parquet_rows


class Unreadable(dict[str, Any]):
    """An object without keys in the place of a line that cannot be read; `error` says why."""

    def __init__(self, error: RowError) -> None:
        super().__init__()
        self.error = error


def read_file(path: str | os.PathLike[str], *, lenient: bool = False, mend: bool = False) -> Iterator[dict[str, Any]]:
    """Raw objects of a local jsonl, json, csv, tsv (plain or .gz) or parquet file; errors name file and line.

    One object is held at a time (of parquet, a piece of the table); only .json is read whole. With `lenient`, a bad
    line of jsonl, csv or tsv comes as an `Unreadable`, and the reading goes on. `mend` reads half
    of a surrogate pair in jsonl as its escape: an artifact that an earlier version wrote cannot be changed.
    """
    path = Path(path)
    if not path.is_file():
        raise RowError(f"{path}: no such file; check the path in the recipe")
    name = path.name.removesuffix(".gz")
    if path.name.endswith(".parquet"):
        yield from parquet_rows(path)
        return
    with opened(path) as stream:
        if name.endswith(".jsonl"):
            yield from _lenient(_jsonl(stream, path, mend), lenient)
        elif name.endswith(".json"):
            yield from _json(_text(stream.whole(), path), path)
        elif name.endswith((".csv", ".tsv")):
            cells = _csv(_lines(stream, path), path, "\t" if name.endswith(".tsv") else ",")
            yield from _lenient(cells, lenient)
        else:
            raise RowError(f"{path}: expected a name ending in .jsonl, .json, .csv, .tsv (optionally .gz) or .parquet")


def _lenient(found: Iterator[dict[str, Any] | RowError], lenient: bool) -> Iterator[dict[str, Any]]:
    """The objects; an error in the place of one is raised, or handed on as it stands."""
    for value in found:
        if not isinstance(value, RowError):
            yield value
        elif lenient:
            yield Unreadable(value)
        else:
            raise value


def _lines(stream: Iterable[bytes], path: Path) -> Iterator[str]:
    """The lines of a file as text; only a line feed ends one. A byte order mark is no part of the first."""
    return (_decoded(line, number, path) for number, line in enumerate(stream, 1))


def _text(data: bytes, path: Path) -> str:
    """A whole file as text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        return _decoded(data[start : error.end + 1], data.count(b"\n", 0, error.start) + 1, path)


def _decoded(line: bytes, number: int, path: Path) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"{error.reason} at its byte {error.start + 1}"
        raise RowError(f"{path}, line {number}: not UTF-8 ({what}); save the file as UTF-8") from None


class _TwiceError(ValueError):
    """A JSON object has a key twice; the message says which."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses two values under one key, of which JSON silently keeps the last. (Adds about 15 % to the parsing.)"""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _jsonl(stream: Iterable[bytes], path: Path, mend: bool) -> Iterator[dict[str, Any] | RowError]:
    for number, line in enumerate(stream, 1):
        try:
            if (text := _decoded(line, number, path)).strip():
                yield _line_object(text, f"{path}, line {number}", mend)
        except RowError as error:
            yield error


def _line_object(line: str, where: str, mend: bool) -> dict[str, Any]:
    try:
        value = read_json(line, _DECODER.decode)
        problem = unicode_error(line, value)
        if problem and not mend:
            raise RowError(f"{where}: {problem}; fix or remove the line")
        value = mended(value) if problem else value
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: not valid JSON ({error.msg}); fix or remove the line") from None
    except RowError:
        raise
    except _TwiceError as error:
        raise RowError(f"{where}: {error}; remove one of them") from None
    except ValueError as error:  # a number too long, brackets too deep
        raise RowError(f"{where}: not valid JSON ({error}); fix or remove the line") from None
    if not isinstance(value, dict):
        raise RowError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _json(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """A list of objects, or an object that holds one such list beside what describes it."""
    try:
        value = read_json(text, _DECODER.decode)
    except json.JSONDecodeError as error:
        raise RowError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except _TwiceError as error:
        raise RowError(f"{path}: {error}; remove one of them") from None
    except ValueError as error:  # a number too long, brackets too deep
        raise RowError(f"{path}: not valid JSON ({error})") from None
    if problem := unicode_error(text, value):
        raise RowError(f"{path}: {problem}; fix the text that holds it")
    lists = [part for part in value.values() if isinstance(part, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list) or not all(isinstance(item, dict) for item in lists[0]):
        raise RowError(f"{path}: expected a JSON list of objects, or an object with one such list")
    yield from lists[0]


def _csv(lines: Iterable[str], path: Path, delimiter: str) -> Iterator[dict[str, Any] | RowError]:
    """Strict, because an open quote, or a row with more or fewer cells than the header, would silently lose text."""
    csv.field_size_limit(longest())  # an open quote would take the rest of the file into one cell
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    rows = _csv_rows(reader, path)
    header = next(rows, [])
    if len(set(header)) < len(header):
        raise RowError(f"{path}, line 1: a column name stands twice in {header}; rename one")
    for cells in rows:
        if cells and len(cells) != len(header):
            counts = f"has {len(cells)} cells, the header has {len(header)}"
            yield RowError(f"{path}, line {reader.line_num}: {counts}; fix it")
        elif cells:
            yield dict(zip(header, cells, strict=True))


def _csv_rows(reader: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num}: not valid CSV ({error}); is a quote left open?") from None
