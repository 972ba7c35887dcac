"""The index of one table of texts: its words as numbers, the order of their suffixes, and the texts themselves.

`<store>/.cache/trace/<digest>/` is made once for a table and kept by its digest, so that all models that learned from
it share it. Every text ends with the number `END`, which no query has, so no span crosses from one text into the next.
The suffixes are sorted in shards of whole rows, which bounds memory. A build is a draft until its last step, the
rename; an index that is not whole is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tercet.folders import no_link, plain_files, remember, remembered_digest, set_writable, sync_tree
from tercet.journal import make_folder, seal, unseal
from tercet.store import Store, disk_errors
from tercet.trace import texts
from tercet.trace.texts import Taught, TextRow
from tercet.trace.words import END, UNKNOWN, Ids, hashes, words_of

LAYOUT = 2  # of the files, with the size of a group; another layout is another index
SHARD = 1 << 24  # words that are sorted at once: about half a gigabyte
GROUP = 32  # rows that are unpacked together when one of them is shown
SCHEMA = pa.schema(
    {"id": pa.string(), "source": pa.string(), "roles": pa.list_(pa.string()), "texts": pa.list_(pa.string())}
)
Say = Callable[[str], None]


class WordPlace(NamedTuple):
    """Where a word stands: `WordPlace(row=17, text=1, word=30)` is word 30 of the second text of row 17."""

    row: int
    text: int
    word: int


class TraceIndex:
    """An index on disk, mapped into memory."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.rows, self.num_words = int(about["rows"]), int(about["words"])
        self._known, self._numbers = np.load(folder / "known.npy"), np.load(folder / "numbers.npy")
        self._counts = np.load(folder / "counts.npy", mmap_mode="r")
        self._starts, self._row_of = np.load(folder / "starts.npy"), np.load(folder / "row_of.npy")
        options = pa.ipc.IpcReadOptions(use_threads=False)  # a row is small
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")), options=options)
        self.words, self.order = (_mapped(folder / name) for name in ("words.u32", "order.u32"))
        # Where each shard begins and ends; its part of `order` counts from where it begins.
        self.bounds = np.array(list(pairwise([0, *about["shards"]])), np.int64).reshape(-1, 2).T

    def numbers(self, words: Sequence[str]) -> Ids:
        """The numbers of words; UNKNOWN for those that no row has."""
        if not len(self._known):
            return np.full(len(words), UNKNOWN, np.uint32)
        distinct = {word: number for number, word in enumerate(dict.fromkeys(words))}
        wanted = hashes(distinct)
        at = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        found: Ids = np.where(self._known[at] == wanted, self._numbers[at], np.uint32(UNKNOWN))
        return found[np.fromiter(map(distinct.__getitem__, words), np.int64, len(words))]

    def counts(self, numbers: Ids) -> NDArray[np.int64]:
        """How often the word of each number stands in the rows."""
        known = numbers != UNKNOWN
        return np.where(known, self._counts[np.where(known, numbers, 0)], 0)

    def place(self, position: int) -> WordPlace:
        """Where the word at a position among all words stands."""
        text = int(np.searchsorted(self._starts, position, "right")) - 1
        row = self._row_of[text]  # of the array's own type, else all of it would be converted
        return WordPlace(int(row), text - int(np.searchsorted(self._row_of, row)), position - int(self._starts[text]))

    def row(self, number: int) -> TextRow:
        """A row with its texts."""
        group = self._reader.get_batch(number // GROUP)
        found = group.slice(number % GROUP, 1).to_pylist()[0]
        return TextRow(found["id"], found["source"], found["roles"], found["texts"])


def opened(store: Store, table: Taught, say: Say = lambda _text: None) -> TraceIndex:
    """The index of a table, made where it is missing or damaged; `say` is told when it has to be made."""
    name = hashlib.sha256(f"{LAYOUT}\n{table.artifact.record['digest']}\n{table.file}".encode()).hexdigest()[:32]
    folder = store.cache / "trace" / name
    with store.lock("trace", name, lambda who: say(f"waiting for process {who}, which makes this index")):
        if (about := _whole(folder, store.cache)) is None:
            if folder.exists():
                say(f"{folder} is damaged; it is made again")
            say(f"making the index of {table.artifact.path.name}/{table.file}")
            about = _make(folder, texts.read(table.path), store.cache)
    return TraceIndex(folder, about)


def _whole(folder: Path, cache: Path) -> dict[str, Any] | None:
    """What an index says of itself, if all its files are as they were written."""
    try:
        about = json.loads(unseal(folder.with_suffix(".json")))
        intact = remembered_digest(folder, plain_files(folder), cache) == about["digest"]
    except (OSError, ValueError):  # also a link, or no folder
        return None
    return about if intact else None


def _make(folder: Path, rows: Iterable[TextRow], cache: Path) -> dict[str, Any]:
    """Build an index beside its place, then rename it there. Hold its lock meanwhile."""
    draft = folder.with_name(f".{folder.name}")
    with disk_errors(folder):
        no_link(folder.parent)
        for stale in (draft, folder):  # a killed build's, and a damaged index
            _remove(stale)
        make_folder(draft)
        try:
            about = build(draft, rows)
            about["digest"] = remembered_digest(draft, plain_files(draft), None)
            sync_tree(draft)
            draft.rename(folder)
        finally:
            _remove(draft)
        remember(folder, about["digest"], cache)
        seal(folder.with_suffix(".json"), json.dumps(about))
    return about


def _remove(path: Path) -> None:
    """Delete a folder of the cache, or whatever stands there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        set_writable(path, writable=True)
        shutil.rmtree(path)


def build(folder: Path, rows: Iterable[TextRow]) -> dict[str, Any]:
    """Write the files of an index into an empty folder; its number of rows and words, and where its shards end."""
    writing = Writing(folder)
    with (
        writing,
        pa.ipc.new_file(folder / "rows.arrow", SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as table,
    ):
        rows = iter(rows)
        while group := list(islice(rows, GROUP)):
            table.write_batch(pa.record_batch([list(column) for column in zip(*group, strict=True)], schema=SCHEMA))
            for row in group:
                writing.add(row.texts)
    return writing.about


class Writing:
    """The words of an index as they are read; one thread sorts a shard while the next one is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vocabulary: defaultdict[str, int] = defaultdict(count(END + 1).__next__)
        self.words, self.starts, self.row_of, self.ends = array("I"), array("q"), array("I"), array("q")
        self.rows, self.counts = 0, np.zeros(1, np.int64)
        self.pool, self.sorting = ThreadPoolExecutor(1), deque[Future[None]]()
        self.files = [open(folder / name, "wb") for name in ("words.u32", "order.u32")]  # noqa: SIM115

    def add(self, row: Sequence[str]) -> None:
        """The texts of the next row."""
        begin = self.ends[-1] if self.ends else 0
        for text in row:
            self.starts.append(begin + len(self.words))
            self.row_of.append(self.rows)
            self.words.extend(map(self.vocabulary.__getitem__, words_of(text)))
            self.words.append(END)
        self.rows += 1
        if len(self.words) >= SHARD:
            self._shard()

    def _shard(self) -> None:
        """Have the words so far sorted, when those before them are."""
        words = np.frombuffer(self.words, np.uint32)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(words))
        self.words = array("I")
        while self.sorting:
            self.sorting.popleft().result()
        self.sorting.append(self.pool.submit(self._sort, words))

    def _sort(self, words: Ids) -> None:
        counts = np.bincount(words, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        for file, values in zip(self.files, (words, suffixes(words)), strict=True):
            file.write(values.data)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.words:
            self._shard()
        self.pool.shutdown(cancel_futures=kind is not None)
        for file in self.files:
            file.close()
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        """Write what needs all words."""
        while self.sorting:
            self.sorting.popleft().result()
        known = hashes(self.vocabulary)
        order = np.argsort(known)
        tables: dict[str, NDArray[Any]] = {"known": known[order], "numbers": (order + END + 1).astype(np.uint32)}
        tables |= {"counts": self.counts, "starts": np.array(self.starts), "row_of": np.array(self.row_of)}
        for name, values in tables.items():
            np.save(self.folder / f"{name}.npy", values)

    @property
    def about(self) -> dict[str, Any]:
        """What an index says of itself."""
        return {"rows": self.rows, "words": sum(self.ends[-1:]) - len(self.starts), "shards": list(self.ends)}


def suffixes(words: Ids) -> Ids:
    """Where the suffixes of some words begin, in their order: three bytes a word, as libdivsufsort sorts bytes."""
    from pydivsufsort import divsufsort  # loading it takes 12 MB, and most traces find their index made

    if words.max(initial=0) >= 1 << 24:
        raise ValueError("an index holds at most 16 million different words")
    plain = np.ascontiguousarray(words.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]).reshape(-1)
    found = divsufsort(plain)
    return (found[found % 3 == 0] // 3).astype(np.uint32)


def _mapped(file: Path) -> Ids:
    """Numbers in a file, which may be empty."""
    return np.asarray(np.memmap(file, np.uint32, "r")) if file.stat().st_size else np.zeros(0, np.uint32)
