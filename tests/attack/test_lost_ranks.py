"""Ranks of real training that are killed at any moment: the stage starts again and ends in the same bytes.

Minutes long, so only where `TERCET_ATTACK=full`; tests/launch/test_nodes.py has a short one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.attack.conftest import until
from tests.attack.scale import times
from tests.train.conftest import Launch

from tercet import pipeline
from tercet.launch.beats import read
from tercet.recipe import load

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


def test_ctrl_c_ends_all_stages_that_are_made_at_once_and_each_keeps_its_last_step(workspace, tmp_path):
    sets = ("placement.at_once=2", "placement.threads=1", "placement.checkpoint_seconds=1e9")
    sets += ("stage.sft.num_epochs=400", "stage.dpo.num_epochs=400")
    graph = pipeline.graph(load(workspace.recipe_file, sets), workspace.store)
    drafts = [workspace.store.draft(name, graph[name].key).path for name in ("sft", "dpo")]
    words = ["run", str(workspace.recipe_file), "--only", "sft,dpo", "--store", str(workspace.store.root)]
    words += [part for text in sets for part in ("--set", text)]
    output = tmp_path / "output.txt"
    with open(output, "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "tercet", *words], stdout=log, stderr=log)
    running = Launch(process, drafts[0], output)
    assert until(lambda: all(len(steps(one)) >= 3 for one in drafts), lambda: running.process.poll() is None, 120)
    below = running.below()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(25) == 130
    assert not [pid for pid in below if Path("/proc", str(pid)).exists()]
    for one in drafts:
        [last] = one.glob("work/checkpoints/step-*")
        assert int(last.name.removeprefix("step-")) == steps(one)[-1]


def steps(draft: Path) -> list[int]:
    """The steps in the metrics of a draft."""
    file = draft / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]
