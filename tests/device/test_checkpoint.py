"""Checkpoints written beside training hold the state of their moment, and come no more often than there is time for."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from tests.attack.conftest import SERVER, until
from torch import nn

from tercet.device import checkpoint
from tercet.device.checkpoint import REST, Saver, snapshot
from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable

KILLS = 40 if os.environ.get("TERCET_ATTACK") == "full" else 3
Pair = tuple[Trainable, torch.optim.Optimizer]


def made() -> Pair:
    torch.manual_seed(0)
    trainable = Trainable(nn.Linear(16, 16), torch.bfloat16, Mesh())
    return trainable, torch.optim.AdamW(trainable.master_weights, lr=0.1, fused=True)


def step(pair: Pair, number: int) -> None:
    trainable, optimizer = pair
    rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(number))
    trainable.backward(trainable.module(rows.bfloat16()).square().sum().float())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    trainable.published()


def numbers(pair: Pair) -> list[torch.Tensor]:
    trainable, optimizer = pair
    moments, _ = checkpoint.state_of(optimizer, trainable)
    return [value.detach().clone() for value in (*trainable.master_weights, *moments.values())]


class Held(Saver):
    """A saver on a slow disk: it begins to write when it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Mesh(), beside=True)
        self.go = threading.Event()

    def _work(self, found, began) -> None:
        self.go.wait(60)
        super()._work(found, began)


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(tmp_path):
    pair, saver, moving, extra = made(), Held(tmp_path), {"ref": torch.zeros(3)}, {"updates": 1, "monitor": [1]}
    for number in range(2):
        step(pair, number)
    wanted = numbers(pair)
    saver.save(snapshot(2, *pair, extra, moving))
    moving["ref"].add_(1)
    extra["monitor"].append(2)
    for number in range(2, 5):
        step(pair, number)
    assert not list(tmp_path.glob("step-*")), "nothing counts before it is whole"
    saver.go.set()
    saver.finish()

    other, kept = made(), {"ref": torch.ones(3)}
    found = checkpoint.load(tmp_path, *other, kept)
    assert found is not None
    assert (found["step"], found["monitor"]) == (2, [1])
    assert not kept["ref"].any()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(numbers(other), wanted, strict=True))
    for number in range(2, 5):
        step(other, number)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(numbers(other), numbers(pair), strict=True))


def test_the_next_save_waits_for_the_one_in_flight(tmp_path):
    pair, saver = made(), Saver(tmp_path, Mesh(), beside=True)
    for number in range(1, 5):
        step(pair, number)
        saver.save(snapshot(number, *pair, {"updates": number}))
    saver.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert json.loads((tmp_path / "step-00000003" / "checkpoint.json").read_text().splitlines()[0])["updates"] == 3


@pytest.mark.parametrize("beside", [False, True])
def test_what_goes_wrong_is_raised(tmp_path, beside):
    (tmp_path / "file").write_text("no folder")
    saver = Saver(tmp_path / "file", Mesh(), beside=beside)

    def save() -> None:
        saver.save(snapshot(1, *made(), {"updates": 1}))
        saver.finish()

    with pytest.raises(NotADirectoryError):
        save()


def test_a_failure_beside_training_is_told_at_the_next_step(tmp_path):
    (tmp_path / "file").write_text("no folder")
    saver = Saver(tmp_path / "file", Mesh(), beside=True)
    saver.save(snapshot(1, *made(), {"updates": 1}))
    assert saver.thread is not None
    saver.thread.join(60)
    with pytest.raises(NotADirectoryError):
        saver.due(1e6)


def test_without_room_for_a_copy_it_is_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_memory", lambda: 100.0)
    pair, saver = made(), Saver(tmp_path, Mesh(), beside=True)
    saver.save(snapshot(1, *pair, {"updates": 0}))
    assert saver.thread is None
    assert (tmp_path / "step-00000001" / "checkpoint.json").is_file()


def test_between_two_saves_there_are_twenty_times_what_training_stood_for_one_and_as_long_as_it_took(tmp_path):
    saver = Saver(tmp_path, Mesh())
    assert not saver.due(60.0)
    saver.ended = time.monotonic() - 61
    assert saver.due(60.0)
    saver.stood = 61 / REST + 1
    assert not saver.due(60.0)
    saver.ended = time.monotonic() - REST * saver.stood - 1
    assert saver.due(60.0)
    saver.took = REST * saver.stood + 10
    assert not saver.due(60.0)


def test_a_save_that_took_time_rests_from_its_end(tmp_path):
    pair, saver = made(), Saver(tmp_path, Mesh())
    before = time.monotonic()
    saver.save(snapshot(1, *pair, {"updates": 0}))
    assert 0 < saver.took <= saver.stood <= time.monotonic() - before
    assert before < saver.ended <= time.monotonic()


