"""What a trainer sends to engines: the names, shapes and numbers of the folder that it would export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tercet.device.broadcast import free_port
from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models.engines.buckets import packed, received
from tercet.models.engines.policy_source import PolicySource
from tercet.models.hf_folder import load_config
from tercet.models.lora import adapt
from tercet.models.opening import open_policy
from tercet.models.vllm.weights import checksum
from tercet.recipe import LoraSpec
from tercet.train.export import write_folder

RANK = """
import json, os, sys
from pathlib import Path
import torch
from tercet.device.mesh import mesh
from tercet.device.shard import Trainable
from tercet.models.engines.buckets import packed, received
from tercet.models.engines.policy_source import PolicySource
from tercet.models.hf_folder import load_config
from tercet.models.meta_policy import meta_policy
from tercet.models.vllm.weights import checksum
from tercet.recipe import Placement

folder, shape = Path(sys.argv[1]), json.loads(sys.argv[2])
with mesh(Placement(ranks=int(os.environ["WORLD_SIZE"]), mesh=shape)) as ranks:
    trainable = Trainable(meta_policy(folder, "auto"), torch.float32, ranks)
    source = PolicySource(trainable, "", load_config(folder), torch.bfloat16)
    said = source.metadata()
    if ranks.first:
        buffers = packed(source, said, 20_000)
        found = [one for bucket in received(said, lambda into: into.copy_(next(buffers)), 20_000) for one in bucket]
        print(json.dumps(checksum(found)))
    else:
        source.start()
        source.finish()
"""


def exported(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_sent_is_what_would_be_exported(tiny_folder, tmp_path, lora):
    policy = open_policy(tiny_folder, torch.float32)
    merge = adapt(policy, LoraSpec(r=2, alpha=4), torch.float32, 5) if lora else None
    trainable = Trainable(policy, torch.float32, Mesh(), merge=merge)
    with torch.no_grad():
        for weight in trainable.master_weights:
            weight.add_(0.01)
    write_folder(trainable, load_config(tiny_folder), tiny_folder, tmp_path / "out", "card")
    wanted = exported(tmp_path / "out")
    source = PolicySource(trainable, "", load_config(tiny_folder), torch.float32)
    sent = list(source)
    assert [(one.name, one.dtype, one.shape) for one in source.metadata()] == [
        (name, value.dtype, tuple(value.shape)) for name, value in sent
    ]
    assert wanted.keys() == {name for name, _ in sent}
    for name, value in sent:
        assert torch.equal(value, wanted[name]), name


def test_a_pass_that_broke_off_is_finished_and_one_not_begun_is_made():
    class Counted(PolicySource):
        def __init__(self) -> None:
            self.given = 0
            self._pass = None

        def _weights(self):
            for i in range(4):
                self.given += 1
                yield f"{i}", torch.zeros(1)

    source = Counted()
    next(iter(source))
    source.finish()
    assert source.given == 4
    source.start()
    source.finish()
    assert source.given == 8
    source.finish()
    assert source.given == 8


@pytest.mark.slow
@pytest.mark.parametrize(("number", "shape"), [(2, {}), (4, {"replicate": 2, "tensor": 2})])
def test_ranks_with_shares_send_what_one_rank_has(tiny_folder, number, shape):
    trainable = Trainable(open_policy(tiny_folder, torch.float32), torch.float32, Mesh())
    wanted = checksum(PolicySource(trainable, "", load_config(tiny_folder), torch.bfloat16))
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", RANK, str(tiny_folder), json.dumps(shape)]
    running = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(i)}, stdout=subprocess.PIPE, text=True)
        for i in range(number)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * number
    assert json.loads(outputs[0].splitlines()[-1]) == wanted


def test_buckets_carry_a_source(tiny_folder):
    trainable = Trainable(open_policy(tiny_folder, torch.float32), torch.float32, Mesh())
    source = PolicySource(trainable, "", load_config(tiny_folder), torch.bfloat16)
    said = source.metadata()
    buffers = packed(source, said, 20_000)
    found = dict(one for some in received(said, lambda into: into.copy_(next(buffers)), 20_000) for one in some)
    assert all(torch.equal(found[name], value) for name, value in source)
