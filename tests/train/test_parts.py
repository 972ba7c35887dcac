"""Batches in parts: each leaf once, within the budget, and on ranks that share a model equally often everywhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.forests import in_float64, related
from tests.train.test_sharing import ALONE, BRANCHES, COMMON, agree, numbers, taken
from torch import Tensor, nn

from tercet.device.axes import divide
from tercet.device.mesh import Mesh, mesh
from tercet.device.shard import Trainable, share_frozen
from tercet.models.depth_first import Part, plan, walked
from tercet.models.forest import Forest, Leaf, Tree, pack_forest
from tercet.models.opening import open_policy
from tercet.models.tiny import build
from tercet.recipe import GRPOSpec, Placement, TrainSpec
from tercet.recipe.placement import MeshShape
from tercet.train.batch import Batch, Step, batches
from tercet.train.branches import read
from tercet.train.compared import Compared
from tercet.train.loop import Loss, State, _repeated, leaf_sums, update_once
from tercet.train.parts import agreed, fitted, repeated, shape_of
from tercet.train.rl.actor_critic import CRITIC, POLICY, ActorCritic, open_critic
from tercet.train.rl.grpo import grpo_loss
from tercet.train.sums import Sum

WAIT = timedelta(seconds=60)
GROUP = Tree(range(30), [Leaf(range(40, 50 + i), [True] * (10 + i)) for i in range(8)])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("budget", [1, 70, 120])
def test_a_group_in_parts_has_every_leaf_once_and_keeps_to_the_budget(budget, padded):
    trees = [GROUP, Tree([], [Leaf(range(9), [True] * 9)]), GROUP]
    whole, parts = pack_forest(trees), repeated(trees, budget, padded=padded)
    assert parts is not None
    assert torch.equal(torch.cat([part.leaves for part in parts]), torch.arange(whole.num_leaves))
    assert torch.equal(torch.cat([part.predicted for part in parts]), torch.arange(len(whole.targets_P)))
    for part in parts:
        assert torch.equal(part.forest.targets_P, whole.targets_P[part.predicted])
        assert torch.equal(part.forest.counts_L, whole.counts_L[part.leaves])
        assert part.forest.num_tokens <= budget or part.forest.num_leaves == 1
    assert repeated([GROUP], 1000) is None


@pytest.fixture
def exact(sharp_folder, monkeypatch):
    return in_float64(sharp_folder, monkeypatch)


@pytest.mark.parametrize("place", [Mesh(walks=False), Mesh(padded=True)], ids=["no walks", "padded"])
def test_a_group_in_parts_has_the_gradient_of_the_whole_and_what_that_costs_is_counted(exact, place):
    settings = {"prompts": "sft-data", "rounds": 1, "kl_beta": 0.05, "reduction": "sequence_mean"}
    loss = partial(grpo_loss, spec=GRPOSpec.model_validate({**COMMON, **settings}))
    trees = [Tree(tree.trunk, [*tree.leaves, *tree.leaves]) for tree in related(1, depth=2, leaves=8)]
    names = ("advantages_P", "sampled_P", "reference_P")
    alone = batches(trees, ALONE, Mesh(), numbers(*names))
    cut = batches(trees, BRANCHES, place, numbers(*names))
    assert all(forest.num_tokens <= BRANCHES.tokens for batch in cut for forest in batch.forests)
    again = sum(_repeated(batch, place) for batch in cut)
    assert again == (0 if place.padded else sum(b.num_tokens for b in cut) - sum(b.forest.num_tokens for b in cut))
    agree(*(taken(exact, made, loss) for made in (cut, alone)), 1e-9)


def test_the_shape_that_ranks_agree_on_has_room_for_each():
    deep, wide, one = [[[], [[], []]]], [[], [], []], []
    assert agreed([deep, wide, one]) == [[[], [[], []]], [], []]
    for multiple in (1, 16):
        steps = plan(pack_forest(related(1, depth=4, leaves=1), multiple, share=True), 90, multiple)
        shape = agreed([shape_of(steps), [[[], [[], []]], []], [[], [[]]]])
        assert shape_of(fitted(steps, shape, multiple)) == shape


def test_idle_parts_and_trunks_change_nothing(exact):
    forest = pack_forest(related(1, depth=4, leaves=1), share=True)
    steps = plan(forest, 90)
    shape = agreed([shape_of(steps), [[[], [[], []]]] * 4])
    found = []
    for own in (steps, fitted(steps, shape, 1), fitted([Part(forest, *map(torch.arange, counts(forest)))], shape, 1)):
        found.append(gradient(exact, own, forest))
    for other in found[1:]:
        assert max(float((other[name] - value).norm() / value.norm()) for name, value in found[0].items()) < 1e-9


def counts(forest: Forest) -> tuple[int, int]:
    return forest.num_leaves, len(forest.targets_P)


def gradient(policy, steps, forest) -> dict[str, Tensor]:
    policy.zero_grad()
    slopes = torch.linspace(0.5, 2.0, len(forest.targets_P), dtype=torch.float64)
    for part in walked(policy.hidden, steps, torch.autograd.backward):
        (policy(part.forest)[0] * slopes[part.predicted]).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters()}


TREES = [Tree(tree.trunk, [*tree.leaves, *tree.leaves]) for tree in related(1, depth=2, leaves=8)]
TREES += [*related(2, leaves=1), *(Tree([], [Leaf(range(i, 30), [True] * (30 - i))]) for i in range(9))]


def values(items: list[int], forest: Forest) -> dict[str, Tensor]:
    """The number of each leaf, and a slope that depends on it; -1 for the leaf of a rank with nothing left."""
    firsts = [sum(len(tree.leaves) for tree in TREES[:i]) for i in items]
    numbers = [first + j for i, first in zip(items, firsts, strict=True) for j in range(len(TREES[i].leaves))]
    return {"number_L": torch.tensor(numbers or [-1]), "slope_L": torch.tensor(numbers or [0]) % 7 - 2.0}


def summed(module: nn.Module, made: list[Batch], ranks: Mesh) -> dict[int, float]:
    """What is read of each leaf, summed over its tokens, from all ranks."""
    seen = {}
    for batch in made:
        found = read(module, batch, partial(output, module, batch.part))
        sums = found.new_zeros(batch.forest.num_leaves).index_add(0, batch.forest.leaf_P, found)
        seen |= dict(zip(batch.values["number_L"].tolist(), sums.tolist(), strict=True))
    return {i: value for one in ranks.gather(seen) for i, value in one.items() if i >= 0}


def output(module: nn.Module, part: str, forest: Forest) -> Tensor:
    return module(forest, part=part)[0] if part else module(forest)[0]


def learned(folder: Path, ranks: Mesh) -> dict[str, Any]:
    """What is read of a policy alone, of one with its critic and of a frozen one; and the gradients of one step."""
    found: dict[str, Any] = {}
    for name, parts in (("alone", ("",)), ("pairs", ("",)), ("both", (POLICY, CRITIC))):
        policy = open_policy(folder)
        module = policy if name != "both" else ActorCritic(policy, open_critic(folder, 256, 0))
        trainable = Trainable(module, torch.float32, ranks)
        budget = BRANCHES._replace(compared=name == "pairs")
        made = [replace(one, part=part) for part in parts for one in batches(TREES, budget, ranks, values)]
        assert any(batch.walk for batch in made)
        found |= {f"read {part}": summed(module, [one for one in made if one.part == part], ranks) for part in parts}
        update_once(
            State(trainable, torch.optim.SGD(trainable.master_weights)),
            Step(made),
            Compared(look, judge) if name == "pairs" else loss,
            1.0,
            TrainSpec.model_construct(max_grad_norm=1e9),
        )
        found |= {"".join([name, *parts, own]): value for own, value in trainable.full_state()}
    frozen = open_policy(folder)
    if ranks.size > 1:
        share_frozen(frozen, torch.float32, ranks)
    found["read frozen"] = summed(frozen, batches(TREES, BRANCHES, ranks, values), ranks)
    return found


def look(module: nn.Module, forest: Forest) -> Tensor:
    return leaf_sums(module(forest)[0], forest)


def judge(now: Tensor, batch: Batch) -> Loss:
    """No sum over leaves' parts: the slope of a leaf depends on all of its tokens."""
    return Loss(Sum((now * batch.values["slope_L"] / 20.0).square().sum(), float(len(now))), {})


