"""Calls side by side: order, bounds, and what an error leaves undone."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from tercet.rows import Sampling
from tercet.rows_queue import Streamed, as_finished, calls_of, in_turn, lent


def test_answers_come_in_turn_and_no_more_is_taken_than_is_asked_ahead():
    taken: list[int] = []
    gates = [threading.Event() for _ in range(9)]

    def parts():
        for i in range(9):
            taken.append(i)
            yield i

    def ask(i: int) -> int:
        assert gates[i].wait(10)
        return i * i

    answers = in_turn(ask, parts(), 3)
    for i in (2, 1, 0):
        gates[i].set()
    assert next(answers) == 0
    assert taken == [0, 1, 2]
    for gate in gates:
        gate.set()
    assert list(answers) == [i * i for i in range(1, 9)]


def test_with_one_call_everything_happens_in_this_thread_and_in_order():
    here = threading.get_ident()
    asked: list[int] = []

    def ask(i: int) -> int:
        assert threading.get_ident() == here
        asked.append(i)
        return i

    first = as_finished(ask, range(5), 1, threading.Event())
    assert next(first) == (0, 0)
    assert asked == [0]
    assert list(in_turn(ask, iter(range(3)), 1)) == [0, 1, 2]


def test_an_error_ends_what_is_left_and_tells_what_still_runs():
    ended, begun, asked = threading.Event(), threading.Event(), []

    def ask(i: int) -> str:
        asked.append(i)
        if i == 0:
            assert begun.wait(10)
            raise MemoryError
        begun.set()
        return "stopped" if ended.wait(10) else "left alone"

    with pytest.raises(MemoryError):
        list(as_finished(ask, range(50), 2, ended))
    assert ended.is_set()
    assert len(asked) < 50


def test_a_generator_says_how_many_calls_it_takes_and_is_given_back_after_an_error():
    closed = []
    model = SimpleNamespace(side_by_side=7, close=lambda: closed.append(1))
    with pytest.raises(KeyError), lent(model):
        raise KeyError
    assert closed == [1]
    assert (calls_of(model), calls_of(object())) == (7, 1)
    with lent(object()):
        pass


def test_every_prompt_has_its_own_random_numbers():
    how = Streamed(**vars(Sampling(8, 1.0, n=2)), streams=((5, 3), (6, 0)))
    assert [how.stream(i) for i in range(2)] == [(5, 3), (6, 0)]
