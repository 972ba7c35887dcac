"""Which training rows copy an exam: the 8-gram rule of the paper (§3.2), hop 3 of the road.

The exam is indexed once and the corpus is streamed past it, so memory depends on the exam alone. Each user turn of a
row is one document. For an exam field of L tokens and a document d, M_d is the set of the field's positions that lie
in an n-gram which d contains too:

    score(field, d) = |M_d| / L      coverage(item, d) = mean of score over the item's fields

A field shorter than n tokens has no n-gram and scores 0; a field without any token (a question that has no passage)
is no field. A row's coverage of an item is the largest over its documents, and the row copies the item when that is
strictly above the threshold.

Two deliberate differences from the published scripts. Both sides go through the same analyser, where the scripts cut
the exam side with spaCy's English pipeline: that one splits clitics and keeps punctuation as tokens, which only
changes L and breaks n-grams that the corpus side has. And the search is exact and complete, where the scripts ask a
search engine for the first hundred hits of each n-gram.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import compress, count

SEPARATORS = ' ,.?!:;()"-\n\\'

_WORD = re.compile(f"[^{re.escape(SEPARATORS)}]+")


@dataclass(frozen=True)
class ExamItem:
    """One exam item. Example: `ExamItem("words@1", "17", ("Ann has 3 pens and ...",))`."""

    task: str
    item: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """One exam item that a row copies: how much of it, and the longest copied run in the analyser's tokens."""

    item: ExamItem
    coverage: float
    matched: str
    document: int = 0  # the row's text that copies
    field: int = 0  # the item's field where the longest copied run stands


def analyse(text: str) -> list[str]:
    """The tokens of a text: split on `SEPARATORS`, lower-cased."""
    for separator in SEPARATORS[1:]:
        text = text.replace(separator, " ")
    return list(filter(None, text.lower().split(" ")))


class Index:
    """The n-grams of an exam, ready to be looked up.

    All fields stand end to end in one list of tokens. A dictionary leads from the hash of an n-gram to the place
    where it starts; every look-up compares the tokens, so two n-grams with one hash are never confused.
    """

    def __init__(self, items: Iterable[ExamItem], n: int = 8) -> None:
        """Index `items` by their n-grams of `n` tokens."""
        if n < 1:
            raise ValueError(f"n-grams need at least one token, got n = {n}")
        self.items = tuple(items)
        self.n = n
        self._tokens: list[str] = []
        self._starts: list[int] = []  # first token of each field
        self._lengths: list[int] = []
        self._owner: list[tuple[int, int]] = []  # (item, which of its fields) of each field
        self._num_fields = [0] * len(self.items)
        self._first: dict[int, int] = {}
        self._others: dict[int, list[int]] = {}
        words: dict[str, str] = {}
        for number, item in enumerate(self.items):
            for which, field in enumerate(item.fields):
                self._add(number, which, [words.setdefault(token, token) for token in analyse(field)])

    def hits(self, row_texts: Sequence[str], threshold: float = 0.5) -> list[Hit]:
        """The items that one row copies above `threshold`, in exam order; `row_texts` are the row's user turns."""
        best: dict[int, Hit] = {}
        for document, text in enumerate(row_texts):
            for number, covered in self._covered(analyse(text)).items():
                coverage = self._coverage(number, covered)
                if coverage > threshold and (number not in best or coverage > best[number].coverage):
                    field, matched = self._longest_run(covered)
                    best[number] = Hit(self.items[number], coverage, matched, document, field)
        return [best[number] for number in sorted(best)]

    def _add(self, number: int, which: int, tokens: list[str]) -> None:
        if not tokens:
            return
        start = len(self._tokens)
        self._starts.append(start)
        self._lengths.append(len(tokens))
        self._owner.append((number, which))
        self._num_fields[number] += 1
        self._tokens.extend(tokens)
        for place, gram in enumerate(_hashes(tokens, self.n), start):
            if self._first.setdefault(gram, place) != place:
                self._others.setdefault(gram, []).append(place)

    def _covered(self, tokens: list[str]) -> dict[int, dict[int, set[int]]]:
        """Item -> field -> covered places in the list of all exam tokens, for one document."""
        covered: dict[int, dict[int, set[int]]] = {}
        grams = list(_hashes(tokens, self.n))
        found = {grams[i]: i for i in compress(count(), map(self._first.__contains__, grams))}
        for gram, i in found.items():
            for place in (self._first[gram], *self._others.get(gram, ())):
                if self._tokens[place : place + self.n] != tokens[i : i + self.n]:
                    continue
                field = bisect_right(self._starts, place) - 1
                places = covered.setdefault(self._owner[field][0], {}).setdefault(field, set())
                places.update(range(place, place + self.n))
        return covered

    def _coverage(self, number: int, covered: dict[int, set[int]]) -> float:
        """Mean over the item's fields, correctly rounded: one half is never a little more than one half."""
        shares = (Fraction(len(places), self._lengths[field]) for field, places in covered.items())
        return float(sum(shares, Fraction(0)) / self._num_fields[number])

    def _longest_run(self, covered: dict[int, set[int]]) -> tuple[int, str]:
        """The longest unbroken stretch of covered places, and which of the item's fields it lies in."""
        runs = [(field, run) for field, places in covered.items() for run in _runs(sorted(places))]
        field, (start, end) = max(runs, key=lambda found: (found[1][1] - found[1][0], -found[1][0]))
        return self._owner[field][1], " ".join(self._tokens[start:end])


def excerpt(text: str, matched: str, *, n: int = 8, margin: int = 40, width: int = 320) -> str:
    """The stretch of the raw `text` where the first n tokens of `matched` stand, with some context.

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


def _hashes(tokens: list[str], n: int) -> Iterator[int]:
    """The hash of each n-gram, in order; the tuples are made, hashed and reused without leaving C."""
    return map(hash, zip(*(tokens[k:] for k in range(n)), strict=False))


def _runs(places: list[int]) -> Iterator[tuple[int, int]]:
    """Half-open stretches of consecutive numbers. Example: [3, 4, 5, 9] gives (3, 6), (9, 10)."""
    start = previous = places[0]
    for place in places[1:]:
        if place != previous + 1:
            yield start, previous + 1
            start = place
        previous = place
    yield start, previous + 1
