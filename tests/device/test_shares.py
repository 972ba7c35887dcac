"""What one number of ranks has written, another number reads; and ranks agree on which checkpoint is whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import parallel  # noqa: TID251  (cuts layers as transformers' plans do)

from tercet.device import checkpoint
from tercet.device.axes import divide
from tercet.device.mesh import Mesh, mesh
from tercet.device.optim import state_of
from tercet.device.shard import Trainable
from tercet.device.shares import Shares, check_file, write_shares
from tercet.journal import DamagedError
from tercet.recipe import Placement
from tercet.recipe.placement import MeshShape

STEPS = (1, 2)


class Training:
    """Weights, optimiser and a moving tensor on the ranks of a mesh; `seed` tells them from others'."""

    def __init__(self, ranks: Mesh, seed: int) -> None:
        torch.manual_seed(seed)
        columns, rows, whole = nn.Linear(3, 7), nn.Linear(5, 1), nn.Linear(4, 3)
        module = nn.Sequential(nn.ModuleList([columns, rows, whole]))
        if ranks.axes and ranks.axes.tensor:
            parallel.parallelize_module(columns, ranks.axes.tensor, parallel.ColwiseParallel())
            parallel.parallelize_module(rows, ranks.axes.tensor, parallel.RowwiseParallel())
        self.trainable = Trainable(module, torch.float32, ranks)
        self.optimizer = torch.optim.AdamW(self.trainable.master_weights, lr=0.1)
        self.kept = {"moving": torch.full((3,), float(seed))}
        self.said: list[str] = []

    def save(self, folder: Path) -> None:
        """Train and save: a copy first, as on cards."""
        saver = checkpoint.Saver(folder, self.trainable.mesh, beside=True)
        for number in STEPS:
            for weight in self.trainable.master_weights:
                weight.grad = torch.ones_like(weight)
            self.optimizer.step()
            saver.save(checkpoint.snapshot(number, self.trainable, self.optimizer, {"updates": number}, self.kept))
        saver.finish()

    def load(self, folder: Path) -> int | None:
        """The step that was found."""
        found = checkpoint.load(folder, self.trainable, self.optimizer, self.kept, self.said.append)
        return found and found["step"]

    def numbers(self) -> dict[str, list[float]]:
        """All that a checkpoint holds, whole."""
        values = dict(self.trainable.full_state()) | state_of(self.optimizer, self.trainable)[0] | self.kept
        whole = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in values.items()}
        return {name: value.double().flatten().tolist() for name, value in sorted(whole.items())}


def damage(folder: Path) -> None:
    """What a crash of one rank's node may leave of the newest checkpoint, and what a disk may do to it."""
    first, second = (folder / "step-00000002" / f"rank-0000{rank}.safetensors" for rank in range(2))
    if folder.parts[-4] == "torn":
        second.write_bytes(second.read_bytes()[:-1])
    elif folder.parts[-4] == "gone":
        first.unlink()
    else:
        second.write_bytes(second.read_bytes()[:-1] + b"?")


