"""Duplicates of earlier rows: exact ones (a hash of the normalised text) and near ones (MinHash and exact Jaccard).

Near duplicates (Broder 1997; banding after Leskovec, Rajaraman & Ullman, ch. 3): a text is the set of its 5-grams of
words and signs (x < 0 is not x > 0). Its smallest hashes under many permutations, joined in bands, propose earlier
texts that may be alike; the sets decide. A row is removed when its Jaccard similarity to an earlier row that stays
reaches the threshold. So no removal is wrong, the first of a cluster stays, and a second pass removes nothing. Beware
of maths: of two long problems that differ in one number, the second is removed at 0.8.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from tercet.data.disk_list import DiskList, batched
from tercet.data.filters import Finding, split_words
from tercet.data.process_pool import ProcessPool
from tercet.rows import Row, Unpaired

Hashes = npt.NDArray[np.uint64]
Shingles = frozenset[tuple[str, ...]]

_CHUNK = 256  # texts hashed together; no result depends on it
_MISSED = 0.01  # the greatest chance that the bands miss a pair that is exactly at the threshold
_LATE = 1 << 16  # keys in the dictionary before they are sorted into an array, some 10 MB
_KNOWN = 1 << 19  # words whose hashes are remembered at a time, some 100 MB


@dataclass(frozen=True)
class Near:
    """How near duplicates are found. `words` (or signs) make a shingle; more `permutations` are slower and surer."""

    threshold: float = 0.8
    words: int = 5
    permutations: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and self.words >= 1 and self.permutations >= 1):
            raise ValueError(f"expected 0 < threshold <= 1, words >= 1 and permutations >= 1, got {self}")

    @property
    def bands(self) -> tuple[int, int]:
        """Bands and rows per band: the widest bands that miss a pair at the threshold once in a hundred times.

        Two texts of similarity s share a band with probability 1 - (1 - s^rows)^bands. Where no width is good enough
        the bands are one row wide.
        """
        for rows in range(self.permutations, 0, -1):
            bands = self.permutations // rows
            if (1 - self.threshold**rows) ** bands <= _MISSED:
                return bands, rows
        return self.permutations, 1


@dataclass(frozen=True)
class Twin:
    """The earlier text that a near duplicate is like: its number in the input, and their Jaccard similarity."""

    number: int
    similarity: float


def text_of(row: Row) -> str:
    """The compared text of a row: the turns before the answer, each with its role; of an unpaired answer all turns."""
    turns = row.messages if isinstance(row, Unpaired) else row.prompt
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


class Seen:
    """Numbers by 64-bit keys, 16 bytes each: the newest in a dictionary, the rest in a few sorted arrays."""

    def __init__(self) -> None:
        self._late: dict[int, int] = {}
        self._runs: list[tuple[Hashes, Hashes]] = []

    def get(self, key: int) -> int | None:
        """The number that was added with this key."""
        if key in self._late:
            return self._late[key]
        for keys, numbers in self._runs:
            place = int(np.searchsorted(keys, np.uint64(key)))
            if place < len(keys) and int(keys[place]) == key:
                return int(numbers[place])
        return None

    def add(self, key: int, number: int) -> None:
        """Remember a key that is not there yet."""
        self._late[key] = number
        if len(self._late) < _LATE:
            return
        run = _sorted(np.fromiter(self._late, np.uint64), np.fromiter(self._late.values(), np.uint64))
        self._late.clear()
        # Arrays of equal size are merged, so their sizes double and a lookup reads only a few of them.
        while self._runs and len(self._runs[-1][0]) <= len(run[0]):
            keys, numbers = self._runs.pop()
            run = _sorted(np.concatenate([keys, run[0]]), np.concatenate([numbers, run[1]]))
        self._runs.append(run)


class Exact:
    """A rule against prompts seen before, once normalised; the first one stays. Unpaired answers are part of theirs.

    24 bytes a row; the names of rows wait on disk. A key has 64 bits: among a million different texts two are taken
    for one with a chance of 1 in 37 million.
    """

    def __init__(self) -> None:
        self._seen = Seen()
        self._names = DiskList[str]()

    def __call__(self, row: Row) -> Finding | None:
        """The finding names the row that came first."""
        key, same = row_key(row), "prompt"
        if isinstance(row, Unpaired):  # a prompt may have good and bad answers, and several of each
            key, same = key_of(f"{key} {row.good} {row.messages[-1]}"), "prompt, answer and label"
        first = self._seen.get(key)
        if first is not None:
            return Finding(f"same {same} as {self._names[first]}", row.prompt[-1].content)
        self._seen.add(key, self._names.append(row.id))
        return None


def row_key(row: Row) -> int:
    """64 bits of a row's prompt without what the eye hardly sees: compatibility forms, case, amounts of white space."""
    turns = ((turn.role, unicodedata.normalize("NFKC", turn.content).casefold().split()) for turn in row.prompt)
    return key_of("\x1e".join(f"{role}\x1f{' '.join(words)}" for role, words in turns))


