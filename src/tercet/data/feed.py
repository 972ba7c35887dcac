"""Rows of any layout in batches, what their users say, and the rows that stay written as they were."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tercet.rows import RowError
from tercet.rows_file import read_file

BATCH_BYTES = 2 << 20
BATCH_ROWS = 2000

_ANSWERERS = frozenset(("assistant", "gpt", "chatgpt", "system", "tool", "function", "function_call", "observation"))
_SPEECH = re.compile(r"(?:^|\n)\s*(?:### )?(Human|Assistant):[ \t]*")
_PROMPTS = ("prompt", "instruction", "Instruction", "question", "problem")


@dataclass(frozen=True)
class Batch:
    """Some rows of one file: lines of JSON (or where they stand), a pyarrow batch, or objects.

    `first` is the number of its first row.
    """

    path: Path
    first: int
    rows: Any

    def __len__(self) -> int:
        """How many rows."""
        return int(getattr(self.rows, "num_rows", None) or len(self.rows))

    def objects(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Every row as an object, with the place where it stands; RowError where it is none."""
        rows = self.rows.to_pylist() if hasattr(self.rows, "to_pylist") else self.rows
        for number, row in enumerate(rows, self.first):
            where = f"{self.path}, row {number}"
            try:
                value = json.loads(row) if isinstance(row, bytes) else row
            except (ValueError, RecursionError) as error:
                raise RowError(f"{where}: not valid JSON in UTF-8 ({error}); fix or remove the row") from None
            if not isinstance(value, dict):
                raise RowError(f"{where}: expected a JSON object, got {type(value).__name__}")
            yield value, where


@dataclass(frozen=True)
class Lines:
    """Some lines of a plain file that are read where they are needed: only their place travels between processes."""

    path: Path
    start: int
    size: int
    count: int

    def __len__(self) -> int:
        """How many are not blank."""
        return self.count

    def __iter__(self) -> Iterator[bytes]:
        """The lines that are not blank."""
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            yield from _full(stream.read(self.size))


def batches(path: Path) -> Iterator[Batch]:
    """A jsonl, json, csv, tsv or parquet file (or .gz) in batches; only .json is read whole. Rows count from 1."""
    name = path.name.removesuffix(".gz")
    if not path.is_file() or not name.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet")):
        raise RowError(f"{path}: expected a file named .jsonl, .json, .csv, .tsv or .parquet (optionally .gz)")
    first = 1
    try:
        for rows in _pieces(path, name):
            batch = Batch(path, first, rows)
            first += len(batch)
            if len(batch):
                yield batch
    except RowError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise RowError(f"{path}: cannot be read after row {first - 1} ({error}); is the file whole?") from error


def user_texts(value: dict[str, Any], where: str) -> list[str]:
    """The user turns of a raw row: conversations, preference pairs, prompts, instructions, questions, dialogue texts.

    Both sides of a pair are read; a turn that both share counts once. RowError where no user turn can be found.
    """
    found: list[str] = []
    for key in ("messages", "conversations", "prompt", "chosen", "rejected"):
        turns = value.get(key)
        if isinstance(turns, str) and key in ("chosen", "rejected"):
            found += _speech(turns)
        elif isinstance(turns, list | tuple):
            found += _user_turns(turns, f"{where}, {key}")
    if found and isinstance(value.get("prompt"), str):
        found.append(value["prompt"])
    elif not found:
        text = next((value[key] for key in _PROMPTS if isinstance(value.get(key), str)), None)
        if text is None:
            keys = ", ".join(sorted(map(str, value))) or "none"
            raise RowError(f"{where}: no user turn in messages, conversations, chosen or {', '.join(_PROMPTS)}: {keys}")
        cases = [case for case in value.get("instances") or () if isinstance(case, dict)]  # of self-instruct
        contexts = [case.get("input") for case in cases or [value]]
        found = [f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text for more in contexts]
    return list(dict.fromkeys(found))


