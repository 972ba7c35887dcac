"""A run says who has joined it and who is missing, and there is one such run of a name in a store."""

from __future__ import annotations

import pytest

from tercet.launch import arrivals, joining
from tercet.launch.arrivals import Arrivals, Sign
from tercet.recipe import Placement
from tercet.store import Store, StoreError

THREE = Placement(nodes=3, gpus=1)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def named(monkeypatch):
    """Let this process be another machine."""
    return lambda name: monkeypatch.setattr(arrivals.socket, "gethostname", lambda: name)


def test_a_run_says_who_is_missing_when_somebody_comes_and_when_all_are_there(tmp_path, clock, named):
    said: list[str] = []
    named("old")
    Sign(tmp_path, {}).live()  # of a run before
    run = Arrivals(tmp_path, THREE, said.append)
    named("one")
    one = Sign(tmp_path, {})
    named("two")
    two = Sign(tmp_path, {})
    for second in range(12):
        clock[0] = 100.0 + second
        one.live()
        if second >= 8:
            two.live()
        run.look()
    assert said == [
        "1 of 2 other machines have not joined for 5 s (here: one); run the same command there with --join",
        "all 2 other machines have joined, after 8 s",
    ]


def test_who_shows_no_sign_of_life_is_missing_again_and_a_hint_is_not_repeated_each_second(tmp_path, clock, named):
    said: list[str] = []
    run = Arrivals(tmp_path, Placement(ranks=2, launch="env"), said.append)
    named("pod")
    other = Sign(tmp_path, {"RANK": "1"})
    for second in range(400):
        clock[0] = 100.0 + second
        if 10 <= second < 20:
            other.live()
        run.look()
    assert [line.partition(" (")[0] for line in said] == [
        "1 of 1 other processes have not joined for 5 s",
        "all 1 other processes have joined, after 10 s",
        "1 of 1 other processes have not joined for 5 s",
        "1 of 1 other processes have not joined for 305 s",
    ]
    assert "(here: none); start the same command for the other ranks" in said[0]
    other.close()
    assert not list(tmp_path.iterdir())


def test_a_second_run_of_the_same_name_in_a_store_is_refused(ranked, tmp_path):
    recipe, store = ranked(nodes=2, gpus=1), Store(tmp_path / "runs")
    said = r"another run of a recipe named 'ranked' \(process \d+"
    with joining.calling(recipe, store, {}), pytest.raises(StoreError, match=said):
        joining.calling(recipe, Store(tmp_path / "runs"), {}).__enter__()
    with joining.calling(recipe, store, {}):
        pass
