"""Which training rows copy a benchmark: the 8-gram rule of the paper (§3.2).

The benchmark is indexed once and the corpus is streamed past it, so memory depends on the benchmark alone. Each user
turn of a row is one document. For a benchmark field of L tokens and a document d, M_d is the set of the field's
positions that lie in an n-gram which d contains too:

    score(field, d) = |M_d| / L      coverage(item, d) = mean of score over the item's fields

A field shorter than n tokens has no n-gram and scores 0; a field without any token (a question that has no passage)
is no field. A row's coverage of an item is the largest over its documents, and the row copies the item when that is
strictly above the threshold. In exact mode a field scores 1 when d holds all of it as one phrase, however short, and a
row copies an item when one of its documents holds every field.

Two deliberate differences from the published scripts: both sides go through the same analyser (the scripts cut the
benchmark side with spaCy, which splits clitics and keeps punctuation as tokens, and so breaks n-grams that the corpus
side has), and the search is complete (the scripts ask a search engine for the first hundred hits of each n-gram).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tercet.data.ngrams import END, SEPARATORS, Grams, Numbers, WordHashes, WordIds, encode, vocabulary
from tercet.rows import RowError, read_table

Shown = Callable[[int, int, float], bool]  # whether the words are wanted that a row, or document, copies of an item

_WORD = re.compile(f"[^{re.escape(SEPARATORS)}]+")


@dataclass(frozen=True)
class BenchmarkItem:
    """One benchmark item. Example: `BenchmarkItem("words@1", "17", ("Ann has 3 pens and ...",))`."""

    task: str
    item: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """One benchmark item that a row copies: how much of it, and the longest copied run in the analyser's tokens."""

    item: BenchmarkItem
    coverage: float
    matched: str
    document: int = 0  # the row's text that copies
    field: int = 0  # the item's field where the longest copied run stands
    number: int = 0  # of the item in the index


@dataclass(frozen=True)
class _Shares:
    """What documents share with fields, sorted by document, then place; a part is one document and one field."""

    places: Numbers  # (n-grams,) where in the benchmark a shared n-gram starts
    parts: Numbers  # (parts + 1,) the first n-gram of each part, and their number
    documents: Numbers  # (parts,)
    fields: Numbers  # (parts,)
    covered: Numbers  # (parts,) tokens of the field


