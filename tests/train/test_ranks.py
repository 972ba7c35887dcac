"""Two ranks are one rank, to rounding: losses, weights, rollouts; and they continue after a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tercet.rows import read_table
from tercet.store import payload_digest
from tercet.track import read_metrics

TWO = ("placement.ranks=2", "placement.threads=1")


def finish(launch, workspace, stage: str, *sets: str):
    running = launch(workspace, stage, *sets)
    code = running.process.wait(timeout=240)
    assert code == 0, running.output.read_text(encoding="utf-8")
    return workspace.store.open(stage)


def compare(workspace, launch, tmp_path, stage: str, changes: dict[str, object], *more: str):
    """One rank in this process, two under torchrun; returns the two payloads."""
    sets = [*more, *(f"stage.{stage}.{key}={json.dumps(value)}" for key, value in changes.items())]
    two = finish(launch, workspace, stage, *TWO, *sets)
    workspace.run_stage(stage, tmp_path / "one", **{stage: changes})
    mine = read_metrics(tmp_path / "one.draft" / "metrics.jsonl")
    theirs = read_metrics(two.path / "metrics.jsonl")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for ours, other in zip(mine, theirs, strict=True):
        assert other.get("loss") == pytest.approx(ours.get("loss"), rel=1e-4, abs=1e-5)
        assert other["useful_tokens"] == ours["useful_tokens"]
    alone, shared = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", two.payload))
    start = load_file(workspace.store.open("base").payload / "model.safetensors")
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5)
    assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in alone.items() if name in start)
    return tmp_path / "one", two.payload


def test_two_ranks_give_one_ranks_losses_and_weights_in_sft_and_continue_after_a_kill(workspace, launch, tmp_path):
    settings = {"dtype": "float32", "num_epochs": 3}
    other = workspace.copy(tmp_path / "other")
    _, whole = compare(workspace, launch, tmp_path, "sft", settings)
    sets = [*TWO, *(f"stage.sft.{key}={json.dumps(value)}" for key, value in settings.items())]
    running = launch(other, "sft", *sets)
    wait_for(lambda: running.progress() >= 4)
    below = running.below()
    assert len(below) >= 3, "torchrun and two ranks"
    os.kill(running.process.pid, signal.SIGKILL)
    os.killpg(below[0], signal.SIGKILL)  # the stage's process group; torchrun gives each rank one of its own
    wait_for(lambda: not any(alive(pid) for pid in below))
    assert list((running.draft / "work" / "checkpoints").glob("step-*"))
    killed = finish(launch, other, "sft", *sets)
    steps = [json.loads(line)["step"] for line in (killed.path / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(1) == 1, "it began again instead of continuing"
    assert killed.record["digest"] == payload_digest(whole)


def wait_for(happened) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_ranks_give_one_ranks_losses_and_weights_in_dpo(workspace, launch, tmp_path):
    one, two = compare(workspace, launch, tmp_path, "dpo", {"dtype": "float32", "num_epochs": 2, "eps": 1e-4})
    alone, shared = (read_table(folder / "tercet" / "reference.parquet") for folder in (one, two))
    for mine, theirs in zip(alone, shared, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


def test_two_ranks_write_the_same_rollouts_and_learn_the_same_from_them(workspace, launch, tmp_path):
    one, two = compare(workspace, launch, tmp_path, "rlvr", {"dtype": "float32", "rounds": 3, "eps": 1e-4})
    alone, shared = (read_table(folder / "tercet" / "rollouts.parquet") for folder in (one, two))
    first = [[row for row in rows if row["step"] == 0] for rows in (alone, shared)]
    assert first[0] == first[1]
    assert len(first[0]) == 48


@pytest.mark.parametrize(
    ("stage", "settings"),
    [("ppo", {"rounds": 2}), ("lagged", {"rounds": 4, "num_generations": 8, "max_new_tokens": 40})],
)
def test_two_ranks_learn_the_same_with_a_critic_and_from_rounds_written_ahead(
    workspace, launch, tmp_path, stage, settings
):
    one, two = compare(workspace, launch, tmp_path, stage, {"dtype": "float32", "eps": 1e-4, **settings})
    alone, shared = (read_table(folder / "tercet" / "rollouts.parquet") for folder in (one, two))
    kept = ("step", "prompt_id", "version")
    assert [[row[key] for key in kept] for row in alone] == [[row[key] for key in kept] for row in shared]


@pytest.mark.skipif(os.environ.get("TERCET_ATTACK") != "full", reason="minutes; set TERCET_ATTACK=full")
@pytest.mark.parametrize("axis", ["tensor", "context"])
@pytest.mark.parametrize("stage", ["sft", "dpo", "rlvr", "ppo"])
def test_two_ranks_that_share_products_or_tokens_make_a_stage_as_one_does(workspace, launch, tmp_path, stage, axis):
    rounds = {"rounds": 2} if stage in ("rlvr", "ppo") else {"num_epochs": 2}
    compare(workspace, launch, tmp_path, stage, {"dtype": "float32", "eps": 1e-4, **rounds}, f"placement.mesh.{axis}=2")
