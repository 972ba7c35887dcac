"""Tables of text for the generators: the JSON lines, CSV and TOML files of this folder.

A table is read when it is first needed and checked against the type of its entries. The digest of the tables that a
stage reads is part of its key, so a changed table makes new rows and never passes for the old ones.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tomllib
from collections.abc import Hashable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tercet.recipe.file import key_lines

FOLDER = Path(__file__).parent
SEEDS = {"train": "train", "test": "exam"}  # a split in row ids and seeds; another word would draw other rows
STRICT = ConfigDict(extra="forbid")  # for the dataclasses of entries: unknown keys are refused
T = TypeVar("T", bound=Hashable)


class TableError(ValueError):
    """A table does not hold what it should; the message names the file and the line."""


def entries(name: str, kind: type[T]) -> tuple[T, ...]:
    """The entries of a `.jsonl` table, one on each line, or of a `.csv` table below its line of names."""
    return _entries(FOLDER / name, kind)


def document(name: str, kind: type[T]) -> T:
    """A `.toml` table of several parts as one object."""
    return _document(FOLDER / name, kind)


def digest(names: Iterable[str]) -> str:
    """One SHA-256 for the bytes of these tables."""
    files = {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in names}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@cache
def _entries(path: Path, kind: type) -> tuple[Any, ...]:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    found, line = [], 2 if path.suffix == ".csv" else 1
    try:
        for last, plain in _plain(path):
            found.append(adapter.validate_python(plain))
            line = last + 1
    except ValueError as error:
        raise TableError(f"{path}:{line}: {_describe(error)}") from None
    return tuple(found)


def _plain(path: Path) -> Iterator[tuple[int, Any]]:
    """Every entry as plain data, with its last line."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file, strict=True)
            yield from ((reader.line_num, plain) for plain in reader)
        else:
            yield from ((number, json.loads(line)) for number, line in enumerate(file, 1))


@cache
def _document(path: Path, kind: type) -> Any:
    text = path.read_text(encoding="utf-8")
    try:
        return TypeAdapter(kind).validate_python(tomllib.loads(text))
    except ValidationError as error:
        lines, place = key_lines(text), error.errors()[0]["loc"]
        while place and place not in lines:
            place = place[:-1]
        raise TableError(f"{path}:{lines.get(place, 1)}: {_describe(error)}") from None
    except tomllib.TOMLDecodeError as error:  # which says the line
        raise TableError(f"{path}: {error}") from None


def _describe(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
