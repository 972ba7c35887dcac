"""Lengths of texts that exist already."""

from __future__ import annotations

import pytest

from tercet.forecast.texts import texts_of
from tercet.rows import Message, Pair, Row, write_table

ASKED = (Message("user", "x" * 40),)
SHORT, LONG = ((*ASKED, Message("assistant", "y" * length)) for length in (20, 60))


def test_a_row_is_as_long_as_its_turns_and_its_prompt_has_no_answer(tmp_path):
    write_table(tmp_path / "rows.parquet", [Row("a", SHORT, "s", "k"), Row("b", LONG, "s", "k")])
    assert texts_of(tmp_path) == {"row": pytest.approx((80 + 80) / 2 / 4 + 10), "prompt": pytest.approx(10 + 5)}


def test_a_pair_has_two_sides(tmp_path):
    write_table(tmp_path / "pairs.parquet", [Pair("a", SHORT, LONG, "s", "k")])
    assert texts_of(tmp_path) == {"side": pytest.approx(80 / 4 + 10)}


def test_nothing_is_known_of_what_does_not_exist(tmp_path):
    assert texts_of(tmp_path) == {}
