"""Two torchruns on this machine as two machines."""

from __future__ import annotations

import io

from rich.console import Console

from tercet import pipeline
from tercet.launch import dry_run
from tercet.store import Store


def run(recipe, store: Store):
    return pipeline.run(recipe, store, console=Console(file=io.StringIO(), width=200))


def test_srun_starts_the_command_of_the_dry_run_and_its_ranks_are_one_stage(ranked, slurm, tmp_path):
    recipe, store = ranked(nodes=2, gpus=1, launch="slurm", threads=1), Store(tmp_path / "runs")
    [promised] = [one.argv for one in dry_run.commands(recipe, store, pipeline.graph(recipe, store)) if one.ranks == 2]
    made = run(recipe, store)["sft"]
    assert (made.payload / "world").read_text() == "2"
    assert ["srun", *slurm.read_text().splitlines()] == promised
