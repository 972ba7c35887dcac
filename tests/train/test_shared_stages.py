"""Stages whose models ranks share, each its part read from the disk, give one rank's losses and weights, to rounding.

Two processes run all cases one after another, as starting them takes longer than any of them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.random_models import model_of

from tercet.models.base_layout import save_model
from tercet.track import read_metrics

LORA = {"r": 4, "alpha": 8.0}
EXACT = {"dtype": "float32", "eps": 1e-4}
CASES = {  # a stage, its settings, and how many groups of ranks hold a model each
    "reward": ("reward", {"num_epochs": 2, **EXACT}, 1),
    "reward in two groups": ("reward", {"num_epochs": 2, **EXACT}, 2),
    "sft of adapters": ("sft", {"lora": LORA, "num_epochs": 2, "learning_rate": 1e-2, **EXACT}, 1),
    "dpo with a reference that moves": ("dpo", {"polyak": 0.5, "polyak_every": 2, "num_epochs": 2, **EXACT}, 1),
    "the same of adapters": ("dpo", {"polyak": 0.5, "polyak_every": 2, "num_epochs": 1, "lora": LORA, **EXACT}, 1),
    "ppo in two groups": ("ppo", {"rounds": 1, **EXACT}, 2),
}
MEASURED = {"loss", "grad_norm", "critic_loss", "critic_grad_norm", "accuracy", "margin", "kl"}
RANK = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.train.conftest import Workspace
from tercet.device.mesh import mesh
from tercet.device.shard import Trainable
from tercet.models.hf_folder import load_config
from tercet.models.meta_policy import meta_policy
from tercet.recipe import Placement
from tercet.store import Store
from tercet.train import export

store, out, cases, experts, ports = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
torch.set_num_threads(1)
def refused(*_):
    raise AssertionError("a model is opened whole")
export.open_policy = refused
for port, (name, (stage, settings, replicas)) in zip(ports, cases.items()):
    os.environ["MASTER_PORT"] = str(port)
    placement = {"ranks": 2, "mesh": {"replicate": replicas}}
    Workspace(Store(store), store).run_stage(stage, out / name, **{stage: settings}, placement=placement)
os.environ["MASTER_PORT"] = str(ports[-1])
with mesh(Placement(ranks=2)) as ranks:
    for name, folder in experts.items():
        trainable = Trainable(meta_policy(Path(folder), "auto"), torch.float32, ranks)
        export.write_folder(trainable, load_config(Path(folder)), Path(folder), out / name, "")
"""


def ports(number: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    found = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return found


@pytest.mark.slow
def test_two_ranks_that_share_models_learn_what_one_rank_learns(workspace, tiny_folder, tmp_path):
    experts = tmp_path / "experts"
    model = model_of("Qwen3Moe")
    save_model(experts, model.config, model.state_dict(), source=tiny_folder)
    folders = {"written from experts": str(experts), "written from tied": str(tiny_folder)}
    told = [json.dumps(one) for one in (CASES, folders, ports(len(CASES) + 1))]
    command = [sys.executable, "-c", RANK, str(workspace.store.root), str(tmp_path / "two"), *told]
    here = f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": here}
    running = [subprocess.Popen(command, env=env | {"RANK": str(i)}, stderr=subprocess.PIPE) for i in range(2)]
    for name, (stage, settings, _) in CASES.items():
        workspace.run_stage(stage, tmp_path / name, **{stage: settings})
    said = [process.communicate(timeout=300)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    for name in CASES:
        same(tmp_path / name, tmp_path / "two" / name, load_file(tiny_folder / "model.safetensors"), name)
    for name, folder in folders.items():
        mine, theirs = (load_file(Path(one) / "model.safetensors") for one in (folder, tmp_path / "two" / name))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], value) for key, value in theirs.items()), name


def same(one: Path, two: Path, start: dict[str, torch.Tensor], case: str) -> None:
    """The losses, gradient norms and weights of two runs are the same, and not those at the start."""
    curves = [read_metrics(Path(f"{folder}.draft") / "metrics.jsonl") for folder in (one, two)]
    assert len(curves[0]) == len(curves[1]) > 1, case
    for mine, theirs in zip(*curves, strict=True):
        for key in MEASURED & mine.keys():
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), (case, mine["step"], key)
    alone, shared = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-3, atol=1e-4, msg=f"{case}: {name}")
    assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in alone.items() if name in start), case
