"""Two torchruns on this machine as two machines, and two processes that are ranks: all is well, or one is lost."""

from __future__ import annotations

import io
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.launch import dry_run, joining
from tercet.launch.ending import StageError
from tercet.recipe import KINDS
from tercet.store import Store

HERE = re.escape(socket.gethostname())


@pytest.fixture
def steps(monkeypatch):
    """The training stage takes steps with a collective in each; `ORDER` says what its second rank does at the tenth."""
    monkeypatch.setattr(KINDS["sft"], "module", "steps_stage")
    return lambda order: monkeypatch.setenv("ORDER", order)


def run(recipe, store: Store):
    """The training stage of a run, and what the run said."""
    said = io.StringIO()
    made = pipeline.run(recipe, store, console=Console(file=said, width=1000))
    return made["sft"], said.getvalue()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def processes_of(root: Path) -> list[int]:
    """The living processes that work on drafts of a store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, state = (entry / "cmdline").read_bytes(), (entry / "stat").read_text().rpartition(")")[2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(root) in command and state.split()[0] not in "ZX":
            found.append(int(entry.name))
    return found


def test_srun_starts_what_the_dry_run_says_and_after_a_kill_the_stage_ends_where_it_would_have(
    ranked, slurm, steps, tmp_path
):
    steps("1:SIGKILL")
    recipe, store = ranked(nodes=2, gpus=1, launch="slurm", threads=1, max_restarts=1), Store(tmp_path / "runs")
    [promised] = [one.argv for one in dry_run.commands(recipe, store, pipeline.graph(recipe, store)) if one.ranks == 2]
    made, said = run(recipe, store)
    assert (made.payload / "total").read_text() == "[2.0] 19"
    assert ["srun", *slurm.read_text().splitlines()] == promised
    line, again = [line for line in said.splitlines() if "starts again" in line]
    assert line == again, "told at once, and once more among the artifact's notes"
    cause = rf"rank 1 on {HERE} \(process \d+\) was killed by SIGKILL \(step 10\)"
    assert re.match(rf"stage 'sft' starts again from its last checkpoint \(1 of 1\): {cause}; ", line)


def test_a_stopped_rank_ends_everything_on_both_machines_within_the_timeout(ranked, steps, tmp_path):
    steps("1:SIGSTOP")
    placement = {"nodes": 2, "gpus": 1, "threads": 1, "rendezvous": f"127.0.0.1:{free_port()}", "rank_timeout": 4}
    recipe, store, ended = ranked(**placement), Store(tmp_path / "runs"), []
    other = threading.Thread(target=lambda: ended.append(joining.join(recipe, store)))
    other.start()
    with pytest.raises(StageError, match=rf"rank 1 on {HERE} .* has shown no sign of life for \d+ s \(step 10\)"):
        run(recipe, store)
    began = time.monotonic()
    other.join(30)
    assert ended == [False]
    assert time.monotonic() - began < 10
    assert not processes_of(store.root)


def test_processes_that_the_surroundings_started_are_the_ranks_of_one_stage(ranked, tmp_path, monkeypatch):
    recipe, store = ranked(nodes=2, gpus=1, threads=1, launch="env"), Store(tmp_path / "runs")
    told, ended = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, []
    for name, value in ({"RANK": "0"} | told).items():
        monkeypatch.setenv(name, value)
    other = threading.Thread(target=lambda: ended.append(joining.join(recipe, store, {"RANK": "1"} | told)))
    other.start()
    made, _ = run(recipe, store)
    other.join(30)
    assert ended == [True]
    assert (made.payload / "world").read_text() == "2"
