"""Two torchruns on this machine as two machines."""

from __future__ import annotations

import io
import socket
import threading

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.launch import dry_run, joining
from tercet.store import Store


def run(recipe, store: Store):
    return pipeline.run(recipe, store, console=Console(file=io.StringIO(), width=200))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_srun_starts_the_command_of_the_dry_run_and_its_ranks_are_one_stage(ranked, slurm, tmp_path):
    recipe, store = ranked(nodes=2, gpus=1, launch="slurm", threads=1), Store(tmp_path / "runs")
    [promised] = [one.argv for one in dry_run.commands(recipe, store, pipeline.graph(recipe, store)) if one.ranks == 2]
    made = run(recipe, store)["sft"]
    assert (made.payload / "world").read_text() == "2"
    assert ["srun", *slurm.read_text().splitlines()] == promised


@pytest.mark.parametrize("launch", ["torchrun", "env"])
def test_two_processes_that_find_each_other_in_the_store_are_one_stage(ranked, tmp_path, monkeypatch, launch):
    placement = {"nodes": 2, "gpus": 1, "threads": 1, "launch": launch, "rendezvous": f"127.0.0.1:{free_port()}"}
    recipe, store, ended = ranked(**placement), Store(tmp_path / "runs"), []
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in ({"RANK": "0"} | told).items():  # under torchrun nobody believes it
        monkeypatch.setenv(name, value)
    other = threading.Thread(target=lambda: ended.append(joining.join(recipe, store, {"RANK": "1"} | told)))
    other.start()
    made = run(recipe, store)["sft"]
    other.join(30)
    assert ended == [True]
    assert (made.payload / "world").read_text() == "2"
