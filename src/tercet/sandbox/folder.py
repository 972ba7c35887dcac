"""The folder of a program where no file system of its own bounds it: measured while it runs, and removed afterwards.

A program may have made a chain of ten thousand folders, a million files, folders without rights, links to outside and
names that are no text. So nothing here follows a link, calls itself, or uses a path longer than one name.
"""

from __future__ import annotations

import contextlib
import os
import time

MOST_FILES = 4096  # files and folders of a program, as in a file system of its own (child.py)
DEEPEST = 64  # folders inside each other; so many descriptors are open while a folder is measured
BYTES, FILES, DEPTH = "disk", "files", "depth"  # what a program has too much of
OPENED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def excess(folder: str, most_bytes: int) -> str:
    """BYTES, FILES or DEPTH when the folder of a running program holds too much; else nothing.

    Looks at `MOST_FILES` entries at most, however many there are.
    """
    size = count = 0
    waiting: list[tuple[int, list[str]]] = []  # a folder and those above it, each with the folders not yet entered
    fd = _opened(folder, None)
    try:
        while True:
            if fd is not None:
                waiting.append((fd, []))
                with os.scandir(fd) as entries:
                    for entry in entries:
                        count += 1
                        size += _size(entry)
                        if size > most_bytes or count > MOST_FILES:
                            return BYTES if size > most_bytes else FILES
                        if entry.is_dir(follow_symlinks=False):
                            waiting[-1][1].append(entry.name)
                if waiting[-1][1] and len(waiting) > DEEPEST:
                    return DEPTH
            while waiting and not waiting[-1][1]:
                os.close(waiting.pop()[0])
            if not waiting:
                return ""
            fd = _opened(waiting[-1][1].pop(), waiting[-1][0])
    finally:
        for place, _ in waiting:
            os.close(place)


def remove(folder: str, seconds: float) -> str:
    """Remove the folder of a program that has ended; what stood in the way, or nothing.

    A folder inside is first moved to the top, so that all are two levels deep at most.
    """
    deadline = time.monotonic() + seconds
    try:
        top = _opened(folder, None)
        if top is None:  # the program has removed it
            return ""
        try:
            _empty(top, deadline)
        finally:
            os.close(top)
        os.rmdir(folder)
    except OSError as error:
        return f"the program's folder {folder} could not be removed ({error}); remove it by hand"
    return ""


def _empty(top: int, deadline: float) -> None:
    mark, moved = os.urandom(8).hex(), 0
    waiting = _unlink_files(top, deadline)
    while waiting:
        name = waiting.pop()
        inner = _opened(name, top)
        if inner is None:
            raise OSError(f"{name!r:.80} cannot be opened")
        try:
            os.fchmod(inner, 0o700)
            for found in _unlink_files(inner, deadline):
                _allow(found, inner)  # moving a folder changes the folder
                moved += 1
                waiting.append(f"{mark}-{moved}")
                os.rename(found, waiting[-1], src_dir_fd=inner, dst_dir_fd=top)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)


def _unlink_files(fd: int, deadline: float) -> list[str]:
    """Remove what is no folder, and return the names of the folders."""
    folders: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if time.monotonic() > deadline:
                raise TimeoutError("it took too long")
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return folders


def _opened(name: str, place: int | None) -> int | None:
    """A folder's descriptor, whatever its rights are; None when it has gone or is none."""
    with contextlib.suppress(PermissionError, FileNotFoundError, NotADirectoryError):
        return os.open(name, OPENED, dir_fd=place)
    try:
        _allow(name, place)
        return os.open(name, OPENED, dir_fd=place)
    except OSError:
        return None


def _allow(name: str, place: int | None) -> None:
    """Give the owner every right on a folder, never on what a link of the same name leads to."""
    if not hasattr(os, "O_PATH"):
        os.chmod(name, 0o700, dir_fd=place, follow_symlinks=False)
        return
    fd = os.open(name, os.O_PATH | OPENED, dir_fd=place)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks << 9
    except OSError:  # it has just been removed
        return 0
