"""A forest walked depth first has the numbers and the gradients of the whole, and holds one path at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.forests import in_float64, related
from torch import Tensor

from tercet.models import forest_cpu
from tercet.models.attention import Attention
from tercet.models.depth_first import Part, Walk, plan, walked
from tercet.models.forest import Forest, Leaf, Tree, pack_forest
from tercet.models.forest_cuda import Layout
from tercet.models.policy import Policy


@pytest.fixture
def exact(sharp_folder, monkeypatch):
    return in_float64(sharp_folder, monkeypatch)


def furthest(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative difference of a parameter's gradient."""
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)


def group(completions: int, prompt: int = 30, length: int = 20) -> Forest:
    """One prompt with several completions."""
    leaves = [Leaf([(i * 7 + j) % 256 for j in range(length + i)], [True] * (length + i)) for i in range(completions)]
    return pack_forest([Tree([j % 256 for j in range(prompt)], leaves)], 16)


def parts_of(steps: list[Part | Walk]) -> Iterator[Part]:
    for step in steps:
        yield from [step] if isinstance(step, Part) else parts_of(step.below)


def slopes(forest: Forest) -> Tensor:
    """Gradients of a loss in which no two tokens weigh the same."""
    return torch.linspace(0.5, 2.0, len(forest.targets_P), dtype=torch.float64)


def whole_gradient(policy: Policy, forest: Forest) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    logps = policy(forest)[0]
    (logps * slopes(forest)).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in policy.named_parameters()}


def walked_gradient(policy: Policy, forest: Forest, steps: list[Part | Walk]) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    found = torch.full((len(forest.targets_P),), torch.nan, dtype=torch.float64)
    for part in walked(policy.hidden, steps, torch.autograd.backward):
        logps = policy(part.forest)[0]
        (logps * slopes(forest)[part.predicted]).sum().backward()
        found[part.predicted] = logps.detach()
    return found, {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize(("budget", "multiple"), [(1, 16), (60, 1), (120, 16)])
@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_is_that_of_the_whole_forest(exact, seed, budget, multiple):
    forest = pack_forest(related(seed, depth=5, leaves=1 + seed % 2), multiple, share=True)
    assert max(len(segment.ancestors) for segment in forest.segments) >= 3
    steps = plan(forest, budget, multiple)
    assert steps is not None
    wanted, gradient = whole_gradient(exact, forest)
    found, walked_one = walked_gradient(exact, forest, steps)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert furthest(walked_one, gradient) < 1e-9


@pytest.mark.parametrize("budget", [1, 60, 120])
def test_every_leaf_lies_in_one_part_with_all_its_tokens(budget):
    forest = pack_forest(related(1, depth=5), share=True)
    parts = list(parts_of(plan(forest, budget) or []))
    assert sorted(torch.cat([part.leaves for part in parts]).tolist()) == list(range(forest.num_leaves))
    assert sorted(torch.cat([part.predicted for part in parts]).tolist()) == list(range(len(forest.targets_P)))
    for part in parts:
        assert torch.equal(part.forest.targets_P, forest.targets_P[part.predicted])
        assert torch.equal(part.leaves[part.forest.leaf_P], forest.leaf_P[part.predicted])
        assert torch.equal(part.forest.counts_L, forest.counts_L[part.leaves])


@pytest.mark.parametrize("budget", [80, 150])
def test_no_token_is_computed_twice_and_one_path_is_held_at_a_time(exact, budget):
    forest = pack_forest(related(2, depth=5, leaves=1), share=True)
    steps = plan(forest, budget)
    assert steps is not None
    live: list[int] = []  # tokens whose activations are held, in the order of the passes
    computed = 0
    hidden = exact.hidden

    def counted(layout, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        nonlocal computed
        computed += len(input_ids)
        held.append(len(input_ids))
        live.append(sum(held))
        return hidden(layout, input_ids, position_ids)

    def backward(outputs, gradients) -> None:
        torch.autograd.backward(outputs, gradients)
        held.pop()

    held: list[int] = []
    exact.hidden = counted
    for part in walked(exact.hidden, steps, backward):
        exact(part.forest)[0].sum().backward()
        held.pop()
    assert not held
    assert computed == forest.num_tokens
    paths = [segment.above + segment.end - segment.start for segment in forest.segments]
    assert max(live) <= max(budget, *paths) < forest.num_tokens


def test_small_branches_share_a_pass():
    steps = plan(group(12, prompt=30, length=20), 100)
    assert steps is not None
    (walk,) = steps
    assert isinstance(walk, Walk)
    sizes = [len(part.leaves) for part in parts_of(steps)]
    assert sum(sizes) == 12
    assert max(sizes) >= 2
    assert all(part.forest.num_tokens + 30 <= 100 for part in parts_of(steps))


def test_what_fits_or_cannot_be_cut_is_taken_at_once():
    assert plan(group(4), 1000) is None
    assert plan(pack_forest([Tree([], [Leaf(range(90), [True] * 90)])]), 20) is None


def test_trees_without_a_common_trunk_are_taken_one_after_another():
    steps = plan(pack_forest([Tree([], [Leaf(range(i, 30 + i), [True] * 30)]) for i in range(3)]), 40)
    assert steps is not None
    assert [type(step) for step in steps] == [Part] * 3


def test_recomputed_layers_give_the_same_gradient(exact):
    from tercet.models.layer_wrappers import recompute

    forest = pack_forest(related(0, depth=3), share=True)
    steps = plan(forest, 60)
    assert steps is not None
    _, wanted = walked_gradient(exact, forest, steps)
    recompute(exact)
    _, found = walked_gradient(exact, forest, steps)
    assert furthest(found, wanted) < 1e-12


@pytest.mark.parametrize(("own", "past"), [(128, 128), (128, 200), (256, 30), (40, 70), (130, 300)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_on_a_card_a_part_sees_its_past_too(own, past):
    """FlexAttention on the CPU over its blocks, against attention by segments."""
    forest = pack_forest([Tree(range(own - 20), [Leaf(range(9), [True] * 9), Leaf(range(11), [True] * 11)])])
    source = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, own, 16, generator=source)
    key, value = (torch.randn(1, 2, own + past, 16, generator=source) for _ in range(2))
    found = Layout(forest.segments, own, query.device, past).attend(query, key, value, Attention(0.25))
    groups = forest_cpu.groups(forest.segments, 4, query.device, past)
    wanted = forest_cpu.attend(query[0], key[0], value[0], groups, Attention(0.25)).transpose(0, 1)[None]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
