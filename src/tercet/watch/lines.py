"""JSON lines that somebody is writing, read again and again without reading all of them again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

Object = dict[str, Any]
MOST_RECORDS = 20_000  # kept in memory of one file; beyond it every second of them goes, but for both ends
PIECE = 8 << 20  # bytes read at once, and the most that are looked through for the last lines


class GrowingLines:
    """The objects of a file that grows; a line that is no JSON object is left out and counted.

    A line without an end is being written, and is read when it has one. A file that was replaced, as that of a stage
    that continues, is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Object] = []
        self.damaged = 0
        self._inode, self._read = 0, 0

    def refresh(self) -> list[Object]:
        """Read what was added; returns all records."""
        with suppress(FileNotFoundError), self.path.open("rb") as stream:
            about = self.path.stat()
            if about.st_ino != self._inode or about.st_size < self._read:
                self.records, self.damaged, self._read = [], 0, 0
            self._inode = about.st_ino
            stream.seek(self._read)
            while (end := (piece := stream.read(PIECE)).rfind(b"\n") + 1) > 0:
                for line in piece[:end].splitlines():
                    self._add(line)
                self._read += end
                stream.seek(self._read)
        return self.records

    def _add(self, line: bytes) -> None:
        found = _object(line)
        if found is None:
            self.damaged += 1
            return
        self.records.append(found)
        if len(self.records) > MOST_RECORDS:
            del self.records[1:-1:2]


def last_objects(path: Path, most: int) -> list[Object]:
    """The last objects of such a file, the newest last; lines that are cut short or damaged are left out."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        size, width = path.stat().st_size, 1 << 16
        while True:
            stream.seek(max(0, size - width))
            lines = stream.read(width).split(b"\n")[:-1]  # what follows the last end is no line yet
            whole = lines if width >= size else lines[1:]
            if len(whole) >= most or width >= min(size, PIECE):
                return [found for line in whole[-most:] if (found := _object(line)) is not None]
            width *= 4
    return []


def _object(line: bytes) -> Object | None:
    with suppress(ValueError, RecursionError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None
