"""Token ids and masks of a stage's rows, made once and kept by content.

`<store>/.cache/tokens/<key>.arrow` holds them flat; the key is the hash of the rows' bytes, the tokenizer with its
template, and the rule that made trees of the rows. One rank (or one of several runs) writes it while the others wait;
all of them map it into memory, so the pages are shared and a tree exists only while a step uses it.
Shape suffixes: R rows, S segments of a tree (its trunk, then its leaves; 0 where a row has fewer than others).
"""

from __future__ import annotations

import gc
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import tokenizers
import transformers

from tercet import machine
from tercet.journal import intact, replacing, stamp
from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree
from tercet.models.turns import num_thoughts
from tercet.recipe import OfflineSpec
from tercet.rows import pair_from, stream_rows
from tercet.rows_file import read_file
from tercet.store import Context, disk_errors, source_digest
from tercet.train.pieces import in_pieces

LAYOUT = "1"  # of the file; another layout is another key
PART = 1024  # rows of one record batch
COLUMNS = {"name": pa.string(), "source": pa.string(), "sizes": pa.list_(pa.int32())}
SCHEMA = pa.schema(COLUMNS | {"ids": pa.list_(pa.int32()), "mask": pa.list_(pa.uint8())})

NamedTree = tuple[str, str, Tree]  # row id, source, tree


class Rule(NamedTuple):
    """How stored rows become trees. A changed rule needs another name: it is hashed."""

    name: str
    trees: Callable[[Chat, Path, int], Iterator[NamedTree]]  # (chat, file of rows, threads)


