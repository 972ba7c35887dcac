"""Killed at any moment and run again, a training stage ends in the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tercet.store import payload_digest

TOTAL = {"sft": 24, "dpo": 24, "kto": 24, "reward": 15, "rlvr": 16, "ppo": 24, "lagged": 16}


def wait(running, happened: Callable[[], bool]) -> bool:
    """Until it happened, or until the process is over; whether it happened first."""
    deadline = time.monotonic() + 120
    while not happened():
        if running.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the stage makes no progress"
        time.sleep(0.002)
    return True


def exports(draft: Path) -> bool:
    """Whether the stage has begun to write its model, or is at its commit."""
    return (draft / "payload" / "config.json").exists() or (draft / "artifact.json").exists()


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.fast), pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", TOTAL)
def test_killed_at_random_moments_and_at_its_export_it_ends_in_the_same_bytes(
    workspace, launch, tmp_path, stage, kills
):
    chance = random.Random(f"{stage} 2")
    moments = sorted(chance.sample(range(3, TOTAL[stage] - 2), kills))  # after the first checkpoint
    for moment in moments:
        running = launch(workspace, stage)
        assert wait(running, lambda running=running, moment=moment: running.progress() >= moment), "ended too early"
        time.sleep(chance.uniform(0.0, 0.04))
        assert running.process.poll() is None, "ended too early"
        running.kill()
        assert workspace.store.find(stage, running.draft.name.rpartition("-")[2]) is None
    running = launch(workspace, stage)
    if wait(running, lambda: exports(running.draft)):
        running.kill()
    last = launch(workspace, stage)
    assert last.process.wait(timeout=120) == 0

    finished = workspace.store.open(stage)
    assert not running.draft.exists()
    lines = (finished.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps.count(1) == 1, "it began again instead of continuing"
    assert set(steps) == set(range(1, TOTAL[stage] + 1))
    workspace.run_stage(stage, tmp_path / "whole")
    assert finished.record["digest"] == payload_digest(finished.payload) == payload_digest(tmp_path / "whole")