def meet_a_full_disk(training: Training, folder: Path) -> str:
    """What a rank is told where the second one can write a hundred bytes and no more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if training.trainable.mesh.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    with pytest.raises(OSError, match="too large") as told:
        training.save(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return f"{told.value}, {len(list(folder.glob('step-*')))} checkpoints"


def rank(what: str, root: str) -> None:
    """One rank: reads what another number of ranks wrote, then writes or meets damaged files."""
    replicas, found = (2 if what == "groups" else 1), []
    with mesh(Placement(ranks=int(os.environ["WORLD_SIZE"]), mesh={"replicate": replicas})) as ranks:
        own, other = (Path(root, name, "work", "checkpoints") for name in (what, "one" if what == "two" else "two"))
        training = Training(ranks, 5)
        found.append([training.load(other), training.numbers()])
        training.save(own)
        found.append([STEPS[-1], training.numbers()])
        if what == "groups":
            shape = MeshShape(replicate=1, shard=2, tensor=2)
            cut = replace(ranks, axes=divide(shape, "cpu", timedelta(minutes=2)))
            training = Training(cut, 7)
            found.append([training.load(own), training.numbers()])
            training.save(Path(root, "cut", "work", "checkpoints"))
            found.append([STEPS[-1], training.numbers()])
        for how in ("torn", "gone", "flipped") if what == "two" else ():
            folder = Path(root, how, "two", "work", "checkpoints")
            if ranks.first:
                shutil.copytree(own, folder)
                damage(folder)
            ranks.barrier()
            training = Training(ranks, 6)
            found.append([training.load(folder), training.said])
        if what == "two":
            found.append(meet_a_full_disk(training, Path(root, "full", "work", "checkpoints")))
    sys.stdout.write(json.dumps(found))


def start(number: int, what: str, root: Path) -> list:
    """What rank 0 of so many found; all of them found the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "import sys; from tests.device.test_shares import rank; rank(*sys.argv[1:])"]
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
    running = [
        subprocess.Popen([*command, what, str(root)], env={**os.environ, **shared, "RANK": str(i)}, **options)
        for i in range(number)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * number
    assert len(set(outputs)) == 1
    return json.loads(outputs[0])


def test_one_rank_two_groups_of_two_and_ranks_that_cut_products_read_each_others_checkpoints(tmp_path):
    one = Training(Mesh(), 1)
    one.save(tmp_path / "one" / "work" / "checkpoints")
    read, written, *damaged, full = start(2, "two", tmp_path)
    assert full == "[Errno 27] File too large, 0 checkpoints"
    assert read == [2, one.numbers()]
    assert [step for step, _ in damaged] == [1, 1, 1]
    for (_, said), file in zip(damaged, ("rank-00001", "rank-00000", "rank-00001"), strict=True):
        assert len(said) == 1
        assert f"{file}.safetensors" in said[0]
    other = Training(Mesh(), 2)
    assert [other.load(tmp_path / "two" / "work" / "checkpoints"), other.numbers()] == written
    read, groups, read_cut, cut = start(4, "groups", tmp_path)
    assert read == written
    for name, found in (("groups", groups), ("cut", cut)):
        files = sorted((tmp_path / name / "work" / "checkpoints" / "step-00000002").glob("rank-*"))
        sizes = [sum(part.numel() for part in load_file(file).values()) for file in files]
        assert all(sizes), "every rank writes"
        assert sum(sizes) == sum(map(len, found[1].values())), "every number is written once"
    last = Training(Mesh(), 3)
    assert [last.load(tmp_path / "groups" / "work" / "checkpoints"), last.numbers()] == groups == read_cut
    last = Training(Mesh(), 4)
    assert [last.load(tmp_path / "cut" / "work" / "checkpoints"), last.numbers()] == cut


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_dtype_comes_back_bit_by_bit(tmp_path, dtype):
    mine = {
        "b": torch.arange(6).reshape(2, 3).to(dtype),
        "a": torch.ones(5, dtype=torch.uint8),
        "one": torch.tensor(2.0),
    }
    file = tmp_path / "rank"
    check_file(file, write_shares(file, mine))
    read = {name: torch.zeros_like(value) for name, value in mine.items()}
    Shares([file]).fill(read)
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in mine.items())


@pytest.mark.parametrize("wrong", ["other", "shape", "dtype"])
def test_nothing_is_changed_where_something_is_missing(tmp_path, wrong):
    write_shares(tmp_path / "rank", {"a": torch.ones(2), "b": torch.ones(2)})
    strange = {"other": ("c", torch.zeros(2)), "shape": ("b", torch.zeros(3)), "dtype": ("b", torch.zeros(2).half())}
    read = {"a": torch.zeros(2), **dict([strange[wrong]])}
    with pytest.raises(DamagedError, match=str(tmp_path)):
        Shares([tmp_path / "rank"]).fill(read)
    assert not read["a"].any()
