"""Maximal spans are those that a search by hand finds, however the rows are cut into shards."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.trace import index
from tercet.trace.index import TraceIndex, build
from tercet.trace.search import longest, maximal, outermost, positions, union
from tercet.trace.texts import TextRow

WORDS = st.lists(st.sampled_from("abc"), max_size=12)
ROWS = st.lists(st.lists(WORDS, min_size=1, max_size=3), max_size=6)


def by_hand(rows: list[list[list[str]]], query: list[str], shortest: int) -> list[tuple[int, int]]:
    """Every span of the query that some text holds and that is in no longer one: all spans, one by one."""
    texts = [text for row in rows for text in row]

    def stands(part: list[str]) -> bool:
        return any(text[i : i + len(part)] == part for text in texts for i in range(len(text) - len(part) + 1))

    size = len(query)
    spans = [(a, b) for a in range(size) for b in range(a + shortest, size + 1) if stands(query[a:b])]
    return [one for one in spans if not any(a <= one[0] and one[1] <= b and (a, b) != one for a, b in spans)]


def occurrences(rows: list[list[list[str]]], part: list[str]) -> list[tuple[int, int, int]]:
    return [
        (number, at, i)
        for number, row in enumerate(rows)
        for at, text in enumerate(row)
        for i in range(len(text) - len(part) + 1)
        if text[i : i + len(part)] == part
    ]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(st.sampled_from("abcd"), max_size=12), st.integers(1, 4), st.integers(1, 9))
def test_spans_and_their_places_are_those_of_a_search_by_hand(rows, query, shortest, shard):
    with TemporaryDirectory() as folder:
        was, index.SHARD = index.SHARD, shard
        try:
            about = build(Path(folder), (TextRow("", "", [""] * len(row), list(map(" ".join, row))) for row in rows))
        finally:
            index.SHARD = was
        made = TraceIndex(Path(folder), about)
        assert about["words"] == sum(len(text) for row in rows for text in row)
        numbers = made.numbers(query)
        spans = maximal(longest(made, numbers, shortest))
        assert spans == by_hand(rows, query, shortest)
        for span, (count, found) in zip(spans, positions(made, numbers, spans, 1000), strict=True):
            expected = occurrences(rows, query[slice(*span)])
            assert count == len(expected)
            assert sorted(map(made.place, found)) == sorted(expected)


def test_the_counts_of_words_are_those_of_all_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "SHARD", 3)
    about = build(tmp_path, [TextRow("", "", ["user"], [text]) for text in ("a b a", "b c c c", "a")])
    assert len(about["shards"]) == 3
    made = TraceIndex(tmp_path, about)
    assert made.counts(made.numbers(["a", "b", "c", "d"])).tolist() == [3, 2, 3, 0]


def test_a_span_that_another_holds_is_left_out_and_overlapping_ones_are_joined():
    assert outermost([(3, 9), (1, 5), (2, 5), (3, 9), (10, 12)]) == [(1, 5), (3, 9), (10, 12)]
    assert union([(3, 9), (1, 5), (10, 12)]) == [(1, 9), (10, 12)]
    assert maximal(np.zeros(3, np.int64)) == []
