"""Files that survive a kill: a log that only grows, and files that are replaced whole.

A journal is a file of JSON lines, one record each. A kill can cut its last line short: readers leave that line out,
and the next writer takes it off. Any other line that is not JSON is damage, and an error that names file and line.
A checked journal has a digest in every line, so that a changed byte is damage too; `mend` takes such lines out.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

Place = tuple[int, int]  # of a record in its file: the first byte of its line, and the number of bytes
CHECK = re.compile(rb', "([^"]{5})": "([^"]{16})"}\n$')  # the end of a checked line, whatever has become of it
TAIL = 1 << 16  # bytes at the end of a file in which its last line is looked for first


class JournalError(OSError):
    """A journal cannot be used: another process writes it, or a line in it is damaged."""


class DamagedError(OSError):
    """A file is not what was written: cut short, altered, or something else in its place."""


class Journal:
    """A journal open for appending, by one process at a time; use as a context manager.

    What is appended is given to the system at once, so that a killed process loses none of it. It is put on the disk
    after every `sync_every` records, and by `sync` and `close`, so that a power cut loses no more than those; with 0
    it is left to the system. One thread at a time may append; any may read by place meanwhile.
    """

    def __init__(self, path: Path, *, sync_every: int = 1, wait: bool = False, checked: bool = False) -> None:
        """Lock the file and take off a line that was cut short; `wait` for another process, or raise JournalError.

        With `checked`, records are objects and get a digest in their line, which every reader checks.
        """
        self.path, self.sync_every, self.checked, self._unsynced = path, sync_every, checked, 0
        if path.is_symlink():
            raise JournalError(f"{path}: a symbolic link, and would be written where it leads; remove it")
        make_folder(path.parent)
        created = not path.exists()
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            self._file.truncate(_whole_bytes(self._file.fileno()))
            if created and sync_every:  # else a power cut takes the name, and with it every record
                to_disk(path.parent)
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise JournalError(f"{path}: another run has this file open; wait for it or stop it") from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[Any, Place]]:
        """Every record with its place, in the order of the file."""
        return _records(self.path)

    def __getitem__(self, place: Place) -> Any:
        """The record at a place."""
        start, size = place
        return _parsed(os.pread(self._file.fileno(), size, start))

    def append(self, record: Any) -> Place:
        """Add a record as one line; returns its place."""
        data = json.dumps(record).encode()
        data = (data[:-1] + b', "check": "%s"}' % _check(data) if self.checked else data) + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._file.flush()
        self._unsynced += 1
        if self._unsynced == self.sync_every:
            self.sync()
        return start, len(data)

    def sync(self) -> None:
        """Put every record on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        """Give the file back."""
        if self.sync_every and self._unsynced:
            self.sync()
        self._file.close()


def append(path: Path, record: Any, *, sync: bool = True, checked: bool = False) -> None:
    """Add one record to a journal that nobody keeps open, when other processes that append to it have done so."""
    with Journal(path, sync_every=int(sync), wait=True, checked=checked) as journal:
        journal.append(record)


def read(path: Path) -> Iterator[Any]:
    """The records of a journal that somebody may be writing; none where there is no file."""
    if path.is_file():
        yield from (record for record, _ in _records(path))


def mend(path: Path, say: Callable[[str], None], *, tail: bool = False) -> None:
    """Take damaged lines out of a checked journal, with `tail` all lines from the first of them on, and say so.

    What an older version wrote has no digests, and stays where it is JSON.
    """
    if path.is_symlink():
        raise JournalError(f"{path}: a link, where a file was written; remove it and run again")
    if not path.is_file():
        return
    with Journal(path):
        kept, lines = _kept(path)
        if kept == lines:
            return
        if tail:
            first = next(i for i, both in enumerate(zip_longest(kept, lines)) if both[0] != both[1])
            kept = kept[:first]
        with replacing(path) as partial, path.open("rb") as old, partial.open("wb") as new:
            for start, size in kept:
                old.seek(start)
                new.write(old.read(size))
    lost = len(lines) - len(kept)
    say(f"{path} was damaged: {lost} of {len(lines)} lines are removed, and what they held is made again")


