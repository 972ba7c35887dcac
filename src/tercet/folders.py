"""Folders of results: what they may hold, their digests, their permissions, and how they get onto the disk.

A payload holds plain files and folders. A symbolic link could lead a digest, a chmod or a removal out of it, so that
none is followed here, and one that is met is an error. A user's own sources may hold links; they are only read.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tercet.journal import seal, to_disk, unseal

READERS = 8  # files of a folder that are read at once: a model of 405 billion weights has 325
TICK = 20_000_000  # ns: a change within one tick of the system's clock leaves a file's times as they were


class FolderError(ValueError):
    """A folder holds what it may not hold; the message says what to do."""


def tree(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, a folder before what it holds; links are given and not followed."""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def plain_files(folder: Path) -> list[Path]:
    """The files below a folder of results, sorted; a link, a pipe or a device there is an error."""
    if not folder.is_dir():
        raise FolderError(f"{folder}: expected a folder of results, there is none")
    no_link(folder)
    files = []
    for entry in tree(folder):
        no_link(Path(entry.path))
        if entry.is_file(follow_symlinks=False):
            files.append(Path(entry.path))
        elif not entry.is_dir(follow_symlinks=False):
            raise FolderError(f"{entry.path}: is neither a file nor a folder; results are plain files, remove it")
    return sorted(files)


def no_link(path: Path) -> None:
    """Refuse a symbolic link where Tercet writes, or where results lie."""
    if path.is_symlink():
        target = os.readlink(path)
        raise FolderError(f"{path}: expected a plain file or folder, this is a symbolic link to {target}; remove it")


def payload_digest(folder: Path) -> str:
    """SHA-256 over the sorted relative paths and the SHA-256 of each file, which must be plain files."""
    return digest_of(folder, plain_files(folder))


def digest_of(folder: Path, files: Sequence[Path]) -> str:
    """SHA-256 over the relative paths of these files in a folder and the SHA-256 of each; several are read at once."""
    total = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for file, digest in zip(files, pool.map(file_digest, files), strict=True):
            total.update(f"{file.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of one file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_digest(path: Path, files: Sequence[Path], cache: Path | None) -> str:
    """`file_digest` of a file or `digest_of` a folder; remembered in `cache` while size, times and inodes stay equal.

    An entry that is not what was written is made again. What changed within the last tick is not remembered.
    """
    mark, changed = _mark(path, files)
    with suppress(OSError, ValueError):
        if cache:
            return unseal(cache / mark)
    settled = time.time_ns() - changed > TICK
    digest = file_digest(path) if path.is_file() else digest_of(path, files)
    if cache and settled and _mark(path, files)[0] == mark:
        _keep(cache / mark, digest)
    return digest


def remember(folder: Path, digest: str, cache: Path) -> None:
    """Keep the digest of a folder that was just written, so that its readers need not read it twice."""
    _keep(cache / _mark(folder, plain_files(folder))[0], digest)


def _mark(path: Path, files: Sequence[Path]) -> tuple[str, int]:
    """What the system says of these files, hashed, and when the last of them changed (ns).

    The time of change (ctime) cannot be set by a program, as the time of writing (mtime) can.
    """
    stats = [(str(file.relative_to(path)), file.stat()) for file in files]
    facts = [(name, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino) for name, at in stats]
    return hashlib.sha256(repr(facts).encode()).hexdigest(), max((at.st_ctime_ns for _, at in stats), default=0)


def _keep(entry: Path, digest: str) -> None:
    """Write an entry of the cache; where that is not possible, what it would save is computed again."""
    with suppress(OSError, FolderError):
        no_link(entry.parent)
        entry.parent.mkdir(parents=True, exist_ok=True)
        seal(entry, digest, sync=False)


def set_writable(folder: Path, *, writable: bool) -> None:
    """Set or clear the write permission of a whole tree, and of nothing that a link in it leads to.

    A file that has a second name elsewhere, such as weights in a cache, is never made writable.
    """
    if writable:
        _chmod(folder, writable)
    for entry in tree(folder):  # a folder is listed before its permissions change
        shared = writable and entry.is_file(follow_symlinks=False) and os.lstat(entry.path).st_nlink > 1
        if not entry.is_symlink() and not shared:
            _chmod(Path(entry.path), writable)
    if not writable:
        _chmod(folder, writable)


def _chmod(path: Path, writable: bool) -> None:
    mode = path.lstat().st_mode
    path.chmod(mode | stat.S_IWUSR if writable else mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def sync_tree(folder: Path) -> None:
    """Wait until everything below a folder is on the disk: its files, and the names in every folder."""
    for entry in tree(folder):
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
            to_disk(Path(entry.path))
    to_disk(folder)