class Index:
    """The n-grams of a benchmark, ready to be looked up."""

    def __init__(self, items: Iterable[BenchmarkItem], n: int = 8, *, exact: bool = False) -> None:
        """Index `items` by their n-grams of `n` tokens, or by whole fields where `exact`."""
        if n < 1:
            raise ValueError(f"n-grams need at least one token, got n = {n}")
        self.items = tuple(items)
        self.n = n
        self.exact = exact
        self._words = vocabulary()
        every = [
            (number, which, text) for number, item in enumerate(self.items) for which, text in enumerate(item.fields)
        ]
        found = encode((text for _, _, text in every), self._words, learn=True)
        self._spelling = list(self._words)
        self._word_hashes = WordHashes(self._words)
        self._ids = found.ids
        self._ends = found.ends  # of every field; one without tokens owns no place
        self._starts = np.concatenate(([0], found.ends[:-1] + 1)) if every else found.ends
        self._lengths = self._ends - self._starts
        self._item_of = np.array([number for number, _, _ in every], np.int64)
        self._which = np.array([which for _, which, _ in every], np.int64)
        self._num_fields = np.bincount(self._item_of[self._lengths > 0], minlength=len(self.items))
        self._tables = [Grams(self._ids, places, length) for length, places in self._places() if len(places)]

    def hits(self, row_texts: Sequence[str], threshold: float = 0.5) -> list[Hit]:
        """The items that one row copies above `threshold`, in benchmark order; `row_texts` are the row's user turns."""
        return self.search([row_texts], threshold)[0][0]

    def search(
        self, rows: Sequence[Sequence[str]], threshold: float = 0.5, shown: Shown = lambda row, item, coverage: True
    ) -> tuple[list[list[Hit]], int]:
        """The items that each of some rows copies, and how many tokens were read; much faster than row by row.

        A hit's `matched` holds the copied words where `shown(row, item, coverage)`, else nothing.
        """
        documents = [text for texts in rows for text in texts]
        owner = [(number, place) for number, texts in enumerate(rows) for place in range(len(texts))]
        best: list[dict[int, Hit]] = [{} for _ in rows]
        if self.exact or not self._word_hashes.unique:
            suspects: Sequence[int] = range(len(documents))
            read = encode(documents, self._words)
            num_tokens = read.num_tokens
        else:
            # Word hashes are fast and miss nothing; the few documents that they find are read again exactly.
            hashed = self._word_hashes.encode(documents)
            num_tokens = hashed.num_tokens
            suspects = self._suspects(hashed, threshold)
            read = encode((documents[number] for number in suspects), self._words)

        def row_shown(document: int, item: int, coverage: float) -> bool:
            return shown(owner[suspects[document]][0], item, coverage)

        for number, hit in self._phrases(read) if self.exact else self._copies(read, threshold, row_shown):
            row, place = owner[suspects[number]]
            known = best[row].get(hit.number)
            if known is None or hit.coverage > known.coverage:
                best[row][hit.number] = Hit(hit.item, hit.coverage, hit.matched, place, hit.field, hit.number)
        return [[found[number] for number in sorted(found)] for found in best], num_tokens

    def _places(self) -> list[tuple[int, Numbers]]:
        """Which n-grams are indexed, by length: all, or the first of each field, which may be a short one."""
        if self.exact:
            head = np.minimum(self._lengths, self.n)
            return [(length, self._starts[head == length]) for length in range(1, self.n + 1)]
        rest = np.repeat(self._ends, self._lengths + 1) - np.arange(len(self._ids))  # tokens left in the field
        return [(self.n, np.flatnonzero(rest >= self.n))]

    def _shares(self, read: WordIds) -> _Shares:
        """Every n-gram that a document and a field share, grouped."""
        size = len(self._ids) + 1
        keys = [np.empty(0, np.int64)]  # a pair of document and place as one number
        for table in self._tables:
            for here, there in table.find(read.ids):
                keys.append(np.unique(np.searchsorted(read.ends, here) * size + there))
        documents, places = np.divmod(np.unique(np.concatenate(keys)), size)
        fields = np.searchsorted(self._ends, places)
        new = _changes(documents, fields)
        # An n-gram covers n tokens, or as many as there are until the next shared one of the same field begins.
        gains = np.full(len(places), self.n)
        gains[:-1][~new[1:]] = np.minimum(np.diff(places), self.n)[~new[1:]]
        firsts = np.flatnonzero(new)
        covered = np.add.reduceat(gains, firsts) if len(firsts) else gains
        return _Shares(places, np.append(firsts, len(places)), documents[firsts], fields[firsts], covered)

    def _copies(self, read: WordIds, threshold: float, shown: Shown) -> Iterable[tuple[int, Hit]]:
        """Documents and what they copy, by n-gram coverage."""
        shares = self._shares(read)
        if not len(shares.covered):
            return
        items = self._item_of[shares.fields]
        firsts, lasts, near = self._near(shares, items, threshold)
        for i in near:
            parts = range(firsts[i], lasts[i])
            number = int(items[firsts[i]])
            coverage = self._coverage(number, shares, parts)
            if coverage > threshold:
                document = int(shares.documents[firsts[i]])
                field, matched = self._longest_run(shares, parts) if shown(document, number, coverage) else (0, "")
                yield document, Hit(self.items[number], coverage, matched, field=field, number=number)

    def _suspects(self, read: WordIds, threshold: float) -> Sequence[int]:
        """The documents that may copy something."""
        shares = self._shares(read)
        if not len(shares.covered):
            return []
        firsts, _, near = self._near(shares, self._item_of[shares.fields], threshold)
        found: list[int] = np.unique(shares.documents[firsts[near]]).tolist()
        return found

    def _near(self, shares: _Shares, items: Numbers, threshold: float) -> tuple[Numbers, Numbers, Numbers]:
        """First and last part of each document and item, and which of these reach the threshold up to rounding."""
        firsts = np.flatnonzero(_changes(shares.documents, items))
        sums = np.add.reduceat(shares.covered / self._lengths[shares.fields], firsts)
        near = np.flatnonzero(sums / self._num_fields[items[firsts]] > threshold - 1e-9)
        return firsts, np.append(firsts[1:], len(items)), near

    def _coverage(self, number: int, shares: _Shares, parts: range) -> float:
        """Mean over the item's fields, correctly rounded: one half is never a little more than one half."""
        found = (Fraction(int(shares.covered[part]), int(self._lengths[shares.fields[part]])) for part in parts)
        return float(sum(found, Fraction(0)) / int(self._num_fields[number]))

    def _longest_run(self, shares: _Shares, parts: range) -> tuple[int, str]:
        """The longest unbroken stretch of covered places, and which of the item's fields it lies in."""
        best = (0, 0, 0)  # length, start, field
        for part in parts:
            places = shares.places[shares.parts[part] : shares.parts[part + 1]]
            cuts = np.flatnonzero(np.diff(places) > self.n) + 1
            for first, last in pairwise((0, *cuts.tolist(), len(places))):
                start, end = int(places[first]), int(places[last - 1]) + self.n
                if end - start > best[0]:
                    best = (end - start, start, int(shares.fields[part]))
        length, start, field = best
        return int(self._which[field]), self._text(start, start + length)

    def _phrases(self, read: WordIds) -> Iterable[tuple[int, Hit]]:
        """Documents and the items whose every field stands in them as one phrase."""
        held: dict[tuple[int, int], set[int]] = {}  # (document, item) -> fields
        for table in self._tables:
            for here, there in table.find(read.ids):
                documents, fields = np.searchsorted(read.ends, here), np.searchsorted(self._ends, there)
                for at, document, field in zip(here.tolist(), documents.tolist(), fields.tolist(), strict=True):
                    start, end = self._starts[field], self._ends[field]
                    if np.array_equal(read.ids[at : at + end - start], self._ids[start:end]):
                        held.setdefault((document, int(self._item_of[field])), set()).add(field)
        for (document, number), fields_held in sorted(held.items()):
            if len(fields_held) == self._num_fields[number]:
                longest = max(sorted(fields_held), key=lambda field: self._lengths[field])
                text = self._text(self._starts[longest], self._ends[longest])
                yield document, Hit(self.items[number], 1.0, text, field=int(self._which[longest]), number=number)

    def _text(self, start: int, end: int) -> str:
        return " ".join(self._spelling[number] for number in self._ids[start:end].tolist() if number != END)


