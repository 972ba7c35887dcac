"""Processes on other machines find the run in the store, and follow it."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tercet.launch import joining, surroundings
from tercet.launch.ending import StageError
from tercet.recipe import Placement, RecipeError
from tercet.store import Store

FOUR = Placement(nodes=2, gpus=2, launch="env")
POD = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"}


def test_a_rank_of_a_stage_is_what_the_surroundings_say_at_a_port_of_its_own():
    found = surroundings.variables(FOUR, "0123456789ab", POD)
    assert found.pop("MASTER_PORT") != "23456"
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}
    assert surroundings.variables(FOUR, "0123456789ab", POD | {"LOCAL_RANK": "0"})["LOCAL_RANK"] == "0"
    named = FOUR.model_copy(update={"rendezvous": "head:29500"})
    assert surroundings.variables(named, "0123456789ab", POD)["MASTER_PORT"] == "29500"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": ""}, "and RANK is not set: start `tercet run` once for each rank"),
        ({"WORLD_SIZE": "8"}, "RANK is 3 and WORLD_SIZE 8, and this placement has 4 ranks"),
        ({"RANK": "4"}, "a RANK below it"),
        ({"RANK": "first"}, "RANK is first"),
    ],
)
def test_surroundings_that_say_something_else_are_refused(changes, says):
    with pytest.raises(RecipeError, match=says):
        surroundings.rank(FOUR, POD | changes)


def test_who_joins_waits_for_a_run_and_says_how_to_start_one(ranked, tmp_path):
    recipe, store = ranked(nodes=2, gpus=1, rank_timeout=0.3), Store(tmp_path / "runs")
    with pytest.raises(StageError, match=r"no run shows itself in .*ranked.json within 0.3 s: start it on the first"):
        joining.join(recipe, store, {})


@pytest.mark.parametrize("ends_well", [True, False])
def test_who_joins_ends_as_the_run_does_and_an_old_run_is_none(ranked, tmp_path, monkeypatch, ends_well):
    monkeypatch.setattr(joining, "EVERY", 0.02)
    recipe, store = ranked(nodes=2, gpus=1, rank_timeout=20), Store(tmp_path / "runs")
    old = store.root / ".runs" / "ranked.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"run": "old-", "count": 3, "stages": [], "ended": True}))
    ends: list[bool] = []
    joined = threading.Thread(target=lambda: ends.append(joining.join(recipe, store, {})))
    joined.start()
    joined.join(0.5)
    assert joined.is_alive(), "it waits for a run that lives"
    try:
        with joining.calling(recipe, store, {}):
            joined.join(0.5)
            assert joined.is_alive()
            if not ends_well:
                raise StageError("no", 1)
    except StageError:
        pass
    joined.join(10)
    assert ends == [ends_well]


def test_a_run_that_is_gone_ends_who_joined(ranked, tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "LOST", 0.3)
    recipe, store = ranked(nodes=2, gpus=1), Store(tmp_path / "runs")
    run = joining.JoinedRun(store, recipe)
    (store.root / ".runs").mkdir(parents=True)
    (store.root / ".runs" / "ranked.json").write_text(json.dumps({"run": "r-", "stages": [], "ended": None}))
    assert run.look() is None
    time.sleep(0.35)
    with pytest.raises(StageError, match="has shown no sign of life for 0 s"):
        run.look()
