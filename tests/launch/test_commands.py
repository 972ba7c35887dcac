"""The command line of a stage for every launcher."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tercet.launch.commands import Started, argv
from tercet.recipe import Placement, RecipeError

STARTED = Started(Path("/s/.draft-sft-0123456789ab"), "0123456789ab", parallel=True)
STAGE = ["-m", "tercet.stage", "--draft", "/s/.draft-sft-0123456789ab"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PORT = 15_000 + int("0123456789ab", 16) % 15_000
TWO = ["--nnodes", "2", "--max-restarts", "0", "--rdzv-id", "0123456789ab", "--rdzv-backend", "c10d"]


@pytest.fixture
def allocation(tmp_path, monkeypatch):
    """An allocation of two machines: `scontrol` lists them."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho n017\necho n018\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[017-018]")


def test_one_rank_is_a_plain_process():
    assert argv(Placement(), STARTED) == [sys.executable, *STAGE]


def test_a_stage_that_does_not_train_is_one_process_whatever_the_placement():
    alone = Started(STARTED.draft, STARTED.key, parallel=False)
    assert argv(Placement(nodes=2, gpus=8, launch="slurm"), alone) == [sys.executable, *STAGE]


def test_ranks_on_one_machine_are_torchruns():
    assert argv(Placement(ranks=8), STARTED) == [
        *TORCHRUN,
        *("--standalone", "--nproc-per-node", "8"),
        *STAGE,
        "--rank",
    ]


@pytest.mark.parametrize("given", ["", "10.0.0.1:29500"])
def test_torchruns_on_two_machines_meet_under_the_key_at_one_address(given):
    meeting = given or f"{socket.gethostname()}:{PORT}"
    found = argv(Placement(nodes=2, gpus=8, rendezvous=given), STARTED)
    meets = ["--rdzv-endpoint", meeting, "--rdzv-conf", "is_host=1"]
    assert found == [*TORCHRUN, *TWO, *meets, "--nproc-per-node", "8", *STAGE, "--rank"]
    joined = argv(Placement(nodes=2, gpus=8, rendezvous=given), replace(STARTED, joined=True))
    assert joined == ["is_host=0" if word == "is_host=1" else word for word in found]


def test_under_slurm_srun_starts_a_torchrun_on_each_machine_and_they_meet_at_the_first(allocation):
    found = argv(Placement(nodes=2, gpus=8, launch="slurm"), STARTED)
    srun = ["srun", "--nodes", "2", "--ntasks-per-node", "1", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    meeting = ["--rdzv-endpoint", f"n017:{PORT}"]
    assert found == [*srun, *TORCHRUN, *TWO, *meeting, "--nproc-per-node", "8", *STAGE, "--rank"]


def test_outside_an_allocation_slurm_is_refused(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(RecipeError, match="inside sbatch or salloc"):
        argv(Placement(nodes=2, gpus=8, launch="slurm"), STARTED)


def test_ray_is_told_how_many_machines_and_cards_and_adds_the_address():
    found = argv(Placement(nodes=2, gpus=8, launch="ray"), STARTED)
    logs = "/s/.draft-sft-0123456789ab/ranks"
    ray = [sys.executable, "-m", "tercet.device.ray_nodes", "--nodes", "2", "--gpus", "8", "--logs", logs, "--"]
    assert found == [*ray, *TORCHRUN[1:], *TWO, "--nproc-per-node", "8", *STAGE, "--rank"]


def test_what_the_surroundings_started_is_a_rank_itself():
    assert argv(Placement(nodes=2, gpus=8, launch="env"), STARTED) == [sys.executable, *STAGE, "--rank"]


@pytest.mark.parametrize(
    ("given", "ranks", "per_node"),
    [
        ({}, 1, 1),
        ({"ranks": 8}, 8, 8),
        ({"gpus": 8}, 8, 8),
        ({"nodes": 4, "gpus": 8}, 32, 8),
        ({"nodes": 4, "ranks": 32}, 32, 8),
        ({"nodes": 4, "gpus": 8, "ranks": 32}, 32, 8),
    ],
)
def test_ranks_are_nodes_times_gpus(given, ranks, per_node):
    found = Placement(**given)
    assert (found.ranks, found.per_node) == (ranks, per_node)
    assert Placement(**found.model_dump()) == found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": 2, "gpus": 8, "ranks": 8}, "ranks is 8, but nodes times gpus is 2 x 8; set it to 16"),
        ({"nodes": 2}, "1 ranks cannot be shared by 2 nodes; give gpus"),
        ({"nodes": 3, "ranks": 8}, "8 ranks cannot be shared by 3 nodes"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Placement(**given)
