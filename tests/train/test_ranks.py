"""Two ranks are one rank, to rounding: losses, weights, rollouts; and they continue after a kill."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from tercet.rows import read_table
from tercet.track import read_metrics

TWO = ("placement.ranks=2", "placement.threads=1")


def finish(launch, kitchen, stage: str, *sets: str):
    running = launch(kitchen, stage, *sets)
    code = running.process.wait(timeout=240)
    log = running.draft / "log.txt"
    assert code == 0, log.read_text() if log.is_file() else (kitchen.recipe_file.parent / f"{stage}.log").read_text()
    return kitchen.store.open(stage)


def compare(kitchen, launch, tmp_path, stage: str, changes: dict[str, object]):
    """One rank in this process, two under torchrun; returns the two payloads."""
    sets = [f"stage.{stage}.{key}={json.dumps(value)}" for key, value in changes.items()]
    two = finish(launch, kitchen, stage, *TWO, *sets)
    kitchen.cook(stage, tmp_path / "one", **{stage: changes})
    mine = read_metrics(tmp_path / "one.draft" / "metrics.jsonl")
    theirs = read_metrics(two.path / "metrics.jsonl")
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for ours, other in zip(mine, theirs, strict=True):
        assert other.get("loss") == pytest.approx(ours.get("loss"), rel=1e-4, abs=1e-5)
        assert other["useful_tokens"] == ours["useful_tokens"]
    alone, shared = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", two.payload))
    start = load_file(kitchen.store.open("base").payload / "model.safetensors")
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5)
    assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in alone.items() if name in start)
    return tmp_path / "one", two.payload


def test_two_ranks_give_one_ranks_losses_and_weights_in_sft(kitchen, launch, tmp_path):
    compare(kitchen, launch, tmp_path, "sft", {"dtype": "float32", "epochs": 3})


def test_two_ranks_give_one_ranks_losses_and_weights_in_dpo(kitchen, launch, tmp_path):
    one, two = compare(kitchen, launch, tmp_path, "dpo", {"dtype": "float32", "epochs": 2, "eps": 1e-4})
    alone, shared = (read_table(folder / "tercet" / "reference.parquet") for folder in (one, two))
    for mine, theirs in zip(alone, shared, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


def test_two_ranks_write_the_same_rollouts_and_learn_the_same_from_them(kitchen, launch, tmp_path):
    one, two = compare(kitchen, launch, tmp_path, "rlvr", {"dtype": "float32", "steps": 3, "eps": 1e-4})
    alone, shared = (read_table(folder / "tercet" / "rollouts.parquet") for folder in (one, two))
    first = [[row for row in rows if row["step"] == 0] for rows in (alone, shared)]
    assert first[0] == first[1]
    assert len(first[0]) == 48


def test_two_ranks_continue_after_a_kill_and_end_in_the_same_bytes(kitchen, launch, pantry, tmp_path):
    running = launch(kitchen, "sft", *TWO, "stage.sft.epochs=4")
    deadline = time.monotonic() + 120
    while running.progress() < 4:
        assert running.process.poll() is None, (running.draft / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    running.kill()
    assert list((running.draft / "work" / "checkpoints").glob("step-*"))
    killed = finish(launch, kitchen, "sft", *TWO, "stage.sft.epochs=4")
    steps = [json.loads(line)["step"] for line in (killed.path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 1
    assert steps.count(1) == 1, "the second run began again"
    kitchen.store.root = tmp_path / "again"
    import shutil

    shutil.copytree(pantry.store.root, kitchen.store.root)
    whole = finish(launch, kitchen, "sft", *TWO, "stage.sft.epochs=4")
    assert killed.record["digest"] == whole.record["digest"]
