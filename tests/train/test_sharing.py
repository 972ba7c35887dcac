"""Every stage's loss and gradient are the same with and without sharing, and branch by branch; bits where it is off."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tests.forests import in_float64, related
from torch import Tensor, nn

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models.forest import Forest, Leaf, Tree
from tercet.recipe import DPOSpec, GRPOSpec, PPOSpec
from tercet.train.batch import Batch, batches
from tercet.train.compared import Compared
from tercet.train.dpo import answer_sums, preference, preference_loss
from tercet.train.export import open_policy
from tercet.train.loop import Loss, _losses
from tercet.train.packing import Budget, cut_step, pieces, shares
from tercet.train.reference import ReferenceModel
from tercet.train.reward_model import compared, open_scorer, reward_loss, scores_of
from tercet.train.rl.actor_critic import ActorCritic, open_critic
from tercet.train.rl.grpo import grpo_loss
from tercet.train.rl.ppo import PPO, for_critic, ppo_loss
from tercet.train.sft import sft_loss

COMMON = {"model": "base", "learning_rate": 1e-4, "dtype": "float32"}
TOKENS = 400
ALONE, SHARED = Budget(TOKENS, share=False), Budget(TOKENS)
BRANCHES = Budget(120, depth_first=True)  # less than a family of trees has
PAIRS = Budget(30, depth_first=True, compared=True)  # less than most pairs have
REDUCTION = pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
SEEDS = pytest.mark.parametrize("seed", range(2))


@pytest.fixture
def exact(sharp_folder, monkeypatch):
    return in_float64(sharp_folder, monkeypatch)


def numbers(*names: str) -> Callable[[list[int], Forest], dict[str, Tensor]]:
    """Random numbers that depend on the tree, the leaf and the name alone."""

    def drawn(items: list[int], forest: Forest) -> dict[str, Tensor]:
        each = forest.num_leaves // max(1, len(items))
        leaves = [(item, leaf) for item in items for leaf in range(each)]
        sizes = {"L": [1] * len(leaves), "P": forest.counts_L.tolist()}
        found = {}
        for name in names:
            if name.endswith("_B"):
                found[name] = torch.tensor([random.Random(f"{name} {item}").random() for item in items])
                continue
            draws = [random.Random(f"{name} {leaf}") for leaf in leaves]
            pairs = zip(draws, sizes[name[-1]], strict=True)
            found[name] = torch.tensor([draw.uniform(-1.0, 1.0) for draw, size in pairs for _ in range(size)])
        return found

    return drawn


def taken(module: nn.Module, made: list[Batch], loss: Callable[[nn.Module, Batch], Loss]):
    """Total, weight and gradient of a step's batches, and its metrics' totals."""
    module.zero_grad()
    sums: dict[str, Tensor] = {}
    for batch in made:
        for found in _losses(SimpleNamespace(module=module, backward_from=torch.autograd.backward), batch, loss):
            found.objective.total.backward()
            for name, (total, weight) in {f"loss{found.part}": found.objective, **found.metrics}.items():
                sums[name] = sums.get(name, torch.zeros(2)) + torch.tensor([float(total.detach()), weight])
    return sums, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def check(module: nn.Module, trees: list[Tree], loss, names: tuple[str, ...], close: float, budget: Budget = SHARED):
    """The step is the same with sharing (or by branches) and without; something was shared."""
    alone, shared = (batches(trees, one, Mesh(), numbers(*names)) for one in (ALONE, budget))
    assert sum(b.num_tokens for b in shared) < 0.8 * sum(b.num_tokens for b in alone)
    assert any(batch.walk for batch in shared) == budget.depth_first
    agree(taken(module, shared, loss), taken(module, alone, loss), close)


def agree(mine, theirs, close: float) -> None:
    (sums, gradient), (other_sums, other) = mine, theirs
    assert sums.keys() == other_sums.keys()
    for name, one in sums.items():
        torch.testing.assert_close(one, other_sums[name], rtol=1e-4, atol=1e-4)
    assert gradient.keys() == other.keys()
    assert max(float((gradient[name] - other[name]).norm() / other[name].norm()) for name in other) < close


@SEEDS
@REDUCTION
def test_sft(exact, seed, reduction):
    loss = partial(sft_loss, reduction=reduction, length=50)
    check(exact, related(seed, depth=5, leaves=1), loss, (), 1e-9)


@SEEDS
@REDUCTION
def test_sft_by_branches(exact, seed, reduction):
    """One tree beyond the budget: what is walked is a tree, or several rows that lie in one batch."""
    loss = partial(sft_loss, reduction=reduction, length=50)
    tree = whole(related(seed, depth=5, leaves=1))
    alone, walked = (batches([tree], budget, Mesh()) for budget in (ALONE, BRANCHES))
    assert walked[0].walk
    agree(taken(exact, walked, loss), taken(exact, alone, loss), 1e-9)


def whole(trees: list[Tree]) -> Tree:
    """All rows as leaves of one tree."""
    rows = [
        ([*tree.trunk, *leaf.token_ids], [False] * len(tree.trunk) + list(leaf.mask))
        for tree in trees
        for leaf in tree.leaves
    ]
    return Tree([], [Leaf(*row) for row in rows])


@pytest.mark.parametrize("seed", [2])
@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "simpo", "ipo", "wpo", "orpo", "kto"])
def test_preference_losses(exact, seed, name):
    spec = DPOSpec.model_validate({**COMMON, "pairs": "preference-data", "loss": name})

    def loss(module: nn.Module, batch: Batch) -> Loss:
        batch.values["kl"] = torch.tensor(0.1)
        return preference_loss(module, batch, spec=spec)

    check(exact, related(seed, depth=5), loss, ("reference_L",), 1e-6)


@SEEDS
def test_the_reward_model(sharp_folder, seed):
    check(open_scorer(sharp_folder, 256, seed=0), related(seed, depth=5), reward_loss, ("margin_B",), 1e-4)


@pytest.mark.parametrize(
    ("name", "place"),
    [("dpo", Mesh()), ("orpo", Mesh()), ("dpo_norm", Mesh(walks=False)), ("dpo_norm", Mesh(padded=True))],
    ids=["dpo", "orpo", "no walks", "padded"],
)
def test_pairs_by_branches(exact, name, place):
    anchor = {"sft_weight": 0.1} if name != "orpo" else {}
    spec = DPOSpec.model_validate({**COMMON, "pairs": "preference-data", "loss": name, **anchor})
    loss, trees = Compared(answer_sums, partial(preference, spec=spec)), related(2, depth=5)
    alone, made = (
        batches(trees, one, where, numbers("reference_L")) for one, where in ((ALONE, Mesh()), (PAIRS, place))
    )
    assert any(batch.walk for batch in made)
    agree(taken(exact, made, loss), taken(exact, alone, partial(preference_loss, spec=spec)), 1e-9)


def test_pairs_of_the_reward_model_by_branches(sharp_folder):
    scorer, trees = open_scorer(sharp_folder, 256, seed=0), related(1, depth=5)
    alone, made = (batches(trees, one, Mesh(), numbers("margin_B")) for one in (ALONE, PAIRS))
    assert any(batch.walk for batch in made)
    agree(taken(scorer, made, Compared(scores_of, compared)), taken(scorer, alone, reward_loss), 1e-4)


def test_pairs_that_fit_are_not_cut_and_those_that_share_a_beginning_do_not_grow_beyond_the_budget():
    trees = related(2, depth=5)
    most = max(tree.num_tokens for tree in trees)
    made = batches(trees, Budget(most, depth_first=True, compared=True), Mesh())
    assert all(batch.walk is None and batch.num_tokens <= most for batch in made)


@pytest.mark.parametrize("seed", [1])
@REDUCTION
@pytest.mark.parametrize("name", ["grpo", "cispo", "gspo"])
@pytest.mark.parametrize("branched", [False, True])
def test_grpo_and_its_kin(exact, seed, name, reduction, branched):
    settings = {"prompts": "sft-data", "rounds": 1, "loss": name, "reduction": reduction, "kl_beta": 0.05}
    spec = GRPOSpec.model_validate({**COMMON, **settings, "importance_cap": 2.0})
    names = ("advantages_P", "sampled_P", "reference_P")
    if not branched:
        return check(exact, related(seed, depth=4, leaves=5), partial(grpo_loss, spec=spec), names, 1e-6)
    trees = [Tree(tree.trunk, [*tree.leaves, *tree.leaves]) for tree in related(seed, depth=2, leaves=8)]
    alone, walked = (batches(trees, one, Mesh(), numbers(*names)) for one in (ALONE, BRANCHES))
    assert any(batch.walk for batch in walked)
    return agree(*(taken(exact, made, partial(grpo_loss, spec=spec)) for made in (walked, alone)), 1e-6)


@SEEDS
@pytest.mark.parametrize("truncated", ["mask", "train"])
@pytest.mark.parametrize("budget", [SHARED, BRANCHES], ids=["shared", "by branches"])
def test_ppo_and_its_critic(sharp_folder, seed, truncated, budget):
    settings = {"prompts": "sft-data", "value": "base", "rounds": 1, "max_new_tokens": 32, "truncated": truncated}
    spec = PPOSpec.model_validate({**COMMON, **settings})
    models = ActorCritic(open_policy(sharp_folder), open_critic(sharp_folder, 256, 0))
    reference = ReferenceModel(open_policy(sharp_folder, torch.float32), 0.0, 1)
    algorithm = PPO(Trainable(models, torch.float32, Mesh()), reference, spec, budget)
    found = []
    for one in (budget, ALONE):
        step = batches(related(seed, depth=2, leaves=6), one, Mesh(), numbers("sampled_P", "rewards_L", "kept_L"))
        for batch in step:
            batch.values["kept_L"] = batch.values["kept_L"] > -0.5
        with torch.no_grad():
            policy = [algorithm.for_policy(batch) for batch in step]
        learned = [*policy, *map(for_critic, policy)]
        assert any(batch.walk for batch in learned) == one.depth_first
        found.append(taken(models, learned, partial(ppo_loss, spec=spec)))
    agree(*found, 1e-3)


def test_where_nothing_is_shared_or_sharing_is_off_the_batches_are_the_same():
    strangers = [Tree([i] * 40, [Leaf([i + 100] * 9, [True] * 9)] * 2) for i in range(9)]
    for one, other in zip(batches(strangers, SHARED, Mesh()), batches(strangers, ALONE, Mesh()), strict=True):
        assert torch.equal(one.forest.input_ids, other.forest.input_ids)
        assert one.forest.segments == other.forest.segments


@SEEDS
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_have_every_tree_once_and_batches_keep_to_what_is_really_computed(seed, ranks):
    trees = related(seed, depth=3, leaves=1)
    cuts = [cut_step(trees, SHARED, Mesh(rank, ranks)) for rank in range(ranks)]
    assert sorted(item for parts in cuts for items in parts for item in items) == list(range(len(trees)))
    for batch in batches(trees, SHARED, Mesh()):
        assert batch.num_tokens <= TOKENS


def test_worked_examples_that_all_prompts_share_fill_a_batch_once():
    examples = list(range(200))
    trees = [Tree([*examples, i], [Leaf([i, i + 1] * 5, [True] * 10)]) for i in range(50)]
    assert len(cut_step(trees, Budget(800), Mesh())) == 1
    assert len(cut_step(trees, Budget(800, share=False), Mesh())) == 17


def test_a_family_is_cut_so_that_ranks_have_equal_work():
    trees = [Tree([*range(200), i], [Leaf([i] * 10, [True] * 10)]) for i in range(64)]
    sizes = [piece.size for piece in pieces(trees, Budget(4096), 4)]
    assert max(sum(sizes[i] for i in mine) for mine in shares(sizes, 4)) < 1.2 * (200 + 16 * 11)


def test_the_order_of_the_batches_is_a_function_of_the_tokens_alone():
    trees = related(3, depth=4, leaves=1)
    assert cut_step(trees, SHARED, Mesh()) == cut_step(list(trees), SHARED, Mesh())


def test_where_branches_cannot_be_walked_batches_keep_to_the_budget():
    trees = [Tree([*range(60), i], [Leaf([i] * 10, [True] * 10)]) for i in range(9)]
    assert len(batches(trees, BRANCHES, Mesh())) == 1
    made = batches(trees, BRANCHES, Mesh(walks=False))
    assert len(made) > 1
    assert all(batch.walk is None and batch.num_tokens <= BRANCHES.tokens for batch in made)