class Tokens:
    """A token file, mapped into memory."""

    def __init__(self, file: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._parts = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._flat = [[_mapped(part.column(name)) for name in ("ids", "mask")] for part in self._parts]
        sizes = [_mapped(part.column("sizes")) for part in self._parts]
        widest = max((int(np.diff(begins).max(initial=2)) for begins, _ in sizes), default=2)
        self.sizes_RS = np.concatenate([_padded(*one, widest) for one in sizes] or [np.zeros((0, 2), np.int32)])
        self._ragged = any(len(flat) < len(part) * widest for (_, flat), part in zip(sizes, self._parts, strict=True))
        codes: dict[str, int] = {}
        names = chain.from_iterable(part.column("source").to_pylist() for part in self._parts)
        self.source_R = np.fromiter((codes.setdefault(name, len(codes)) for name in names), np.int64)
        self.sources = list(codes)

    def __len__(self) -> int:
        """Rows."""
        return len(self.sizes_RS)

    @property
    def num_split(self) -> int:
        """Rows that take more than one text: their template rewrites earlier turns (of rows that are conversations)."""
        return int((self.sizes_RS[:, 2:] > 0).any(axis=1).sum())

    def name(self, row: int) -> str:
        """The id of a row."""
        return str(self._parts[row // PART].column("name")[row % PART])

    def tree(self, row: int) -> Tree:
        """The tree of a row, as its rule made it."""
        (begins, ids), (_, mask) = self._flat[row // PART]
        own = slice(begins[row % PART], begins[row % PART + 1])
        token_ids, trained = ids[own].tolist(), mask[own].view(bool).tolist()
        sizes_S = self.sizes_RS[row]
        ends = np.cumsum(np.trim_zeros(sizes_S, "b") if self._ragged else sizes_S).tolist()
        leaves = [Leaf(token_ids[a:b], trained[a:b]) for a, b in pairwise(ends)]
        return Tree(token_ids[: ends[0]], leaves)


def prepare(path: Path, chat: Chat, rule: Rule, ctx: Context) -> Tokens:
    """The trees of `path`'s rows by `rule`: from the cache of the stage's store, or made and kept there."""
    store = ctx.store
    cache = store.cache
    versions = (tokenizers.__version__, transformers.__version__)
    parts = (LAYOUT, rule.name, source_digest(path, cache), chat.digest, *versions)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    file = cache / "tokens" / f"{key}.arrow"
    threads = ctx.recipe.placement.threads or machine.cores()
    with store.lock("tokens", key, lambda _who: None):
        if not intact(file):
            if file.exists():
                ctx.track.note(f"{file} is damaged, or an older version kept it; it is made again")
            write(file, in_pieces(partial(_made, rule, chat), path, PART, ctx.recipe.placement, threads))
    return Tokens(file)


def _made(rule: Rule, chat: Chat, path: Path, threads: int) -> Iterator[pa.RecordBatch]:
    return batches(rule.trees(chat, path, threads))


def batches(trees: Iterator[NamedTree]) -> Iterator[pa.RecordBatch]:
    """What a token file holds, `PART` rows in memory at a time."""
    while part := list(islice(trees, PART)):
        yield _record_batch(part)


def write(file: Path, parts: Iterator[pa.RecordBatch]) -> None:
    """Write a token file by rename. Hold a lock on `file` meanwhile."""
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        for stale in file.parent.glob(f".{file.name}.*"):  # of a process that was killed
            stale.unlink()
        gc.freeze()  # searching what libraries keep for garbage took a sixth of the time
        try:
            with replacing(file) as begun, open(begun, "wb") as stream, pa.ipc.new_file(stream, SCHEMA) as writer:
                for part in parts:
                    writer.write_batch(part)
            stamp(file)
        finally:
            gc.unfreeze()


def stored(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a stage's table with its name for error messages; few are in memory at a time."""
    return ((f"{path}: row {number}", value) for number, value in enumerate(read_file(path)))


def dropped_thoughts(spec: OfflineSpec, path: Path) -> dict[str, float]:
    """`{"dropped_thoughts": 3.0}`: how many thoughts of its rows a stage leaves out; nothing where it leaves out none.

    What both sides of a pair share counts once.
    """
    if spec.thinking == "keep":
        return {}
    if path.name == "pairs.parquet":
        pairs = (pair_from(value, name) for name, value in stored(path))
        number = sum(num_thoughts(pair.chosen) + num_thoughts(pair.rejected[-1:]) for pair in pairs)
    else:
        number = sum(num_thoughts(row.messages) for row in stream_rows(path))
    return {"dropped_thoughts": float(number)} if number else {}


def _mapped(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each list begins, and all values, without a copy. (`to_numpy` would first import pandas.)"""
    values, kind = lists.values, np.dtype(str(lists.type.value_type))
    flat = np.frombuffer(values.buffers()[1], kind, len(values)) if len(values) else np.zeros(0, kind)
    return np.frombuffer(lists.offsets.buffers()[1], np.int32, len(lists) + 1), flat


def _padded(begins: np.ndarray, sizes: np.ndarray, width: int) -> np.ndarray:
    """The sizes of each row's segments, filled up with zeros where rows have different numbers of them."""
    counts_R = np.diff(begins)
    if (counts_R == width).all():
        return sizes.reshape(len(counts_R), width)
    found_RS = np.zeros((len(counts_R), width), dtype=sizes.dtype)
    found_RS[np.arange(width) < counts_R[:, None]] = sizes
    return found_RS


def _record_batch(part: Sequence[NamedTree]) -> pa.RecordBatch:
    pieces = [(tree.trunk, *(leaf.token_ids for leaf in tree.leaves)) for _, _, tree in part]
    masks = [([False] * len(tree.trunk), *(leaf.mask for leaf in tree.leaves)) for _, _, tree in part]
    sizes = [[len(piece) for piece in row] for row in pieces]
    columns = [_texts([name for name, _, _ in part]), _texts([source for _, source, _ in part])]
    columns.append(_lists(_joined("i", sizes), list(map(len, sizes))))
    lengths = list(map(sum, sizes))
    columns.append(_lists(_joined("i", chain.from_iterable(pieces)), lengths))
    columns.append(_lists(np.frombuffer(b"".join(map(bytes, chain.from_iterable(masks))), np.uint8), lengths))
    return pa.record_batch(columns, schema=SCHEMA)


def _lists(values: np.ndarray, lengths: list[int]) -> pa.ListArray:
    """An Arrow array of lists; `values` are theirs, one after another."""
    return pa.ListArray.from_arrays(_numbers(np.cumsum([0, *lengths]).astype(np.int32)), _numbers(values))


def _joined(kind: str, pieces: Iterable[Sequence[int]]) -> np.ndarray:
    """All numbers in a row, through the standard library's arrays, which read lists twice as fast as numpy does."""
    found = array(kind)
    for piece in pieces:
        found.fromlist(list(piece))
    return np.frombuffer(found, np.int32) if found else np.zeros(0, np.int32)


def _numbers(values: np.ndarray) -> pa.Array:
    """Numbers as an Arrow array. (`pa.array` would first import pandas.)"""
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _texts(values: list[str]) -> pa.Array:
    data = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, data)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(data), pa.py_buffer(ends), pa.py_buffer(b"".join(data)))
