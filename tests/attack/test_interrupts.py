"""Ctrl-C, SIGTERM and SIGHUP keep what was done, at any moment, in every kind of stage that trains.

The promises: within 20 seconds a checkpoint holds the last finished step, before "continues where it stopped" is said;
what continues ends in the bytes of a run that nobody disturbed, with every step in metrics.jsonl once; and a stage
does not outlive the run that started it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.attack.conftest import Attacked, until
from tests.attack.scale import times

from tercet.store import payload_digest
from tercet.track import forget_progress, read_progress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Of each stage: how many steps it takes, and how many of them lie between two states that a checkpoint can hold.
STAGES = {
    "sft": (24, 1),
    "dpo": (24, 1),
    "kto": (24, 1),
    "reward": (15, 1),
    "rlvr": (16, 1),
    "ppo": (24, 2),
    "lagged": (16, 1),
}
WHOLE: dict[str, str] = {}
SHORT = {name: {"max_new_tokens": 12} for name in ("rlvr", "lagged", "ppo")}
RARE = {"checkpoint_seconds": 1e9}  # nothing is saved but what a signal saves


def whole(workspace, tmp_path: Path, stage: str) -> str:
    """The digest of a run that nobody disturbs."""
    if stage not in WHOLE:
        workspace.run_stage(stage, tmp_path / "whole", placement=RARE, **SHORT)
        WHOLE[stage] = payload_digest(tmp_path / "whole")
    return WHOLE[stage]


@pytest.mark.parametrize(
    "stage", list(STAGES) if times(8) > 1 else [name for name in STAGES if name not in ("kto", "rlvr")]
)
def test_the_last_finished_step_is_kept_and_the_rest_continues_from_it(workspace, tmp_path, stage):
    chance = random.Random(f"asked {stage}")
    attacked = Attacked.of(workspace.store, workspace.recipe(placement=RARE, **SHORT), stage)
    total, apart = STAGES[stage]
    for place, moment in enumerate(sorted(chance.sample(range(1, total - 2), times(8)))):
        number, wanted = SIGNALS[(place + len(stage)) % 3], max(moment, len(attacked.steps()) + 1)
        child = attacked.start()
        assert until(lambda wanted=wanted: len(attacked.steps()) >= wanted, child.is_alive), "ended too early"
        time.sleep(chance.uniform(0.0, 0.05))
        began = time.monotonic()
        os.kill(child.pid, number)
        child.join(25)
        assert time.monotonic() - began < 20
        assert child.exitcode == 128 + number
        steps = attacked.steps()
        assert steps == list(range(1, steps[-1] + 1)), "a step stands there twice, or not at all"
        assert attacked.checkpoint() == steps[-1] // apart * apart
        assert f"its checkpoint holds step {attacked.checkpoint()}" in str(attacked.result()["message"])
    assert attacked.finish() == whole(workspace, tmp_path, stage)
    assert attacked.steps() == list(range(1, total + 1))


@pytest.mark.parametrize(
    ("stage", "number", "ranks"), [("sft", signal.SIGINT, 1), ("rlvr", signal.SIGHUP, 1), ("dpo", signal.SIGTERM, 2)]
)
def test_the_run_says_what_is_kept_before_it_promises_to_continue(workspace, launch, tmp_path, stage, number, ranks):
    sets = ["placement.checkpoint_seconds=1e9", f"placement.ranks={ranks}", "placement.threads=1"]
    sets += [f"stage.{name}.max_new_tokens=12" for name in SHORT]
    running = launch(workspace, stage, *sets)
    assert until(lambda: running.progress() >= 5, lambda: running.process.poll() is None)
    below = running.below()
    began = time.monotonic()
    running.process.send_signal(number)
    running.process.send_signal(number)  # `timeout`, shells and wrappers send it twice: this is one request
    assert running.process.wait(25) == 128 + number
    assert time.monotonic() - began < 20
    assert not [pid for pid in below if alive(pid)]
    reached = running.progress()
    text = running.output.read_text(encoding="utf-8")
    kept, promise = text.index(f"its checkpoint holds step {reached}"), text.index("continues where it stopped")
    assert kept < promise
    assert signal.Signals(number).name in (running.draft / "log.txt").read_text()

    forget_progress(running.draft)  # as the run that continues does, but before anybody looks
    again = launch(workspace, stage, *sets)
    assert until(lambda: "done" in read_progress(again.draft), seconds=120)
    assert read_progress(again.draft)["done"] == reached, "progress begins where the run does"
    assert again.process.wait(120) == 0, again.output.read_text()
    artifact = workspace.store.open(stage)
    lines = (artifact.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STAGES[stage][0] + 1))
    if ranks == 1:
        assert artifact.record["digest"] == whole(workspace, tmp_path, stage)


def test_a_second_ctrl_c_ends_at_once_and_nothing_is_left(workspace, launch):
    running = launch(workspace, "sft", "placement.checkpoint_seconds=1e9")
    assert until(lambda: running.progress() >= 3, lambda: running.process.poll() is None)
    below = running.below()
    for pid in below:
        os.kill(pid, signal.SIGSTOP)  # a stage that cannot end by itself
    running.process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert running.process.poll() is None
    assert "again ends it at once" in running.output.read_text(encoding="utf-8")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(5) == 130
    assert not [pid for pid in below if alive(pid)]
    assert "continues from what was kept before" in running.output.read_text(encoding="utf-8")


def test_under_nohup_a_closed_terminal_changes_nothing(workspace, launch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = launch(workspace, "sft", "stage.sft.num_epochs=3")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert until(lambda: running.progress() >= 3, lambda: running.process.poll() is None)
    for pid in (running.process.pid, *running.below()):
        os.kill(pid, signal.SIGHUP)
    assert running.process.wait(120) == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_at_any_moment_leaves_no_process(workspace, launch, ranks):
    chance = random.Random(f"orphans {ranks}")
    for _ in range(times(20)):
        running = launch(
            workspace, "sft", f"placement.ranks={ranks}", "placement.threads=1", "stage.sft.num_epochs=400"
        )
        assert until(lambda running=running: running.below(), lambda running=running: running.process.poll() is None)
        time.sleep(chance.choice((0.0, 0.05, chance.uniform(0.0, 4.0))))
        below = running.below()
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        until(lambda below=below: not any(map(alive, {*below, *stages_of(workspace.store.root)})), seconds=5)


def stages_of(root: Path) -> list[int]:
    """The processes that work on a draft of a store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"tercet.stage" in command and os.fsencode(root) in command and alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process lives; one that waits to be reaped does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
