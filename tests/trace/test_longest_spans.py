"""The longest span of many answers at once is that of each alone."""

from __future__ import annotations

import pytest
from tests.trace.stores import CHOSEN, PLANTED

from tercet.trace import Tracer, repeats
from tercet.trace.repeats import longest_spans


@pytest.mark.parametrize("at_once", [1, 20, 1 << 17])
def test_each_answer_has_its_own_longest_span(shared_run, monkeypatch, at_once):
    monkeypatch.setattr(repeats, "AT_ONCE", at_once)
    [(_, rows, _), (_, pairs, _), _] = Tracer.open(*shared_run).tables
    answers = ["", f"Yes: {PLANTED}", "new words", CHOSEN, " ".join(PLANTED.split()[:9]), ""]
    assert longest_spans(rows, answers, 8).tolist() == [0, 14, 0, 0, 9, 0]
    assert longest_spans(pairs, answers, 8).tolist() == [0, 0, 0, 11, 0, 0]
    assert longest_spans(pairs, [], 8).tolist() == []
