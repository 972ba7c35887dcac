"""The pairs of vLLM's weight transfer, from a trainer to an engine that is nothing but its workers' receiving side."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tercet.device.broadcast import free_port
from tercet.device.mesh import Mesh, mesh
from tercet.device.shard import Trainable
from tercet.models.engines.policy_source import PolicySource
from tercet.models.engines.replica import EngineError, ReplicaDiedError
from tercet.models.hf_folder import load_config
from tercet.models.meta_policy import meta_policy
from tercet.models.opening import open_policy
from tercet.models.vllm.sender import Sender
from tercet.models.vllm.weights import check_names, checksum
from tercet.recipe import Placement

HAS_VLLM = importlib.util.find_spec("vllm") is not None
pytestmark = [
    pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),
]


class Receiving(nn.Module):
    """A model of an engine: it has weights by name, and takes some at a time."""

    def __init__(self, source: PolicySource) -> None:
        super().__init__()
        self.weights = {one.name: torch.zeros(one.shape, dtype=one.dtype) for one in source.metadata()}

    def load_weights(self, given: Any) -> None:
        for name, value in given:
            self.weights[name].copy_(value)


class Engine:
    """One that does what it is told, and notes it; at the update number `dies` it dies."""

    def __init__(self, source: PolicySource, backend: str, dies: int = 0) -> None:
        from tercet.models.vllm.transfer import GlooReceiver, ProcessReceiver

        self.model, self.verbs, self.versions, self.dies = Receiving(source), [], [], dies
        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config = SimpleNamespace(parallel_config=parallel, model_config=None)
        kind = GlooReceiver if backend == "gloo" else ProcessReceiver
        self.receiver = kind(None, config, torch.device("cpu"), self.model)

    def control(self, verb: str, **values: Any) -> Any:
        self.verbs.append(verb)
        match verb:
            case "expect":
                return check_names(values["shapes"], self.model.weights)
            case "checksum":
                return checksum(self.model.weights.items())
            case "init_weight_transfer_engine":
                return self.receiver.init_transfer_engine(self.receiver.parse_init_info(values["init_info"]))
            case "update_weights":
                self.dies -= 1
                if not self.dies:
                    self.receiver.shutdown()
                    raise ReplicaDiedError("it was killed")
                return self.receiver.update_weights(values["update_info"])
            case "finish_weight_update":
                self.versions.append(values["weight_version"])
        return None


def trainer(folder: Path) -> tuple[Trainable, PolicySource]:
    trainable = Trainable(open_policy(folder, torch.float32), torch.float32, Mesh())
    return trainable, PolicySource(trainable, "", load_config(folder), torch.bfloat16)


def learn(trainable: Trainable) -> None:
    with torch.no_grad():
        for weight in trainable.master_weights:
            weight.mul_(1.01)


def weights(source: PolicySource) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in source}


@pytest.mark.parametrize("backend", ["gloo", "process"])
def test_after_every_update_the_engine_has_the_trainers_weights_bit_for_bit(tiny_folder, backend):
    trainable, source = trainer(tiny_folder)
    engine = Engine(source, backend)
    sender = Sender(engine, source, Mesh(), backend, timeout=30.0)
    for number in range(4):
        learn(trainable)
        sender.send(number)
        wanted = weights(source)
        assert all(torch.equal(engine.model.weights[name], value) for name, value in wanted.items())
    assert engine.versions == ["0", "1", "2", "3"]
    assert engine.verbs.count("checksum") == engine.verbs.count("expect") == 1
    whole = [verb for verb in engine.verbs if verb not in ("checksum", "expect", "init_weight_transfer_engine")]
    once = ["pause", "start_weight_update", "update_weights", "finish_weight_update", "reset_prefix_cache", "resume"]
    assert [verb for i, verb in enumerate(whole) if whole[i - 1 : i] != [verb]] == once * 4


def test_weights_that_do_not_fit_are_refused_before_anybody_waits(tiny_folder):
    _, source = trainer(tiny_folder)
    engine = Engine(source, "gloo")
    del engine.model.weights["model.norm.weight"]
    with pytest.raises(EngineError, match=r"1 unexpected: model.norm.weight"):
        Sender(engine, source, Mesh(), "gloo").send(0)
    assert engine.verbs == ["expect"]


def test_an_engine_that_kept_old_weights_is_found_at_the_first_update(tiny_folder):
    _, source = trainer(tiny_folder)
    engine = Engine(source, "process")
    engine.model.load_weights = lambda given: None
    with pytest.raises(EngineError, match="weights differ from the trainer's"):
        Sender(engine, source, Mesh(), "process").send(0)


@pytest.mark.parametrize("backend", ["gloo", "process"])
def test_where_a_replica_died_the_group_is_made_anew_and_the_weights_come_again(tiny_folder, backend):
    trainable, source = trainer(tiny_folder)
    engine = Engine(source, backend)
    sender = Sender(engine, source, Mesh(), backend, timeout=5.0)
    sender.send(0)
    learn(trainable)
    engine.dies = 1
    sender.send(1)
    assert engine.verbs.count("init_weight_transfer_engine") == engine.verbs.count("checksum") == 2
    assert checksum(engine.model.weights.items()) == checksum(source)
    assert engine.versions[-1] == "1"


def one_rank(folder: Path) -> None:
    """A rank of several: three updates, in the second of which the engine dies."""
    with mesh(Placement(ranks=2)) as ranks:
        trainable = Trainable(meta_policy(folder, "auto"), torch.float32, ranks)
        source = PolicySource(trainable, "", load_config(folder), torch.bfloat16)
        engine = Engine(source, "gloo") if ranks.first else None
        sender = Sender(engine, source, ranks, "gloo", timeout=10.0)
        for number in range(3):
            learn(trainable)
            if engine is not None and number == 1:
                engine.dies = 1
            sender.send(number)
            wanted = checksum(source)
            assert engine is None or checksum(engine.model.weights.items()) == wanted
        sys.stdout.write(json.dumps(wanted))


@pytest.mark.slow
def test_ranks_with_shares_send_together_and_outlive_an_engine(tiny_folder):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    code = "import sys; from pathlib import Path; from tests.models.test_vllm_transfer import one_rank as run"
    command = [sys.executable, "-c", f"{code}; run(Path(sys.argv[1]))", str(tiny_folder)]
    running = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(i)}, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
