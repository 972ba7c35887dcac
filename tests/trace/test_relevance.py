"""BM25 is that of the textbook, and an excerpt holds its span."""

from __future__ import annotations

import math

import pytest

from tercet.trace.relevance import excerpt, relevance

ROWS = [["tea", "is", "hot", "tea"], ["milk", "is", "cold"], ["ice", "is", "cold", "and", "wet", "and", "blue"]]


def textbook(asked: set[str], row: list[str]) -> float:
    """Robertson's formula with k1 = 1.5 and b = 0.75, a word at a time."""
    mean, total = sum(map(len, ROWS)) / len(ROWS), 0.0
    for word in asked:
        having = sum(word in other for other in ROWS)
        idf = math.log(1 + (len(ROWS) - having + 0.5) / (having + 0.5))
        often = row.count(word)
        total += idf * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * len(row) / mean))
    return total


def test_relevance_is_bm25():
    asked = {"tea", "cold", "is", "nowhere"}
    assert relevance(asked, ROWS) == pytest.approx([textbook(asked, row) for row in ROWS])


@pytest.mark.parametrize("rows", [[], [[]], [["a"], []]])
def test_empty_rows_are_relevant_to_nothing(rows):
    assert relevance({"b"}, rows) == [0.0] * len(rows)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (500, 520), (990, 1000), (100, 900), (0, 1000), (995, 1000)])
def test_an_excerpt_holds_its_span_and_says_what_is_cut(start, stop):
    text = "".join(chr(ord("a") + n % 26) for n in range(1000))
    shown, a, b, cut = excerpt(text, start, stop, 400)
    assert len(shown) == 400
    assert shown[a:b] == text[start:stop][: b - a]
    assert b - a == min(stop - start, 400)
    assert cut == (not text.startswith(shown), not text.endswith(shown))


def test_a_short_text_is_its_own_excerpt():
    assert excerpt("short text", 0, 5) == ("short text", 0, 5, (False, False))
