"""Words as numbers and n-grams as hashes: the lookup of decontamination, millions of tokens a second.

The vocabulary holds the benchmark's words alone: every other word is UNKNOWN, and no n-gram with it can match.
Documents stand end to end in one array, each closed by `END`. The n-grams of a whole batch are hashed at once. A table
of bits rules out nearly every n-gram that no benchmark has, a binary search finds the places of the others, and in the
end the words themselves are compared, so that two n-grams with one hash are never confused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEPARATORS = ' ,.?!:;()"-\n\\'
UNKNOWN, GAP, END = 0, -1, -2  # a word that no benchmark has; the empty text between two separators; a document's end

Numbers = NDArray[np.int64]

_SPACES = str.maketrans(dict.fromkeys(SEPARATORS, " "))
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_SPACE = 32
_LOW = np.arange(256, dtype=np.uint8)  # each byte in lower case, separators as spaces
_LOW[ord("A") : ord("Z") + 1] += 32
_LOW[[ord(separator) for separator in SEPARATORS]] = _SPACE
_BITS_EACH = 16  # bits of the table for each n-gram: one unknown n-gram in sixteen gets past it
_AT_ONCE = 1 << 21  # most pairs of places that are compared in one go, and twice the tokens that are numbered


def analyse(text: str) -> list[str]:
    """The tokens of a text: split on `SEPARATORS`, lower-cased."""
    return list(filter(None, _pieces(text)))


def vocabulary() -> dict[str, int]:
    """An empty vocabulary; the numbers of words start at 2."""
    return {"": GAP, " ": END}


@dataclass(frozen=True)
class WordIds:
    """Documents as word numbers: `ids` (tokens,) with END after each document, `ends` (documents,) where it stands."""

    ids: Numbers
    ends: Numbers

    @property
    def lengths(self) -> Numbers:
        """How many words each document has, known or not (documents,)."""
        return np.diff(self.ends, prepend=-1) - 1

    def of(self, document: int) -> Numbers:
        """The words of one document."""
        return self.ids[self.ends[document - 1] + 1 if document else 0 : self.ends[document]]


def encode(documents: Iterable[str], words: dict[str, int], *, learn: bool = False) -> WordIds:
    """Documents in the numbers of `words`; with `learn` new words are added, else they are UNKNOWN."""
    pieces = [np.empty(0, np.int64)]
    tokens: list[str] = []
    for text in documents:
        tokens += _pieces(text)
        tokens.append(" ")  # no piece holds a space
        if len(tokens) >= _AT_ONCE >> 1:
            pieces.append(_numbers(tokens, words, learn))
            tokens = []
    pieces.append(_numbers(tokens, words, learn))
    ids = np.concatenate(pieces)
    return WordIds(ids, np.flatnonzero(ids == END))


class WordHashes:
    """The numbers of words by hashes of their bytes, whole arrays at once: several times as fast as a dictionary.

    A known word always gets its number; an unknown one gets the number of a known word once in 2^64. So a search of
    these numbers misses nothing, and documents that it finds must be read again by `encode`. Where two words of the
    benchmark have one hash, `unique` is False and this class must not be used.
    """

    def __init__(self, words: dict[str, int]) -> None:
        """Put the words of a vocabulary in a table by their hashes."""
        named = [word for word, number in words.items() if number > 0]
        keys, marks = self._hashed([_bytes(word) for word in [*named, "a"]])  # one at least, so that there is a table
        keys = np.delete(keys, marks)[: len(named) or 1]
        self._numbers = np.array([words[word] for word in named] or [UNKNOWN], np.int64)
        order = np.argsort(keys)
        self._keys, self._numbers = keys[order], self._numbers[order]
        self.unique = len(keys) == len(self._numbers) and bool(np.all(self._keys[1:] > self._keys[:-1]))
        bits = max(10, (4 * len(keys)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._first = np.searchsorted(self._keys >> self._shift, np.arange((1 << bits) + 1, dtype=np.uint64))
        self._deepest = int(np.diff(self._first).max())

    def encode(self, documents: Iterable[str]) -> WordIds:
        """As `encode` without `learn`, save for unknown words that have a known word's hash."""
        keys, ends = self._hashed([_bytes(text) for text in documents])
        # The top bits of a hash select a slot of few known words; every word is compared with them one after another.
        slots = (keys >> self._shift).astype(np.int64)
        first, sizes = self._first[slots], self._first[slots + 1] - self._first[slots]
        ids = np.full(len(keys), UNKNOWN, np.int64)
        for step in range(self._deepest):
            open_ = np.flatnonzero(sizes > step)
            at = first[open_] + step
            same = self._keys[at] == keys[open_]
            ids[open_[same]] = self._numbers[at[same]]
        ids[ends] = END
        return WordIds(ids, ends)

    def _hashed(self, texts: Sequence[bytes]) -> tuple[NDArray[np.uint64], Numbers]:
        """The hash of every word and of the mark after each text, mixed; and where those marks stand."""
        raw = np.frombuffer(b"".join(part for text in texts for part in (b" ", text, b" \xff ")), np.uint8)
        low = _LOW[raw]
        inside = np.zeros(len(low) + 1, np.bool_)
        inside[1:] = low != _SPACE
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, stops = edges[::2], edges[1::2]
        # One running sum of byte · base^place: a word's hash is the difference over it, divided by base^start.
        power, inverse = _powers(1 << max(16, len(low).bit_length()))
        sums = np.zeros(len(low) + 1, np.uint64)
        np.cumsum((low.astype(np.uint64) + np.uint64(1)) * power[: len(low)], out=sums[1:])
        keys = (sums[stops] - sums[starts]) * inverse[starts]
        keys = (keys ^ (keys >> np.uint64(32))) * _SPREAD
        return keys, np.flatnonzero(raw[starts] == 0xFF)