def _changes(one: Numbers, other: Numbers) -> NDArray[np.bool_]:
    """Where a pair of numbers differs from the pair before it; the first always does."""
    new = np.ones(len(one), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return new


def read_benchmark(payload: Path, *, shots: bool = True) -> tuple[list[BenchmarkItem], frozenset[str]]:
    """The items of a benchmark artifact with the fields that rows must not copy, and which of its tasks are unseen.

    The worked examples of its prompts (`examples.parquet`, where there is one) come after the items and count under
    tasks of their own: `gsm8k@2:examples`; without `shots` they are left out.
    """
    cards, benchmark, examples = (payload / name for name in ("tasks.json", "benchmark.parquet", "examples.parquet"))
    known = json.loads(cards.read_text(encoding="utf-8")) if cards.is_file() else []
    items = []
    for file in (benchmark, examples) if shots and examples.is_file() else (benchmark,):
        for number, value in enumerate(read_table(file)):
            if "fields" not in value or "task" not in value or "item" not in value:
                raise RowError(f"{file}, row {number}: expected task, item and fields, got the keys {sorted(value)}")
            items.append(BenchmarkItem(value["task"], str(value["item"]), tuple(value["fields"] or ())))
    return items, frozenset(card["name"] for card in known if card.get("locked"))


def excerpt(text: str, matched: str, *, n: int = 8, margin: int = 40, width: int = 320) -> str:
    """The part of the raw `text` around the first n tokens of `matched`.

    Example: `excerpt("Well: Ann has 3 PENS.", "ann has 3 pens", n=4, margin=3)` is `"…l: Ann has 3 PENS."`.
    """
    wanted = matched.split(" ")
    spans = [(found.group().lower(), found.start(), found.end()) for found in _WORD.finditer(text)]
    words = [word for word, _, _ in spans]
    head = wanted[:n]
    places = (i for i in range(len(words) - len(head) + 1) if words[i : i + len(head)] == head)
    first = next(places, 0)
    last = min(first + len(wanted), len(spans)) - 1
    start = max(0, spans[first][1] - margin) if spans else 0
    end = min(len(text), (spans[last][2] if spans else 0) + margin, start + width)
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