def _kept(path: Path) -> tuple[list[Place], list[Place]]:
    """The places of all lines that are whole, and of all lines."""
    kept: list[Place] = []
    lines: list[Place] = []
    start, checked = 0, False
    with path.open("rb") as stream:
        for line in stream:
            lines.append((start, len(line)))
            has = CHECK.search(line) is not None
            try:
                if isinstance(_parsed(line), dict) and (has or not checked):
                    kept.append(lines[-1])
                    checked = has
            except ValueError:
                pass
            start += len(line)
    return kept, lines


def _parsed(line: bytes) -> Any:
    """The record of a line; ValueError where it is not JSON, or not what its digest says."""
    record = json.loads(line)
    if found := CHECK.search(line):
        if found.groups() != (b"check", _check(line[: found.start()] + b"}")):
            raise ValueError("its digest is another's")
        del record["check"]
    return record


def _check(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).hexdigest().encode()


def _records(path: Path) -> Iterator[tuple[Any, Place]]:
    start = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return  # a kill cut it short, or it is being written
            try:
                record = _parsed(line)
            except ValueError as error:
                raise JournalError(
                    f"{path}, line {number}: damaged ({error}); mend or remove this line, or remove the file, and run "
                    "again"
                ) from None
            yield record, (start, len(line))
            start += len(line)


def _whole_bytes(file: int) -> int:
    """The bytes of a file up to the end of its last whole line."""
    size, width = os.fstat(file).st_size, TAIL
    while True:
        start = max(0, size - width)
        end = start + os.pread(file, width, start).rfind(b"\n") + 1
        if end > start or start == 0:
            return end
        width *= 4


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; a reader of `path` sees the old file or all of the new one.

    The new file is on the disk before it takes its place, and its name after that, so that this holds after a power cut
    too; without `sync` only after a kill. Nothing is left where writing fails.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        if sync:
            to_disk(partial)
        os.replace(partial, path)
        if sync:
            to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def replace(path: Path, data: str | bytes, *, sync: bool = True) -> None:
    """Put text or bytes at `path` in one move; a hard link that stood there keeps its old bytes elsewhere."""
    with replacing(path, sync=sync) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any, *, sort_keys: bool = False, allow_nan: bool = True) -> None:
    """Replace a file by a value as JSON; with sorted keys equal objects are equal bytes."""
    replace(path, json_text(value, sort_keys=sort_keys, allow_nan=allow_nan))


def json_text(value: Any, *, sort_keys: bool = False, allow_nan: bool = True) -> str:
    """A value as the JSON text of a file."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys, allow_nan=allow_nan) + "\n"


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; their names are on the disk afterwards."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        to_disk(folder.parent)


def seal(path: Path, text: str, *, sync: bool = True) -> None:
    """Put text at `path` with the SHA-256 of it as its last line, for `unseal`."""
    replace(path, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n", sync=sync)


def unseal(path: Path) -> str:
    """The text that `seal` wrote; DamagedError where a byte of the file is another, or a link stands there."""
    with open_plain(path) as stream:
        text, _, digest = stream.read().removesuffix(b"\n").rpartition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise DamagedError(f"{path}: its text does not have the digest that stands below it")
    return text.decode()


def stamp(file: Path, place: Path | None = None) -> None:
    """Keep the digest of a file that is whole, beside it or in the folder `place`, for `intact`."""
    with open_plain(file) as stream:
        seal(_stamp(file, place), hashlib.file_digest(stream, "sha256").hexdigest())


def intact(file: Path, place: Path | None = None) -> bool:
    """Whether a file is, byte for byte, the one that `stamp` saw; a cache makes anything else again."""
    try:
        with open_plain(file) as stream:
            return unseal(_stamp(file, place)) == hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return False


def _stamp(file: Path, place: Path | None) -> Path:
    return (place or file.parent) / f"{file.name}.sha256"


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading; a link, a pipe or a device is a DamagedError and is not waited for."""
    if path.is_symlink():
        raise DamagedError(f"{path}: a link, where a file was written")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DamagedError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


def to_disk(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
