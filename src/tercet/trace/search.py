"""Longest matches of a query's suffixes in an index, and the places of a span: binary searches, many at once.

Shape suffixes: Q positions of the query, W words that are compared at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.trace.index import Shard, TraceIndex
from tercet.trace.words import END, UNKNOWN, Ids

Numbers = NDArray[np.int64]
WIDE = 8  # words that are compared at once at first; twice as many each time


def longest(index: TraceIndex, query: Ids, shortest: int) -> Numbers:
    """How many words from each position of a query (Q,) stand verbatim in one text; 0 where fewer than `shortest`."""
    found = np.zeros(len(query), np.int64)
    unknown = np.concatenate([np.flatnonzero(query == UNKNOWN), [len(query)]])
    at = np.arange(len(query))
    ends = unknown[np.searchsorted(unknown, at)]  # no match goes beyond the next unknown word
    begins = np.flatnonzero(ends - at >= shortest)
    if not len(begins):
        return found
    for shard in index.shards:
        above = _bound(shard, query, begins, ends[begins])
        for neighbour in (above - 1, above):
            inside = (neighbour >= 0) & (neighbour < len(shard.order))
            suffix = shard.order[np.where(inside, neighbour, 0)]
            common = np.where(inside, _common(shard.words, suffix, query, begins, ends[begins]), 0)
            found[begins] = np.maximum(found[begins], common)
    return np.where(found >= shortest, found, 0)


def positions(
    index: TraceIndex, query: Ids, spans: Sequence[tuple[int, int]], most: int
) -> list[tuple[int, list[int]]]:
    """Of each span of a query how often it stands in the index, and at most `most` positions of it, evenly spread."""
    begins, ends = np.array(spans, np.int64).reshape(-1, 2).T
    ranges = []
    for shard in index.shards:
        low, high = (_bound(shard, query, begins, ends, behind=behind) for behind in (False, True))
        ranges.append((shard, low, high))
    return [
        _spread([(shard, int(low[i]), int(high[i])) for shard, low, high in ranges], most) for i in range(len(spans))
    ]


def _spread(ranges: Sequence[tuple[Shard, int, int]], most: int) -> tuple[int, list[int]]:
    """How many suffixes are in these ranges of the shards' orders, and the positions of at most `most` of them."""
    total = sum(high - low for _, low, high in ranges)
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).astype(np.int64))
    found, before = list[int](), 0
    for shard, low, high in ranges:
        own = chosen[(chosen >= before) & (chosen < before + high - low)] - before + low
        found += [shard.begin + int(place) for place in shard.order[own]]
        before += high - low
    return total, found


def _bound(shard: Shard, query: Ids, begins: Numbers, ends: Numbers, *, behind: bool = False) -> Numbers:
    """For each part of the query its place in the order of suffixes: before those that it begins, or behind them."""
    low, high = np.zeros(len(begins), np.int64), np.full(len(begins), len(shard.order), np.int64)
    live = np.flatnonzero(low < high)
    while len(live):
        middle = (low[live] + high[live]) // 2
        suffix, begin, end = shard.order[middle].astype(np.int64), begins[live], ends[live]
        common = _common(shard.words, suffix, query, begin, end)
        whole = begin + common == end
        theirs = _at(shard.words, suffix + common)
        ours = query[np.minimum(begin + common, len(query) - 1)]
        after = np.where(whole, behind, theirs < ours)  # whether the place is after this suffix
        low[live] = np.where(after, middle + 1, low[live])
        high[live] = np.where(after, high[live], middle)
        live = live[low[live] < high[live]]
    return low


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
        live, width = live[run == width], 2 * width
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
