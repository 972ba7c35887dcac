"""Engines placed by Ray: what is said without it, what an actor is asked, and actors that die (where Ray is)."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from concurrent.futures import Future

import pytest

from tercet.device.ray_actors import ActorError, ActorLostError, PlacedActor, connect
from tercet.models.chat import open_chat
from tercet.models.engines.opening import opened
from tercet.models.engines.replica import EngineError, ReplicaDiedError
from tercet.models.vllm.ray_replicas import Output, RayReplica
from tercet.recipe.placement import EnginePlacement
from tercet.rows import Sampling

APART = EnginePlacement(placement="apart")


class Answers:
    """Stands for an actor: what it is asked, and answers that a test gives."""

    def __init__(self):
        self.asked, self.ended = [], False

    def ask(self, method, *values):
        self.asked.append((method, *values))
        self.future: Future = Future()
        return self.future

    def end(self):
        self.ended = True


@pytest.fixture
def replica(tiny_folder):
    return RayReplica(Answers(), "replica 0", open_chat(tiny_folder), 16)


def test_without_ray_the_three_ways_are_named(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"tercet\[ray\].*\"colocated\".*`vllm serve`.*engine.urls"):
        opened(tiny_folder, "float32", APART)


def test_a_dtype_that_no_engine_computes_in_is_refused_first(tiny_folder):
    with pytest.raises(EngineError, match=r"float64.*float32, bfloat16, float16"):
        opened(tiny_folder, "float64", APART)


def test_a_group_is_decoded_by_our_own_tokenizer_and_names_its_weights_and_writer(replica):
    ids = replica.chat.tokenizer.encode("one two", add_special_tokens=False)[:3]
    found = replica.submit([5, 6], Sampling(40, 1.0, n=2, seed=4), 3)
    method, prompt, settings = replica._actor.asked[0]
    assert (method, prompt, settings["n"], settings["max_tokens"]) == ("write", [5, 6], 2, 14)
    replica.version = 4  # an update came meanwhile
    one, other = Output(ids, [-0.5] * len(ids), "length", ("2", "3")), Output(ids, [-0.1] * len(ids), "length", ())
    replica._actor.future.set_result([one, other])
    group = found.result()
    assert [c.token_ids for c in group.completions] == [tuple(ids)] * 2
    assert (group.completions[0].stop, group.completions[0].text) == (
        "length",
        replica.chat.completion(ids, [], ()).text,
    )
    assert (group.first, group.last, group.replica) == (2, 3, "replica 0")

    found = replica.submit([5], Sampling(4, n=3), 0)  # greedy: written once
    replica._actor.future.set_result([other])
    assert found.result().completions == [group.completions[1]] * 3
    assert (found.result().first, found.result().last) == (4, 4)


def test_what_does_not_fit_is_an_error_of_the_prompt_and_reaches_no_engine(replica):
    group = replica.submit([1] * 16, Sampling(4, n=2), 0).result()
    assert [one.stop for one in group.completions] == ["error"] * 2
    assert "16 tokens does not fit" in group.completions[0].error
    assert "do not fit" in replica.score([1] * 9, [1] * 8).result().error
    assert replica._actor.asked == []


def test_a_lost_actor_is_a_dead_replica_and_other_errors_are_the_engines(replica):
    found = replica.submit([5], Sampling(4), 0)
    replica._actor.future.set_exception(ActorLostError("the actor is dead"))
    with pytest.raises(ReplicaDiedError, match="replica 0 died: the actor is dead"):
        found.result()
    found = replica.score([5], [6])
    replica._actor.future.set_exception(KeyError("prompt_logprobs"))
    with pytest.raises(EngineError, match="replica 0: 'prompt_logprobs'"):
        found.result()


class Plain:
    """An actor without a model."""

    async def double(self, number):
        return 2 * number

    async def fail(self):
        raise LookupError("no such verb")

    async def wait(self):
        await asyncio.sleep(600)

    async def process(self):
        return os.getpid()


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker could import a test
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_actors_answer_fail_and_die_each_by_itself(ray, monkeypatch):
    connect("", 0, 2)  # it is connected already
    one, two = PlacedActor(Plain, 1, 8), PlacedActor(Plain, 1, 8)
    assert [each.ask("double", 21).result(60) for each in (one, two)] == [42, 42]
    with pytest.raises(LookupError, match="no such verb"):
        one.ask("fail").result(60)
    pid, out = one.ask("process").result(60), one.ask("wait")
    monkeypatch.setattr("tercet.device.ray_actors.FREE_WITHIN", 0.5)
    with pytest.raises(ActorError, match=r"no machine with .*free are.*lower engine.replicas"):
        PlacedActor(Plain, 1, 8)
    monkeypatch.undo()
    one.end()
    with pytest.raises(ActorLostError):
        out.result(60)
    with pytest.raises(ActorLostError):
        one.ask("double", 1).result(60)
    assert two.ask("double", 1).result(60) == 2
    three = PlacedActor(Plain, 1, 8)  # the first one's place is free again
    assert three.ask("double", 2).result(60) == 4
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")
    two.end()
    three.end()
