"""What ranks say of themselves, and what the run makes of their silence."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace

import pytest

from tercet.launch.beats import SIZE, Beat, Heart, Watch, all_here, every, now_in, read
from tercet.launch.shared_store import FOLDER
from tercet.recipe import Placement
from tercet.store import StoreError


@pytest.fixture
def draft(tmp_path):
    (tmp_path / FOLDER).mkdir()
    return tmp_path


def say(draft, beat: Beat) -> None:
    (draft / FOLDER / f"{beat.rank}.json").write_text(json.dumps(vars(beat)).ljust(SIZE))


def test_a_rank_says_who_it_is_and_how_far(draft):
    heart = Heart(draft, 3, 0.01, lambda: 12)
    heart.start()
    first = read(draft)[3]
    assert (first.rank, first.pid, first.step, first.ended) == (3, os.getpid(), 12, False)
    deadline = time.monotonic() + 5
    while read(draft).get(3, first).count == first.count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    heart.end({"code": 1, "message": "m" * 5_000, "keep": True, "clear": False})
    last = read(draft)[3]
    assert last.ended
    assert last.fault["message"] == "m" * 500
    assert (draft / FOLDER / "3.json").stat().st_size == SIZE


def test_a_stack_is_told_as_our_function_and_the_collective_below_it():
    def frames(*stack: tuple[str, str]):
        made = None
        for module, name in stack:
            scope = {"__name__": module, "below": made, "sys": sys}
            exec(f"def {name}():\n    return below() if below else sys._getframe()", scope)
            made = scope[name]
        return made()

    plain = ("tercet.train.loop", "step")
    assert now_in(frames(plain)) == ("train.loop.step", False)
    collective = ("torch.distributed.distributed_c10d", "all_reduce")
    wrapped = ("torch.distributed.c10d_logger", "wrapper")
    assert now_in(frames(collective, wrapped, plain)) == ("all_reduce (train.loop.step)", True)
    assert now_in(None) == ("", False)


def test_a_rank_that_says_nothing_new_for_the_timeout_is_lost(draft):
    now = [0.0]
    watch = Watch(draft, Placement(ranks=2, rank_timeout=30), lambda: now[0])
    beats = [Beat(0, "n0", 10), Beat(1, "n1", 11)]
    for second in range(60):
        now[0] = float(second)
        say(draft, replace(beats[0], count=second + 1))
        say(draft, replace(beats[1], count=min(second, 20) + 1))
        if watch.over():
            break
    assert second == 50
    assert watch.quiet(read(draft)) == {0: 0.0, 1: 30.0}


def test_a_stage_in_which_a_rank_has_failed_may_not_go_on_for_long(draft):
    now = [0.0]
    watch = Watch(draft, Placement(ranks=2), lambda: now[0])
    say(draft, Beat(1, "n1", 11, ended=True, fault={"code": 1}))
    for second in range(60):
        now[0] = float(second)
        say(draft, Beat(0, "n0", 10, count=second))
        if watch.over():
            break
    assert 10 < second <= 13


def test_many_ranks_speak_less_often():
    assert every(Placement(ranks=2)) == 1.0
    assert every(Placement(ranks=256)) == 4.0
    assert every(Placement(ranks=256, rank_timeout=8)) == 2.0


def test_the_first_rank_names_those_whose_machines_see_another_store(draft):
    say(draft, Beat(0, "n0", 10))
    with pytest.raises(StoreError, match=rf"rank 1 left no sign in {draft / FOLDER} within 0.1 s"):
        all_here(draft, Placement(nodes=2, gpus=1), within=0.1)
    say(draft, Beat(1, "n1", 11))
    all_here(draft, Placement(nodes=2, gpus=1), within=0.1)
