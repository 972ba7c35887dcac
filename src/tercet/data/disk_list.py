"""Lists on disk that are read back in any order, so that a million rows need no memory."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class DiskList(Generic[T]):
    """Values in a file without a name: `append` returns the place that `[place]` reads. The file goes with the list.

    Only this process can open it, so nobody else has written what it unpickles.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the list
        self._end = 0
        self._at_end = True

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def append(self, value: T) -> int:
        """Put a value at the end; its place."""
        if not self._at_end:
            self._file.seek(self._end)
            self._at_end = True
        place = self._end
        self._end += self._file.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        return place

    def __getitem__(self, place: int) -> T:
        self._at_end = False
        self._file.seek(place)
        value: T = pickle.load(self._file)
        return value


def in_order(values: Iterable[T], key: Callable[[T], int], folder: Path | None = None) -> tuple[Iterator[T], int]:
    """The values by their keys of 64 bits, the earlier first of equals, by way of the disk; and how many."""
    spilled: DiskList[T] = DiskList(folder)
    pairs = ((spilled.append(value), key(value)) for value in values)
    table = np.fromiter(pairs, np.dtype([("place", np.uint64), ("key", np.uint64)]))
    places = table["place"][np.argsort(table["key"], kind="stable")]
    return (spilled[int(place)] for place in places), len(places)


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """The values in lists of `size`, the last one shorter."""
    source = iter(values)
    return iter(lambda: list(islice(source, size)), [])