def loss(module: nn.Module, batch: Batch) -> Loss:
    slopes_P = batch.values["slope_L"][batch.forest.leaf_P]
    return Loss(Sum((output(module, batch.part, batch.forest) * slopes_P).sum(), float(len(slopes_P))), {}, batch.part)


def rank(folder: str, out: str) -> None:
    """One of two ranks: what both find that share a model, that have a model each, and that share a row's tokens."""
    with mesh(Placement(ranks=2)) as ranks:
        shapes = MeshShape(shard=2), MeshShape(replicate=2, shard=1), MeshShape(shard=1, context=2)
        axes = [divide(shape.model_copy(update={"replicate": shape.replicate or 1}), "cpu", WAIT) for shape in shapes]
        found = [learned(Path(folder), replace(ranks, axes=one)) for one in axes]
        if ranks.first:
            torch.save(found, out)


def test_two_ranks_walk_their_groups_to_one_ranks_weights(tmp_path):
    build(tmp_path / "tiny", 3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    code = "import sys; from tests.train.test_parts import rank; rank(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(tmp_path / "tiny"), str(tmp_path / "found.pt")]
    running = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(i)}) for i in range(2)]
    alone = learned(tmp_path / "tiny", Mesh())
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    for found in torch.load(tmp_path / "found.pt"):
        assert found.keys() == alone.keys()
        for name, wanted in alone.items():
            if name.startswith("read"):
                assert found[name] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
            else:
                torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-5)