def hashes(ids: Numbers, n: int) -> NDArray[np.uint64]:
    """The hash of the n-gram at each place (places - n + 1,): the sum of ids[i + k] · base^(n - 1 - k) modulo 2^64."""
    size = max(0, len(ids) - n + 1)
    wide = ids.astype(np.uint64)
    found = np.zeros(size, np.uint64)
    for k in range(n):
        found *= _BASE
        found += wide[k : k + size]
    return found


class Grams:
    """The n-grams at some places of a benchmark, ready to be found in other documents."""

    def __init__(self, ids: Numbers, places: Numbers, n: int) -> None:
        """Index the n-grams of `ids` that start at `places`; none of them may reach over an END."""
        self.n = n
        self._ids = ids
        keys = hashes(ids, n)[places]
        order = np.argsort(keys, kind="stable")
        self._places = places[order]
        self._keys, self._first, self._counts = np.unique(keys[order], return_index=True, return_counts=True)
        bits = max(10, (len(keys) * _BITS_EACH - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        present = np.zeros(1 << bits, np.bool_)
        present[self._slots(keys)] = True
        self._bits = np.packbits(present, bitorder="little")

    def find(self, ids: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        """Places in `ids` and in the benchmark that start the same n-gram: pairs in pieces of bounded size."""
        keys = hashes(ids, self.n)
        slots = self._slots(keys)
        bit = (slots & np.uint64(7)).astype(np.uint8)
        at = np.flatnonzero((self._bits[slots >> np.uint64(3)] >> bit) & 1)
        rank = np.minimum(np.searchsorted(self._keys, keys[at]), len(self._keys) - 1)
        known = self._keys[rank] == keys[at]
        for here, candidates in _each(at[known], self._first[rank[known]], self._counts[rank[known]]):
            there = self._places[candidates]
            same = np.ones(len(here), np.bool_)  # equal hashes are not always equal words
            for k in range(self.n):
                same &= ids[here + k] == self._ids[there + k]
            yield here[same], there[same]

    def _slots(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        found: NDArray[Any] = (keys * _SPREAD) >> self._shift
        return found


class PhraseTable:
    """Groups of phrases of a benchmark; of each group one is looked for, by its word that is rarest in the benchmark.

    No n-gram can find a phrase that is shorter. Of a longer one the first `n` words are looked for.
    """

    def __init__(self, ids: Numbers, starts: Numbers, lengths: Numbers, groups: Numbers, n: int) -> None:
        """Index phrases of `ids` (phrases,) that are at least one word long, by groups (phrases,)."""
        words = max(0, int(ids.max(initial=0))) + 1
        often = np.bincount(ids[ids > 0], minlength=words)
        lengths = np.minimum(lengths, n)
        rarest, offsets = np.full(len(starts), len(ids) + 1), np.zeros(len(starts), np.int64)
        for k in range(n):
            inside = np.flatnonzero(k < lengths)
            rarer = inside[often[ids[starts[inside] + k]] < rarest[inside]]
            rarest[rarer], offsets[rarer] = often[ids[starts[rarer] + k]], k
        order = np.lexsort((rarest, groups))
        chosen = order[np.flatnonzero(np.diff(groups[order], prepend=-1))]
        anchors = ids[starts[chosen] + offsets[chosen]]
        chosen = chosen[order := np.argsort(anchors, kind="stable")]
        self._ids, self._groups = ids, groups[chosen]
        self._starts, self._lengths, self._offsets = starts[chosen], lengths[chosen], offsets[chosen]
        self._longest = int(self._lengths.max(initial=0))
        # END and GAP are negative: as indices they mean the last places, which no word owns.
        self._counts = np.append(np.bincount(anchors[order], minlength=words), [0, 0])
        self._first = np.cumsum(self._counts) - self._counts

    def find(self, ids: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
        """Places in `ids` where a phrase starts that is looked for, and its group."""
        at = np.flatnonzero(self._counts[ids])
        for here, found in _each(at, self._first[ids[at]], self._counts[ids[at]]):
            here = here - self._offsets[found]
            fits = np.flatnonzero((here >= 0) & (here + self._lengths[found] <= len(ids)))
            here, found = here[fits], found[fits]
            for k in range(self._longest):
                open_ = k < self._lengths[found]
                same = ~open_
                same[open_] = ids[here[open_] + k] == self._ids[self._starts[found[open_]] + k]
                here, found = here[same], found[same]
            yield here, self._groups[found]


def _each(at: Numbers, first: Numbers, counts: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Every place `at` with each of its candidates, which are `counts` from `first` on: in pieces of bounded size."""
    reach = np.cumsum(counts)
    start = 0
    while start < len(at):
        done = reach[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(reach, done + _AT_ONCE, "right")))
        some = counts[start:stop]
        here = np.repeat(at[start:stop], some)
        nth = np.arange(len(here)) - np.repeat(np.cumsum(some) - some, some)
        yield here, np.repeat(first[start:stop], some) + nth
        start = stop


def _numbers(tokens: list[str], words: dict[str, int], learn: bool) -> Numbers:
    if learn:
        for token in tokens:
            words.setdefault(token, len(words))
    raw = np.fromiter(map(words.get, tokens, repeat(UNKNOWN)), np.int64, len(tokens))
    return raw[raw != GAP]


def _bytes(text: str) -> bytes:
    """A text whose words, cut at separators and lower-cased for ASCII, are those of `analyse`."""
    return text.encode() if text.isascii() else text.lower().encode("utf-8", "surrogatepass")


@lru_cache(maxsize=1)
def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of the base and of its inverse modulo 2^64, each (size,); the last size is remembered."""
    found = []
    for base in (_BASE, np.uint64(pow(int(_BASE), -1, 1 << 64))):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        found.append(np.cumprod(factors))
    return found[0], found[1]


def _pieces(text: str) -> list[str]:
    """The texts between separators, in lower case; empty where two separators meet."""
    if text.isascii():
        return text.translate(_SPACES).lower().split(" ")
    for separator in SEPARATORS[1:]:  # the faster way for other text
        text = text.replace(separator, " ")
    return text.lower().split(" ")
