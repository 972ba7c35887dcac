"""How much answers repeat of what was taught: the longest span of each, many answers at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tercet.trace.index import TraceIndex
from tercet.trace.search import Numbers, longest
from tercet.trace.words import UNKNOWN, words_of

AT_ONCE = 1 << 17  # words of answers that are looked up together


def longest_spans(index: TraceIndex, answers: Iterable[str], shortest: int) -> Numbers:
    """The words of the longest span of each answer that stands in an index; 0 where it has fewer than `shortest`."""
    found = [_longest(index, some, shortest) for some in _together(answers)]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _together(answers: Iterable[str]) -> Iterator[list[list[str]]]:
    """The words of answers, about `AT_ONCE` in a list."""
    some, size = list[list[str]](), 0
    for text in answers:
        some.append(words_of(text))
        size += len(some[-1])
        if size >= AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _longest(index: TraceIndex, answers: Sequence[Sequence[str]], shortest: int) -> Numbers:
    """The same for some answers: end to end, with a word between them that no row has."""
    numbers = index.numbers([word for words in answers for word in words])
    ends = np.cumsum([len(words) for words in answers])
    query = np.insert(numbers, ends, np.uint32(UNKNOWN))
    starts = np.concatenate([[0], ends[:-1] + np.arange(1, len(answers))])
    return np.maximum.reduceat(longest(index, query, shortest), starts)
