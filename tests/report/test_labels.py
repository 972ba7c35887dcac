from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.report import labels

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite, finite, st.integers(2, 8))
def test_ticks_lie_within_the_range_are_few_and_have_texts_that_differ(one: float, other: float, most: int) -> None:
    low, high = min(one, other), max(one, other)
    marks = labels.ticks(low, high, most)
    slack = 1e-6 * max(abs(low), abs(high))
    assert 1 <= len(marks) <= most + 1
    assert all(low - slack <= mark <= high + slack for mark in marks)
    assert len(set(labels.distinct(marks))) == len(marks)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e-3))
def test_a_narrow_range_far_from_zero_has_ticks_that_differ(middle: float, span: float) -> None:
    marks = labels.ticks(middle - span, middle + span, 5)
    assert len(set(labels.distinct(marks))) == len(marks)
    assert len(marks) > 1 or span < 1e-12 * abs(middle)


@given(st.floats(0, 1), st.floats(0, 1))
def test_shares_in_percent_differ_too(one: float, other: float) -> None:
    marks = labels.ticks(min(one, other), max(one, other), 5)
    texts = labels.distinct(marks, percent=True)
    assert len(set(texts)) == len(marks)
    assert all(text.endswith(" %") for text in texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (5e-06, "5e-6"),
        (0.12345, "0.123"),
        (0.9996, "1"),
        (1234.5, "1234"),
        (-2.5, "−2.5"),
        (42.0, "42"),
        (1.5e7, "1.5e7"),
        (float("nan"), "no number"),
        (float("-inf"), "no number"),
    ],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert labels.number(value) == text


def test_more_digits_are_written_where_they_are_asked_for() -> None:
    assert labels.number(0.50000012, 7) == "0.5000001"
    assert labels.number(123456.0, 6) == "1.23456e5"


@given(st.text(max_size=60), st.floats(20, 200))
def test_a_text_that_is_cut_to_fit_does_and_keeps_its_ends(text: str, most: float) -> None:
    short = labels.fit(text, 13, most)
    assert labels.text_width(short, 13) <= most or len(short) == 2
    assert short == text or (short[0] == text[0] and "…" in short)
