"""How large the rows of a file from outside may be: its lines, documents and packed bytes.

A file that is meant has none of these sizes; one that was made to fill the memory or to run for hours ends in one
error with file and line. `TERCET_LINE_MIB` raises the limits, all in proportion, for files that are trusted.
"""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tercet.rows import RowError, SourceError

SETTING = "TERCET_LINE_MIB"
LINE_MIB = 64  # of a line, and of a row of parquet
DOCUMENT, DOCUMENT_PARTS = 16, 4  # times that is a whole .json file, and has as many commas and brackets
UNPACKED, RATIO = 4, 200  # a .gz may hold so many times that, or so many times its own size, whichever is more
PART_BYTES = 16  # for each so many bytes of the limit one comma or bracket: values need more memory than text
MANY_BYTES = 1 << 20  # lines below this are short enough whatever they hold


def longest() -> int:
    """The most bytes of a line."""
    text = os.environ.get(SETTING, "") or str(LINE_MIB)
    if not text.isdecimal() or not 0 < int(text) < 1 << 20:
        raise RowError(f"{SETTING}: expected a whole number of MiB, got {text!r:.40}")
    return int(text) << 20


@contextmanager
def opened(path: Path) -> Iterator[LimitedFile]:
    """A file, plain or .gz, for reading within the limits."""
    packed = path.suffix == ".gz"
    with gzip.open(path, "rb") if packed else open(path, "rb") as stream:
        yield LimitedFile(path, stream, packed=packed)


class LimitedFile:
    """The bytes of a file by line, or whole; more than there may be, or what cannot be unpacked, is a `SourceError`."""

    def __init__(self, path: Path, stream: BinaryIO | gzip.GzipFile, *, packed: bool) -> None:
        self.path, self.stream, self.longest = path, stream, longest()
        self.most = max(UNPACKED * self.longest, RATIO * path.stat().st_size) if packed else sys.maxsize

    def __iter__(self) -> Iterator[bytes]:
        number, left, readline = 1, self.most, self.stream.readline
        try:
            while line := readline(self.longest + 1):
                if len(line) > MANY_BYTES:
                    self._check(line, self.longest, 1, f"{self.path}, line {number}")
                left -= len(line)
                if left < 0:
                    raise self._too_large(f"{self.path}, line {number}")
                yield line
                number += 1
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self.path}, line {number}: cannot be read ({error}); is the file whole?") from error

    def whole(self) -> bytes:
        """All bytes of the file."""
        most, where = min(DOCUMENT * self.longest, self.most), str(self.path)
        try:
            data = self.stream.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{where}: cannot be read ({error}); is the file whole?") from error
        if len(data) > most == self.most:
            raise self._too_large(where)
        self._check(data, most, DOCUMENT_PARTS, where)
        return data

    def _check(self, data: bytes, most: int, times: int, where: str) -> None:
        mib = self.longest >> 20
        if len(data) > most:
            raise SourceError(
                f"{where}: is longer than {most >> 20} MiB; write it shorter, or set {SETTING} above {mib}"
            )
        parts = sum(map(data.count, (b",", b"[", b"{")))
        if parts > (fit := times * self.longest // PART_BYTES):
            raise SourceError(
                f"{where}: holds {parts:,} commas and brackets in {len(data):,} bytes, more than {fit:,}; write it in "
                f"shorter parts, or set {SETTING} above {mib}"
            )

    def _too_large(self, where: str) -> SourceError:
        return SourceError(
            f"{where}: unpacks to more than {self.most:,} bytes, {RATIO} times the file; unpack it yourself if that is "
            f"meant, or set {SETTING} above {self.longest >> 20}"
        )
