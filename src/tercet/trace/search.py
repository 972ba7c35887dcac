"""Longest matches of a query's suffixes in an index, and the places of a span: binary searches, many at once.

Shape suffixes: S shards, Q positions or parts of the query, W words that are compared at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.trace.index import TraceIndex
from tercet.trace.words import END, UNKNOWN, Ids

Numbers = NDArray[np.int64]
WIDE = 8  # words of a suffix that are compared at once at first; twice as many each time
AT_ONCE = 1 << 20  # words of all suffixes together


def longest(index: TraceIndex, query: Ids, shortest: int) -> Numbers:
    """How many words from each position of a query (Q,) stand verbatim in one text; 0 where fewer than `shortest`."""
    found = np.zeros(len(query), np.int64)
    unknown = np.concatenate([np.flatnonzero(query == UNKNOWN), [len(query)]])
    at = np.arange(len(query))
    ends = unknown[np.searchsorted(unknown, at)]  # no match goes beyond the next unknown word
    begins = np.flatnonzero(ends - at >= shortest)
    ends = ends[begins]
    above_SQ = _bound(index, query, begins, ends)
    for neighbour_SQ in (above_SQ - 1, above_SQ):
        for neighbour, first, last in zip(neighbour_SQ, *index.bounds, strict=True):
            inside = np.flatnonzero((neighbour >= first) & (neighbour < last))
            suffixes = index.order[neighbour[inside]].astype(np.int64) + first
            common = _common(index.words, suffixes, query, begins[inside], ends[inside])
            found[begins[inside]] = np.maximum(found[begins[inside]], common)
    return np.where(found >= shortest, found, 0)


def positions(
    index: TraceIndex, query: Ids, spans: Sequence[tuple[int, int]], most: int
) -> list[tuple[int, list[int]]]:
    """Of each span of a query how often it stands in the index, and at most `most` positions of it, evenly spread."""
    begins, ends = np.array(spans, np.int64).reshape(-1, 2).T
    low_SQ, high_SQ = (_bound(index, query, begins, ends, behind=behind) for behind in (False, True))
    return [_spread(index, low, high, most) for low, high in zip(low_SQ.T, high_SQ.T, strict=True)]


def _spread(index: TraceIndex, low_S: Numbers, high_S: Numbers, most: int) -> tuple[int, list[int]]:
    """How many suffixes are in these ranges of the shards' orders, and the positions of at most `most` of them."""
    before_S = np.cumsum(high_S - low_S)
    total = int(before_S[-1]) if len(before_S) else 0
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).astype(np.int64))
    shard = np.searchsorted(before_S, chosen, "right")
    places = high_S[shard] - (before_S[shard] - chosen)
    return total, (index.order[places] + index.bounds[0][shard]).tolist()


def _bound(index: TraceIndex, query: Ids, begins: Numbers, ends: Numbers, *, behind: bool = False) -> Numbers:
    """For each shard and part of the query (S, Q) its place in the order: before the suffixes it begins, or behind."""
    part = np.tile(np.arange(len(begins)), len(index.bounds[0]))
    first, low, high = (np.repeat(bound, len(begins)) for bound in (index.bounds[0], *index.bounds))
    live = np.flatnonzero(low < high)
    while len(live):
        middle = (low[live] + high[live]) // 2
        begin, end = begins[part[live]], ends[part[live]]
        suffix = index.order[middle].astype(np.int64) + first[live]
        common = _common(index.words, suffix, query, begin, end)
        whole = begin + common == end
        theirs = _at(index.words, suffix + common)
        ours = query[np.minimum(begin + common, len(query) - 1)]
        after = np.where(whole, behind, theirs < ours)  # whether the place is after this suffix
        low[live] = np.where(after, middle + 1, low[live])
        high[live] = np.where(after, high[live], middle)
        live = live[low[live] < high[live]]
    return low.reshape(len(index.bounds[0]), len(begins))


def _common(words: Ids, suffixes: NDArray[np.integer], query: Ids, begins: Numbers, ends: Numbers) -> Numbers:
    """How many words each suffix and each part of the query begin with alike."""
    common = np.zeros(len(begins), np.int64)
    live, width = np.arange(len(begins)), WIDE
    while len(live):
        step_W = np.arange(width)
        here = begins[live] + common[live]
        theirs = _at(words, (suffixes[live].astype(np.int64) + common[live])[:, None] + step_W)
        ours = query[np.minimum(here[:, None] + step_W, len(query) - 1)]
        same = (theirs == ours) & (here[:, None] + step_W < ends[live][:, None])
        run = np.where(same.all(axis=1), width, same.argmin(axis=1))
        common[live] += run
        live = live[run == width]
        width = max(WIDE, min(2 * width, AT_ONCE // max(1, len(live))))
    return common


def _at(words: Ids, at: Numbers) -> Ids:
    """The words at some places; END behind the last one."""
    found: Ids = np.where(at < len(words), words[np.minimum(at, len(words) - 1)], np.uint32(END))
    return found


def maximal(lengths: Numbers) -> list[tuple[int, int]]:
    """The spans of words that no other span holds, from the longest match at each position."""
    ends = np.arange(len(lengths)) + lengths
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    starts = np.flatnonzero((lengths > 0) & (ends > before))
    return [(int(start), int(ends[start])) for start in starts]


def outermost(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, without those that another one holds."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not found or stop > found[-1][1]:
            found.append((start, stop))
    return found


def union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch or overlap as one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found
