"""Ranks of real training that are killed at any moment: the stage starts again and ends in the same bytes.

Minutes long, so only where `TERCET_ATTACK=full`; tests/launch/test_nodes.py has a short one.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from tests.attack.conftest import until
from tests.attack.scale import times

from tercet.launch.beats import read

TWO = ("placement.ranks=2", "placement.threads=1", "placement.rank_timeout=20")

pytestmark = pytest.mark.skipif(times(10) == 1, reason="takes minutes; TERCET_ATTACK=full runs it")


@pytest.mark.parametrize("stage", ["sft", "rlvr"])
def test_a_stage_that_lost_ranks_three_times_ends_in_the_bytes_of_one_that_lost_none(
    workspace, launch, tmp_path, stage
):
    chance, calm = random.Random(f"lost {stage}"), workspace.copy(tmp_path / "calm")
    undisturbed = launch(calm, stage, *TWO)
    assert undisturbed.process.wait(240) == 0, undisturbed.output.read_text()
    running = launch(workspace, stage, *TWO, "placement.max_restarts=3")
    lost: set[int] = set()
    for kill in range(3):
        reached = 3 + 4 * kill
        assert until(lambda reached=reached: running.progress() >= reached, lambda: running.process.poll() is None, 120)
        victim = chance.choice([beat.pid for beat in read(running.draft).values() if beat.pid not in lost])
        time.sleep(chance.uniform(0.0, 0.3))
        lost.add(victim)
        os.kill(victim, signal.SIGKILL)
        said = f"({kill + 1} of 3): rank"
        assert until(lambda said=said: said in running.output.read_text(), lambda: running.process.poll() is None, 60)
    assert running.process.wait(240) == 0, running.output.read_text()
    assert running.output.read_text().count("was killed by SIGKILL") == 6, "each told at once, and among the notes"
    ours, theirs = workspace.store.open(stage), calm.store.open(stage)
    assert ours.record["digest"] == theirs.record["digest"]