def key_of(text: str) -> int:
    """64 bits of a text's hash (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def near_duplicates(
    read: Callable[[], Iterable[str]], near: Near | None = None, *, workers: int = 1
) -> dict[int, Twin]:
    """The texts that are removed, by their number in the input, with the text each is like. `workers` changes nothing.

    `read` gives the texts, and is called twice. Memory: 8 bytes x bands for each text (168 with the defaults), one band
    sorted at a time (17 more), and the shingles of texts that share a band and stay (some 600 bytes a word). Time grows
    with the square of the number of texts that are alike but below the threshold. Blank texts are never alike.
    """
    near = near or Near()
    keys = band_keys(read(), near, workers=workers)
    shared = _shared(keys)
    suspects: npt.NDArray[np.bool_] = np.any(shared, axis=1)
    buckets: dict[tuple[int, int], list[int]] = {}
    kept: dict[int, Shingles] = {}
    gone: dict[int, Twin] = {}
    for number, text in enumerate(read()):
        if not suspects[number]:
            continue
        mine = shingles(text, near.words)
        places = [(int(band), int(keys[number, band])) for band in np.flatnonzero(shared[number])]
        rivals = sorted({rival for place in places for rival in buckets.get(place, ())})
        twin = next(_twins(mine, rivals, kept, near.threshold), None)
        if twin:
            gone[number] = twin
            continue
        kept[number] = mine
        for place in places:
            buckets.setdefault(place, []).append(number)
    return gone


def band_keys(texts: Iterable[str], near: Near, *, workers: int = 1) -> Hashes:
    """[texts, bands]: equal keys in a column say that two texts may be alike; 0 stands for white space."""
    with ProcessPool(partial(_chunk_keys, near=near), workers) as pool:
        parts = list(pool.map(batched(texts, _CHUNK)))
    return np.concatenate(parts) if parts else np.zeros((0, near.bands[0]), np.uint64)


def shingles(text: str, words: int) -> Shingles:
    """The set of a text's n-grams of words and signs; a shorter text is one shingle, white space has none."""
    found = split_words(text, signs=True)
    if len(found) <= words:
        return frozenset([tuple(found)] if found else [])
    return frozenset(zip(*(found[i:] for i in range(words)), strict=False))


def jaccard(one: Shingles, other: Shingles) -> float:
    """The size of the intersection over the size of the union; 0 when both are empty."""
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0


def _sorted(keys: Hashes, numbers: Hashes) -> tuple[Hashes, Hashes]:
    order = np.argsort(keys)
    return keys[order], numbers[order]


def _twins(mine: Shingles, rivals: Sequence[int], kept: dict[int, Shingles], threshold: float) -> Iterator[Twin]:
    for rival in rivals:
        small, large = sorted((len(mine), len(kept[rival])))
        if small >= threshold * large:  # similarity is at most small / large
            similarity = jaccard(mine, kept[rival])
            if similarity >= threshold:
                yield Twin(rival, similarity)


def _shared(keys: Hashes) -> npt.NDArray[np.bool_]:
    """[texts, bands]: whether another text has the same key in this band."""
    shared = np.zeros(keys.shape, np.bool_)
    for band in range(keys.shape[1]):
        order = np.argsort(keys[:, band], kind="stable")
        column = keys[order, band]
        same = (column[1:] == column[:-1]) & (column[1:] != 0)
        shared[order[1:], band] |= same
        shared[order[:-1], band] |= same
    return shared


def _chunk_keys(texts: Sequence[str], near: Near) -> Hashes:
    """The band keys of some texts: one vector of shingle hashes for all of them, one pass for each permutation."""
    bands, rows = near.bands
    hashes, starts = _shingle_hashes(texts, near.words)
    keys = np.zeros((len(texts), bands), np.uint64)
    if not len(hashes):
        return keys
    full = np.flatnonzero(np.diff(starts))
    multiply, add = _permutations(near)
    for band in range(bands):
        key = np.full(len(full), 1, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            least = np.minimum.reduceat(hashes * multiply[row] + add[row], starts[full])
            key = _mixed(key * np.uint64(0x9E3779B97F4A7C15) ^ least)
        keys[full, band] = np.maximum(key, 1)
    return keys


def _shingle_hashes(texts: Sequence[str], words: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The hashes of all shingles, text after text, and where each text's begin (one more number marks the end)."""
    found = [split_words(text, signs=True) for text in texts]
    sizes = np.array([len(each) for each in found], np.int64)
    padded = np.maximum(sizes, np.where(sizes > 0, words, 0))
    ids = np.zeros(padded.sum() + words, np.uint64)
    ends = np.cumsum(padded)
    for start, each in zip(ends - padded, found, strict=True):
        ids[start : start + len(each)] = [_word_hash(word) for word in each]
    counts = np.maximum(padded - words + 1, 0)
    total = np.zeros(ids.size - words, np.uint64)
    for offset in range(words):
        total = _mixed(total ^ ids[offset : offset + total.size])
    first = np.repeat(ends - padded, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return total[first + np.arange(counts.sum()) - np.repeat(starts[:-1], counts)], starts


@lru_cache(maxsize=_KNOWN)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _permutations(near: Near) -> tuple[Hashes, Hashes]:
    """Odd factors and summands of the functions x -> a x + b (mod 2^64), drawn from the seed."""
    random = np.random.Generator(np.random.PCG64(near.seed))
    drawn: Hashes = random.integers(0, 2**64, (2, near.permutations), np.uint64)
    return drawn[0] | np.uint64(1), drawn[1]


def _mixed(x: Hashes) -> Hashes:
    """A bijection of 64-bit numbers after which every bit depends on every other (the finisher of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
