"""The cause that is told of a stage whose ranks are gone."""

from __future__ import annotations

import json

import pytest

from tercet.launch.beats import Beat, Watch
from tercet.launch.deaths import explain
from tercet.launch.shared_store import FOLDER
from tercet.recipe import Placement

RESET = "RuntimeError: [pair.cc:534] Connection closed by peer [127.0.0.1]:5821"
TIMED = "RuntimeError: [unbound_buffer.cc:116] Timed out waiting 5000ms for recv operation to complete"


def fault(message: str, code: int = 1, *, clear: bool = False) -> dict:
    return {"code": code, "message": message, "keep": True, "clear": clear}


def failed(rank: int, message: str, at: float = 2.0) -> Beat:
    return Beat(rank, f"n{rank}", 10 + rank, 5, at, 7, "all_reduce (f)", True, True, fault(message))


@pytest.fixture
def why(tmp_path):
    """The explanation of what ranks said, what the log holds, and how long they have been silent."""
    (tmp_path / FOLDER).mkdir()

    def explained(*beats: Beat, log: str = "", silent: float = 0.0, nodes: int = 1):
        now = [0.0]
        watch = Watch(tmp_path, Placement(ranks=len(beats) or nodes, nodes=nodes, rank_timeout=20), lambda: now[0])
        (tmp_path / "log.txt").write_text("an earlier start: Signal 11 (SIGSEGV) received by PID 10\n" + log)
        for beat in beats:
            (tmp_path / FOLDER / f"{beat.rank}.json").write_text(json.dumps(vars(beat)))
        watch.quiet({beat.rank: beat for beat in beats})
        now[0] = silent
        return explain(tmp_path, watch, len("an earlier start: Signal 11 (SIGSEGV) received by PID 10\n"))

    return explained


def living(rank: int, doing: str = "train.loop.step", *, waits: bool = False) -> Beat:
    return Beat(rank, f"n{rank}", 10 + rank, 5, 2.0, 7, doing, waits)


def test_a_killed_rank_is_named_with_its_machine_and_signal_though_others_complain_first(why):
    ended = "traceback : Signal {} received by PID {}\n"
    log = "Other Failures:\n" + ended.format("15 (SIGTERM)", 10) + "Root Cause:\n" + ended.format("9 (SIGKILL)", 11)
    found = why(failed(0, RESET), living(1), log=log)
    assert found["message"].startswith("rank 1 on n1 (process 11) was killed by SIGKILL (step 7, in train.loop.step); ")
    assert "lower placement.micro_tokens" in found["message"]
    assert found["death"]


def test_a_signal_of_an_earlier_start_is_no_cause(why):
    assert "SIGSEGV" not in why(failed(0, RESET), living(1), silent=9.0)["message"]


def test_a_rank_without_a_sign_of_life_is_named(why):
    found = why(failed(0, TIMED), living(1), silent=9.0)
    assert found["message"].startswith("rank 1 on n1 (process 11) has shown no sign of life for 9 s (step 7, in ")


def test_ranks_that_waited_too_long_name_the_one_that_did_not_wait(why):
    found = why(failed(0, TIMED), living(1, "data.mix.shuffle"), living(2, "all_reduce (f)", waits=True))
    assert "waited for rank 1 on n1 (process 11) (step 7, in data.mix.shuffle) and gave up" in found["message"]
    assert "placement.rank_timeout = 20 s" in found["message"]


def test_a_fault_of_a_ranks_own_comes_before_what_the_others_say_of_its_silence(why):
    found = why(failed(0, RESET, at=1.0), failed(1, "OutOfMemoryError: CUDA out of memory", at=2.0))
    assert found["message"].startswith("rank 1 on n1 (process 11): OutOfMemoryError: CUDA out of memory; lower ")
    assert "death" not in found, "it would happen again"


def test_bad_input_keeps_its_words_and_its_code(why):
    bad = Beat(1, "n1", 11, 5, 2.0, 7, "", False, True, fault("rows.jsonl, line 3: bad row", 2, clear=True))
    found = why(failed(0, RESET), bad)
    assert (found["code"], found["message"]) == (2, "rows.jsonl, line 3: bad row")


def test_machines_that_never_met_are_told_how(why):
    assert why(nodes=2)["message"].startswith("no rank began: the 2 machines did not all meet. Under torchrun each but")
    assert why() is None, "on one machine the log says more"


def test_ranks_that_ended_by_themselves_need_no_explanation(why):
    assert why(Beat(0, "n0", 10, ended=True), Beat(1, "n1", 11, ended=True)) is None