def test_training_stands_for_a_save_beside_it_only_while_the_state_is_copied(tmp_path):
    saver = Held(tmp_path)
    before = time.monotonic()
    saver.save(snapshot(1, *made(), {"updates": 0}))
    copied = time.monotonic() - before
    time.sleep(0.01)
    saver.go.set()
    saver.finish()
    assert 0 < saver.stood <= copied < saver.took


def test_every_step_is_saved_where_that_was_asked_for(tmp_path):
    saver = Saver(tmp_path, Mesh())
    saver.stood = saver.took = 1e9
    assert saver.due(0)


def test_nothing_is_due_while_a_save_is_in_flight(tmp_path):
    saver = Held(tmp_path)
    saver.save(snapshot(1, *made(), {"updates": 0}))
    saver.ended = time.monotonic() - 1e6
    assert not saver.due(1.0)
    assert saver.due(0)
    saver.go.set()
    saver.finish()


def keep_saving(folder: str) -> None:
    """Train and save beside it, until killed."""
    pair, saver = made(), Saver(Path(folder), Mesh(), beside=True)
    for number in count(1):
        step(pair, number)
        saver.save(snapshot(number, *pair, {"updates": number}))


def test_killed_at_any_moment_of_saves_beside_training_it_leaves_a_whole_checkpoint(tmp_path):
    chance, said = random.Random(1), []
    for kill in range(KILLS):
        folder = tmp_path / str(kill) / "work" / "checkpoints"
        child = SERVER.Process(target=keep_saving, args=(str(folder),))
        child.start()
        assert until(lambda folder=folder: (folder / "step-00000003").exists(), child.is_alive)
        time.sleep(chance.uniform(0.0, 0.03))
        child.kill()
        child.join()
        killed, whole = made(), made()
        found = checkpoint.load(folder, *killed, say=said.append)
        assert found is not None
        assert found["step"] >= 3
        for number in range(1, found["step"] + 1):
            step(whole, number)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(numbers(killed), numbers(whole), strict=True))
    assert not said, "the newest one is always whole"


def damage(path: Path, how: str) -> None:
    """Do to a file or folder what a crash, a disk or a neighbour may do to it."""
    data = path.read_bytes() if path.is_file() else b""
    if how == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    elif how == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)


@pytest.mark.parametrize("how", ["torn", "flipped", "emptied", "gone", "link", "pipe"])
@pytest.mark.parametrize("name", ["rank-00000.safetensors", "checkpoint.json"])
def test_a_damaged_checkpoint_gives_way_to_the_older_one_and_both_to_a_new_beginning(tmp_path, name, how):
    pair, saver, said = made(), Saver(tmp_path, Mesh()), []
    for number in (1, 2):
        step(pair, number)
        saver.save(snapshot(number, *pair, {"updates": number}))
        if number == 1:
            wanted = numbers(pair)
    damage(tmp_path / "step-00000002" / name, how)
    other = made()
    found = checkpoint.load(tmp_path, *other, say=said.append)
    assert found is not None
    assert found["step"] == 1
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(numbers(other), wanted, strict=True))
    assert len(said) == 1
    assert name in said[0]
    assert said[0].endswith("continuing from the checkpoint of step 1")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]

    damage(tmp_path / "step-00000001" / name, how)
    fresh, untouched = made(), numbers(made())
    assert checkpoint.load(tmp_path, *fresh, say=said.append) is None
    assert said[1].endswith("beginning anew")
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(numbers(fresh), untouched, strict=True))


def test_a_checkpoint_of_another_run_or_another_step_or_an_older_version_is_not_used(tmp_path):
    mine, theirs = (tmp_path / name / "work" / "checkpoints" for name in ("mine", "theirs"))
    for folder in (mine, theirs):
        Saver(folder, Mesh()).save(snapshot(1, *made(), {"updates": 0}))
    (theirs / "step-00000001").rename(mine / "step-00000003")
    shutil.copytree(mine / "step-00000001", mine / "step-00000002")
    (mine / "step-00000004").mkdir()
    (mine / "step-00000004" / ".metadata").write_bytes(b"a pickle")
    said: list[str] = []
    found = checkpoint.load(mine, *made(), say=said.append)
    assert found is not None
    assert found["step"] == 1
    assert [text.split(": ", 1)[1].split(";")[0].rpartition("checkpoints/")[2] for text in said] == [
        "step-00000004: has no checkpoint.json",
        "step-00000003/checkpoint.json: is step-00000001 of theirs, expected step-00000003 of mine",
        "step-00000002/checkpoint.json: is step-00000001 of mine, expected step-00000002 of mine",
    ]
