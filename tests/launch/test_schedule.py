"""Stages that are made at once: which, how many, with which cards, and how they end."""

from __future__ import annotations

import io
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.launch import schedule
from tercet.launch.environment import environment
from tercet.launch.schedule import SharedCards, StageTurn, make_all
from tercet.recipe import Placement, Recipe
from tercet.stop import Interrupted
from tercet.store import Store

NEEDS = {"base": (), "words": (), "sft": ("base", "words"), "one": ("base",), "two": ("base",), "last": ("one", "two")}


@pytest.fixture
def recipe(monkeypatch):
    """A recipe of that graph with so many stages at once, on a machine with so many cards."""

    def made(at_once: int, cards: int = 0, **placement: object) -> Recipe:
        monkeypatch.setattr(schedule, "cards_here", lambda: [str(number) for number in range(cards)])
        benchmark = {"kind": "benchmark", "tasks": ["words@1"]}
        evaluation = {"kind": "eval", "benchmark": "asked"}
        stages = {
            "words": {"kind": "synth", "generator": "words@1", "rows": 3},
            "asked": benchmark,
            "sft": {"kind": "sft", "model": "base", "rows": "words"},
            "one": evaluation | {"model": "base"},
            "two": evaluation | {"model": "base"},
            "last": {"kind": "synth", "generator": "words@1", "rows": 4},
        }
        return Recipe.model_validate(
            {"name": "r", "base": {"model": "tiny:"}, "stage": stages, "placement": {"at_once": at_once, **placement}}
        )

    return made


class Seen:
    """Makers of stages that note who works beside whom; `slow` ones wait until another one works too."""

    def __init__(self, failing: str = "") -> None:
        self.order, self.most, self.failing, self.variables = [], 0, failing, {}
        self._now, self._lock = set(), threading.Lock()

    def make(self, turn: StageTurn) -> None:
        with self._lock:
            self._now.add(turn.name)
            self.most = max(self.most, len(self._now))
            self.variables[turn.name] = turn.variables.get(schedule.VISIBLE)
        time.sleep(0.05)
        with self._lock:
            self._now.remove(turn.name)
            self.order.append(turn.name)
        if turn.name == self.failing:
            raise ValueError(f"{turn.name} is bad")


def test_one_after_another_unless_the_placement_says_otherwise(recipe):
    seen = Seen()
    make_all(recipe(1), NEEDS, seen.make)
    assert (seen.order, seen.most) == (list(NEEDS), 1)


def test_what_is_ready_is_made_at_once_and_never_more_than_asked(recipe):
    seen = Seen()
    make_all(recipe(3), NEEDS, seen.make)
    assert seen.most == 3
    for name, needed in NEEDS.items():
        assert all(seen.order.index(need) < seen.order.index(name) for need in needed)


def test_where_one_fails_those_at_work_end_and_none_begins(recipe):
    seen, said = Seen(failing="base"), []
    with pytest.raises(ValueError, match="base is bad"):
        make_all(recipe(2), NEEDS, seen.make, said.append)
    assert sorted(seen.order) == ["base", "words"]
    assert all("goes on to its end" in line for line in said)


def test_every_stage_has_cards_of_its_own_and_waits_where_there_are_none(recipe):
    seen = Seen()
    make_all(recipe(3, cards=4, ranks=3), NEEDS, seen.make)
    assert seen.variables["words"] is None, "no model, no card"
    assert len(seen.variables["sft"].split(",")) == 3
    assert {len(seen.variables[name]) for name in ("one", "two")} == {1}


def test_cards_are_given_once_and_come_back():
    shared = SharedCards(Placement(ranks=3), ["0", "1", "4", "5"])
    assert shared.take("sft", parallel=True, model=True) == {"CUDA_VISIBLE_DEVICES": "0,1,4"}
    assert shared.take("dpo", parallel=True, model=True) is None
    assert shared.take("one", parallel=False, model=True) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert shared.take("two", parallel=False, model=True) is None
    assert shared.take("mix", parallel=False, model=False) == {}
    shared.give_back("sft")
    assert shared.take("two", parallel=False, model=True) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_one_training_stage_at_a_time_is_spread_over_machines():
    shared = SharedCards(Placement(nodes=2, gpus=1, at_once=2), [])
    assert shared.take("sft", parallel=True, model=True) == {}
    assert shared.take("dpo", parallel=True, model=True) is None
    assert shared.take("one", parallel=False, model=True) == {}
    shared.give_back("sft")
    assert shared.take("dpo", parallel=True, model=True) == {}


def test_cores_are_shared_by_stages_at_once(monkeypatch):
    monkeypatch.setattr("tercet.machine.cores", lambda: 16)
    assert environment(Placement(ranks=2, at_once=2), parallel=True)["OMP_NUM_THREADS"] == "4"
    assert environment(Placement(ranks=2, at_once=2))["OMP_NUM_THREADS"] == "8"


def test_an_interrupt_reaches_every_stage_at_work(recipe):
    stages = []

    def make(turn: StageTurn) -> None:
        stages.append(turn.name)
        if len(stages) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        while True:
            time.sleep(0.01)
            turn.go_on()

    def interrupt(number, _frame):
        raise Interrupted(signal.SIGINT)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted) as raised:
            make_all(recipe(2), NEEDS, make)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stages == ["base", "words"]
    assert raised.value.whole


def test_a_run_makes_stages_at_once_with_the_digests_of_one_after_another(ranked, tmp_path):
    digests = []
    for at_once in (1, 2):
        said = io.StringIO()
        store, console = Store(tmp_path / str(at_once)), Console(file=said, width=200)
        made = pipeline.run(ranked(at_once=at_once), store, only=["words", "base"], console=console)
        digests.append({name: artifact.record["digest"] for name, artifact in made.items()})
    assert digests[0] == digests[1]
    assert [line.split()[-1] for line in said.getvalue().splitlines()][1:3] == ["starts", "starts"]
