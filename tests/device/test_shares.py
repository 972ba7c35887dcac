"""What one number of ranks has written, another number reads; and ranks agree on which checkpoint is whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tercet.device.shares import Shares, check_file, write_shares
from tercet.journal import DamagedError

# One rank: it makes weights of its own seed, then saves them, or loads what there is and says the sums of the whole.
RANK = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from tercet.device import checkpoint
from tercet.device.mesh import mesh
from tercet.device.optim import state_of
from tercet.device.shard import Trainable

what, folder, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
with mesh() as ranks:
    torch.manual_seed(step)
    module = nn.Sequential(nn.ModuleList([nn.Linear(3, 7), nn.Linear(5, 1)]))
    trainable = Trainable(module, torch.float32, ranks)
    optimizer = torch.optim.AdamW(trainable.master_weights, lr=0.1)
    kept, said = {"moving": torch.full((3,), float(step))}, []
    if what == "save":
        saver = checkpoint.Saver(folder, ranks, beside=True)  # a copy first, as on cards
        for number in range(1, step + 1):
            for weight in trainable.master_weights:
                weight.grad = torch.ones_like(weight)
            optimizer.step()
            found = checkpoint.snapshot(number, trainable, optimizer, {"updates": number}, kept)
            saver.save(found)
        saver.finish()
    else:
        found = checkpoint.load(folder, trainable, optimizer, kept, said.append)
        said.append(found and found["step"])
    values = dict(trainable.full_state()) | state_of(optimizer, trainable)[0] | kept
    whole = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in values.items()}
    if ranks.first:
        numbers = {name: value.double().flatten().tolist() for name, value in sorted(whole.items())}
        print(json.dumps({"said": said, "numbers": numbers}))
"""


def ranks(number: int, what: str, folder: Path, step: int) -> dict:
    """What rank 0 of so many says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK, what, str(folder), str(step)]
    running = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(i)}, stdout=subprocess.PIPE, text=True)
        for i in range(number)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * number
    return json.loads(outputs[0].splitlines()[-1])


def test_other_numbers_of_ranks_read_a_checkpoint_and_agree_on_a_damaged_one(tmp_path):
    folder = tmp_path / "work" / "checkpoints"
    two = ranks(2, "save", folder, 2)["numbers"]
    assert ranks(3, "load", folder, 5) == {"said": [2], "numbers": two}
    file = folder / "step-00000002" / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    read = ranks(2, "load", folder, 5)
    assert read["numbers"] != two
    assert read["said"][1] == 1
    assert "rank-00001.safetensors" in read["said"][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_dtype_comes_back_bit_by_bit(tmp_path, dtype):
    mine = {
        "b": torch.arange(6).reshape(2, 3).to(dtype),
        "a": torch.ones(5, dtype=torch.uint8),
        "one": torch.tensor(2.0),
    }
    file = tmp_path / "rank"
    check_file(file, write_shares(file, mine, first=True))
    read = {name: torch.zeros_like(value) for name, value in mine.items()}
    Shares([file]).fill(read)
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in mine.items())


@pytest.mark.parametrize("wrong", ["other", "shape", "dtype"])
def test_nothing_is_changed_where_something_is_missing(tmp_path, wrong):
    write_shares(tmp_path / "rank", {"a": torch.ones(2), "b": torch.ones(2)}, first=True)
    strange = {"other": ("c", torch.zeros(2)), "shape": ("b", torch.zeros(3)), "dtype": ("b", torch.zeros(2).half())}
    read = {"a": torch.zeros(2), **dict([strange[wrong]])}
    with pytest.raises(DamagedError, match=str(tmp_path)):
        Shares([tmp_path / "rank"]).fill(read)
    assert not read["a"].any()
