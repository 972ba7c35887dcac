"""Ranks that share a model read their shares from the disk, and no rank ever holds all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tercet.models.meta_policy import meta_policy
from tercet.models.opening import open_policy
from tercet.models.tiny import build

RANK = """
import json, os, sys
from pathlib import Path
import torch
from tercet.device.mesh import mesh
from tercet.device.shard import Trainable, share_frozen
from tercet.models.meta_policy import meta_policy
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.opening import open_policy
from tercet.recipe import Placement
from tercet.train.reward_model import open_scorer
from tercet.train.rl.actor_critic import ActorCritic, open_critic

folder, how, replicas = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def peak():  # ru_maxrss would count the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

empty = meta_policy(folder, "auto")  # the first one imports what reading takes
before = peak()
with mesh(Placement(ranks=int(os.environ["WORLD_SIZE"]), mesh={"replicate": replicas})) as ranks:
    policy = open_policy(folder) if "whole" in how else empty
    forest = pack_forest([Tree([5, 6, 7], [Leaf([8, 9], [True, True]), Leaf([3], [True])])])
    if how.startswith("frozen"):
        share_frozen(policy, torch.bfloat16 if how == "frozen bf16" else torch.float32, ranks)
        found = {"peak": peak() - before}
        with torch.no_grad():
            found["logps"] = policy(forest)[0].tolist()
    elif how == "ppo":
        Trainable(ActorCritic(policy, open_critic(folder, None, 0, like=policy)), torch.float32, ranks)
        found = {"peak": peak() - before}
    elif how == "reward":
        Trainable(open_scorer(folder, None, 0, like=policy), torch.float32, ranks)
        found = {"peak": peak() - before}
    else:
        trainable = Trainable(policy, torch.float32, ranks)
        for last in (False, True):
            trainable.reduce_now(last)
            loss = -policy(forest)[0].sum()
            trainable.backward(loss / ranks.size)
        norm = float(trainable.grad_norm())
        sums = {name: value.double().sum().item() for name, value in trainable.full_state()}
        found = {"loss": loss.item(), "norm": norm, "sums": sums}
    print(json.dumps(found))
"""


def ranks(number: int, folder: Path, how: str, replicas: int = 1) -> list[dict]:
    """What each of so many ranks says."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed leaves the process, as it leaves a card
    command = [sys.executable, "-c", RANK, str(folder), how, str(replicas)]
    running = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(i)}, stdout=subprocess.PIPE, text=True)
        for i in range(number)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * number
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build(folder, 3)
    return folder


def test_a_model_on_meta_has_no_numbers_but_exact_buffers_and_reads_as_the_model_does(tiny):
    empty, whole = meta_policy(tiny, "auto"), open_policy(tiny)
    assert empty is not None
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = [{name: value.shape for name, value in one.named_parameters()} for one in (empty, whole)]
    assert shapes[0] == shapes[1]
    for (name, mine), (_, theirs) in zip(empty.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    for name in ("padded", "once", "walks", "handed_on", "by_position", "scale", "softcap"):
        assert getattr(empty, name) == getattr(whole, name), name
    fused = [{name for name, module in one.named_modules() if "forward" in vars(module)} for one in (empty, whole)]
    assert fused[0] == fused[1]
    assert fused[0]


@pytest.mark.slow
def test_shares_read_from_the_disk_are_those_cut_from_the_whole_model(tiny):
    whole, shared = ranks(2, tiny, "whole"), ranks(2, tiny, "slices")
    assert whole == shared
    groups = ranks(4, tiny, "slices", replicas=2)[0]
    assert groups["sums"] == whole[0]["sums"]
    assert groups["loss"] == whole[0]["loss"]
    assert groups["norm"] == pytest.approx(whole[0]["norm"], rel=1e-5)
    frozen = ranks(2, tiny, "frozen bf16")
    assert frozen[0]["logps"] == frozen[1]["logps"]
    assert -sum(frozen[0]["logps"]) == pytest.approx(whole[0]["loss"], rel=2e-2)


@pytest.mark.slow
def test_a_rank_of_two_never_holds_a_whole_model(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24, "vocab_size": 8192}
    size = written(tmp_path, **sizes)
    whole, both = ranks(2, tmp_path, "frozen whole"), ranks(2, tmp_path, "ppo")
    assert min(one["peak"] for one in whole) > 0.9 * size
    assert max(one["peak"] for one in both) < 0.6 * 2 * size


@pytest.mark.skipif(os.environ.get("TERCET_ATTACK") != "full", reason="7 GB of memory; TERCET_ATTACK=full runs it")
@pytest.mark.slow
def test_a_rank_of_two_never_holds_a_whole_reward_model_of_1_7_billion_weights(tmp_path):
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "vocab_size": 32768}
    size = written(tmp_path, **sizes)
    shares = [one["peak"] / size for one in ranks(2, tmp_path, "reward")]
    assert max(shares) < 0.6, shares


def written(folder: Path, **sizes: int) -> int:
    """A random model in a folder, in bf16; the bytes of its weights in fp32."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    model = LlamaForCausalLM._from_config(
        LlamaConfig(architectures=["LlamaForCausalLM"], **heads, **sizes), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    return 4 * sum(parameter.numel() for parameter in model.parameters())