class Writer:
    """Writes batches to .jsonl, .jsonl.gz or .parquet; the file appears under its name when all is written."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; its folder is made."""
        if not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
            raise ValueError(f"{path}: expected an output named .jsonl, .jsonl.gz or .parquet")
        self.path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._stream: IO[bytes] | None = None
        self._table: Any = None

    def __enter__(self) -> Writer:
        """Open a file beside the one to be."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.name.endswith(".parquet"):
            raw = open(self._partial, "wb")
            packed = self.path.suffix == ".gz"
            self._stream = gzip.GzipFile("", "wb", 6, raw, mtime=0) if packed else raw  # type: ignore[assignment]
            self._raw = raw
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        """Close; keep the file unless something went wrong."""
        if self._table is not None:
            self._table.close()
        if self._stream is not None:
            self._stream.close()
            self._raw.close()
        if kind is None and self._partial.exists():
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)

    def write(self, batch: Batch, stays: Sequence[bool]) -> None:
        """The rows of a batch that stay; a line of JSON is written byte for byte as it was read."""
        if self._stream is None:
            self._write_table(batch, stays)
            return
        rows = batch.rows.to_pylist() if hasattr(batch.rows, "to_pylist") else batch.rows
        for row, kept in zip(rows, stays, strict=True):
            if kept:
                line = row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False, default=str).encode()
                self._stream.write(line.rstrip(b"\r\n") + b"\n")

    def _write_table(self, batch: Batch, stays: Sequence[bool]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not hasattr(batch.rows, "to_pylist"):
            raise ValueError(f"{self.path}: only parquet can become parquet, and {batch.path} is not; choose .jsonl")
        if self._table is None:
            self._table = pq.ParquetWriter(self._partial, batch.rows.schema, compression="zstd")
        elif not self._table.schema.equals(batch.rows.schema):
            raise ValueError(f"{self.path}: {batch.path} has other columns than the first file; choose .jsonl")
        self._table.write_batch(batch.rows.filter(pa.array(list(stays), pa.bool_())))


def _pieces(path: Path, name: str) -> Iterator[Any]:
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, buffer_size=BATCH_BYTES, pre_buffer=False) as table:  # see `tercet.rows`
            yield from table.iter_batches(BATCH_ROWS)
    elif path.name.endswith(".jsonl"):
        yield from _places(path)
    elif name.endswith(".jsonl"):
        with gzip.open(path, "rb") as stream:
            while lines := stream.readlines(BATCH_BYTES):
                yield [line for line in lines if line.strip()]
    else:
        rows = read_file(path)
        while piece := list(islice(rows, BATCH_ROWS)):
            yield piece


def _places(path: Path) -> Iterator[Lines]:
    """The lines of a file in pieces of about BATCH_BYTES."""
    start = 0
    with open(path, "rb") as stream:
        while data := stream.read(BATCH_BYTES):
            data += stream.readline()
            count = data.count(b"\n{") + data.startswith(b"{")
            if count != data.count(b"\n") + (not data.endswith(b"\n")):  # something stands between the objects
                count = sum(1 for _ in _full(data))
            yield Lines(path, start, len(data), count)
            start += len(data)


def _full(data: bytes) -> Iterator[bytes]:
    return (line for line in data.split(b"\n") if line.strip())


def _user_turns(turns: Iterable[Any], where: str) -> list[str]:
    """Contents of the turns that nobody but a user says; `{role, content}` or `{from, value}`."""
    with suppress(TypeError, KeyError):  # the common layout, quickly
        found = [turn["content"] for turn in turns if turn["role"] not in _ANSWERERS]
        if all(type(text) is str for text in found):
            return found
    found = []
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "from"} & turn.keys():
            raise RowError(f"{where}: expected turns of role and content, or of from and value, got {turn!r:.80}")
        role, text = (turn.get("role"), turn.get("content")) if "role" in turn else (turn["from"], turn.get("value"))
        if role not in _ANSWERERS and text is not None:
            if not isinstance(text, str):
                raise RowError(f"{where}: a turn holds {type(text).__name__}, expected text")
            found.append(text)
    return found


def _speech(dialogue: str) -> list[str]:
    """What the human says in a text of `Human:` and `Assistant:`; nothing in other text."""
    parts = _SPEECH.split(dialogue)
    return [text.strip() for who, text in zip(parts[1::2], parts[2::2], strict=True) if who == "Human"]
