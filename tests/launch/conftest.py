"""A recipe whose training stage is a fake that only needs to be started in the right number of processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tercet.recipe import KINDS, Recipe

PLAIN = """
def run(spec, inputs, out, ctx):
    (out / "rows.txt").write_text(ctx.name)
    return {}
"""
RANKED = """
import os, socket, time

def run(spec, inputs, out, ctx):
    rank, world = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    (ctx.work / rank).write_text(os.environ["MASTER_ADDR"])
    while len(list(ctx.work.iterdir())) < world:
        time.sleep(0.02)
    if rank == "0":
        time.sleep(0.5)
        (out / "world").write_text(str(world))
    return {}
"""
STEPS = """
import os, signal, time
from tercet.device.mesh import mesh

def run(spec, inputs, out, ctx):
    place, asked = ctx.work / "place", os.environ.get("ORDER", ":").split(":")
    with mesh(ctx.recipe.placement) as ranks:
        for step in range(int(place.read_text()) if place.exists() else 0, 20):
            if asked[0] == str(ranks.rank) and step == 10 and not (ctx.work / "obeyed").exists():
                (ctx.work / "obeyed").touch()
                time.sleep(1.2)  # longer than from one sign of life to the next
                os.kill(os.getpid(), getattr(signal, asked[1]))
            total = ranks.sum([1.0])
            if ranks.first:
                place.write_text(str(step + 1))
            ctx.track.progress(step + 1, 20)
            time.sleep(0.02)
        if ranks.first:
            (out / "total").write_text(f"{total} {step}")
    return {}
"""


@pytest.fixture
def ranked(tmp_path, monkeypatch):
    """A recipe with a training stage, for a placement: its module only waits until all ranks are there."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "plain_stage.py").write_text(PLAIN)
    (modules / "ranked_stage.py").write_text(RANKED)
    (modules / "steps_stage.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", f"{modules}:{os.environ.get('PYTHONPATH', '')}")
    for kind in ("base", "synth"):
        monkeypatch.setattr(KINDS[kind], "module", "plain_stage")
    monkeypatch.setattr(KINDS["sft"], "module", "ranked_stage")

    def recipe(**placement: object) -> Recipe:
        stages = {
            "words": {"kind": "synth", "generator": "words@1", "rows": 3},
            "sft": {"kind": "sft", "model": "base", "rows": "words", "max_length": 512},
        }
        plain = {"name": "ranked", "base": {"model": "tiny:"}, "stage": stages, "placement": placement}
        return Recipe.model_validate(plain)

    return recipe


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """SLURM's commands for machines that are all this one; the file says what srun was told."""
    told, folder = tmp_path / "srun.txt", tmp_path / "slurm"
    folder.mkdir()
    scripts = {
        "scontrol": "echo 127.0.0.1",
        "srun": f"""printf '%s\\n' "$@" > {told}
nodes=$2; shift 6
for node in $(seq "$nodes"); do "$@" & done
code=0; for node in $(seq "$nodes"); do wait -n || code=1; done; exit $code""",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "here")
    return told
