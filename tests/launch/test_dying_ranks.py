"""Ranks that are killed or stopped: the others end in time, the right one is named, the stage starts again."""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.launch.ending import StageError
from tercet.recipe import KINDS
from tercet.store import Store


@pytest.fixture
def run(ranked, tmp_path, monkeypatch):
    """Run two ranks of which the second obeys an order at its tenth step; gives what the run said."""
    monkeypatch.setattr(KINDS["sft"], "module", "steps_stage")

    def started(order: str, **placement: object):
        monkeypatch.setenv("ORDER", order)
        said = io.StringIO()
        recipe = ranked(ranks=2, threads=1, **placement)
        made = pipeline.run(recipe, Store(tmp_path / "runs"), console=Console(file=said, width=1000))
        return made["sft"], said.getvalue()

    return started


def ranks_of(root: Path) -> list[int]:
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


def test_a_killed_rank_is_named_and_the_stage_ends_where_it_would_have_after_a_new_start(run, tmp_path):
    made, said = run("1:SIGKILL", max_restarts=1)
    assert (made.payload / "total").read_text() == "[2.0] 19"
    line, again = [line for line in said.splitlines() if "starts again" in line]
    assert line == again, "told at once, and once more among the artifact's notes"
    assert line.startswith(
        f"stage 'sft' starts again from its last checkpoint (1 of 1): rank 1 on {socket.gethostname()}"
    )
    assert "was killed by SIGKILL (step 1" in line


def test_a_stopped_rank_ends_everything_within_the_timeout(run, tmp_path):
    began = time.monotonic()
    with pytest.raises(StageError, match=r"rank 1 on .* has shown no sign of life for \d+ s \(step 10\)") as raised:
        run("1:SIGSTOP", rank_timeout=4)
    assert raised.value.code == 1
    assert time.monotonic() - began < 40, "start included"
    assert not ranks_of(tmp_path / "runs")
