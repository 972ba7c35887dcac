"""Killed at any moment and run again, a training stage ends in the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
from tests.attack.conftest import Attacked, until

from tercet.recipe import load
from tercet.store import payload_digest

TOTAL = {"sft": 24, "dpo": 24, "kto": 24, "reward": 15, "rlvr": 16, "ppo": 24, "lagged": 16}
KILLS = 10 if os.environ.get("TERCET_ATTACK") == "full" else 4


def exports(draft: Path) -> bool:
    """Whether the stage has begun to write its model, or is at its commit."""
    return (draft / "payload" / "config.json").exists() or (draft / "artifact.json").exists()


@pytest.mark.fast  # a kill at any moment is what the gate is for
@pytest.mark.parametrize("stage", TOTAL)
def test_killed_at_random_moments_and_at_its_export_it_ends_in_the_same_bytes(workspace, launch, tmp_path, stage):
    chance = random.Random(f"{stage} 2")
    attacked = Attacked.of(workspace.store, load(workspace.recipe_file), stage)
    for moment in sorted(chance.sample(range(3, TOTAL[stage] - 2), KILLS)):  # after the first checkpoint
        child = attacked.start()
        assert until(lambda moment=moment: max(attacked.steps(), default=0) >= moment, child.is_alive), (
            "ended too early"
        )
        time.sleep(chance.uniform(0.0, 0.04))
        assert child.is_alive(), "ended too early"
        child.kill()
        child.join()
        assert workspace.store.find(stage, attacked.draft.key) is None
    child = attacked.start()
    if until(lambda: exports(attacked.draft.path), child.is_alive):
        child.kill()
    child.join()
    assert launch(workspace, stage).process.wait(timeout=120) == 0

    finished = workspace.store.open(stage)
    assert not attacked.draft.path.exists()
    lines = (finished.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps.count(1) == 1, "it began again instead of continuing"
    assert set(steps) == set(range(1, TOTAL[stage] + 1))
    workspace.run_stage(stage, tmp_path / "whole")
    assert finished.record["digest"] == payload_digest(finished.payload) == payload_digest(tmp_path / "whole")
