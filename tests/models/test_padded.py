"""One path a row: the same numbers as a forest where both can be had, and the plain forward pass everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from tercet.models.forest import ForestError, Leaf, Tree, pack_forest
from tercet.models.opening import laid_out, open_policy
from tercet.models.padded import pack_rows, rows_of
from tercet.models.policy import Scorer

TREES = [
    Tree([5, 9, 11, 30, 31], [Leaf([7, 2, 8], [True] * 3), Leaf([4], [True]), Leaf([6] * 9, [False] * 4 + [True] * 5)]),
    Tree([], [Leaf([3, 1, 4, 1, 5, 9, 2, 6], [False, True, True, False, False, True, True, True])]),
    Tree([8, 8], [Leaf([], []), Leaf([12, 13], [True, True])]),
]


@pytest.fixture
def bloom() -> BloomForCausalLM:
    """A model whose attention (with ALiBi) does not use transformers' attention interface."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    return BloomForCausalLM(config).eval()


def alone(model, trees) -> torch.Tensor:
    """Log-probabilities of the trained tokens by a pass over each path by itself."""
    found = []
    for tree in trees:
        for leaf in tree.leaves:
            path = torch.tensor([[*tree.trunk, *leaf.token_ids]])
            logps = model(input_ids=path, use_cache=False).logits[0].log_softmax(-1)
            begin = len(tree.trunk)
            for offset, trained in enumerate(leaf.mask):
                if trained and begin + offset:
                    found.append(logps[begin + offset - 1, leaf.token_ids[offset]])
    return torch.stack(found)


def test_log_probabilities_and_gradients_are_those_of_each_path_alone(bloom):
    weights = torch.linspace(0.5, 1.5, 16)
    (alone(bloom, TREES) * weights).sum().backward()
    wanted = {name: parameter.grad.clone() for name, parameter in bloom.named_parameters()}
    reference = alone(bloom, TREES).detach()
    bloom.zero_grad()
    policy = laid_out(bloom, "auto")
    assert policy.padded
    found, _ = policy(pack_forest(TREES, 64))
    torch.testing.assert_close(found.detach(), reference, rtol=1e-4, atol=1e-5)
    (found * weights).sum().backward()
    for name, parameter in bloom.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_both_layouts_of_a_model_agree(sharp_folder):
    forest, padded = open_policy(sharp_folder), open_policy(sharp_folder, layout="padded")
    assert (forest.padded, padded.padded) == (False, True)
    packed = pack_forest(TREES[:2])
    torch.testing.assert_close(padded(packed)[0], forest(packed)[0], rtol=1e-4, atol=1e-5)


def test_a_scorer_reads_the_last_token_of_each_leaf(sharp_folder):
    from tercet.train.reward_model import open_scorer

    policies = (open_policy(sharp_folder), open_policy(sharp_folder, layout="padded"))
    one, other = (open_scorer(sharp_folder, 256, 0, like=like) for like in policies)
    assert isinstance(other, Scorer)
    trees = [tree for tree in TREES if all(leaf.token_ids for leaf in tree.leaves)]
    torch.testing.assert_close(other(pack_forest(trees)), one(pack_forest(trees)), rtol=1e-4, atol=1e-5)


def test_every_path_is_a_row_and_every_token_has_a_place():
    packed = pack_forest(TREES, 64)
    tokens_RL, places_T = rows_of(packed, len(packed.input_ids))
    assert tokens_RL.shape == (5, 14)
    read = packed.input_ids[tokens_RL].flatten()[places_T]
    assert torch.equal(read[: packed.num_tokens], packed.input_ids[: packed.num_tokens])
    assert packed.input_ids[tokens_RL][1, :6].tolist() == [5, 9, 11, 30, 31, 4]


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), max_size=30))
def test_a_batch_of_rows_keeps_to_its_budget_with_padding(trees):
    batches = pack_rows(trees, 100)
    assert sorted(item for batch in batches for item in batch) == list(range(len(trees)))
    for batch in batches:
        lengths = [length for item in batch for length in trees[item]]
        assert len(batch) == 1 or len(lengths) * max(lengths) <= 100


def test_a_layout_that_was_asked_for_is_not_replaced(bloom):
    with pytest.raises(ForestError, match=r"BloomForCausalLM.*placement.layout"):
        laid_out(bloom, "forest")


def test_a_model_that_sees_what_comes_later_is_refused(bloom):
    plain = bloom.transformer.forward

    def forward(*args, **options):
        output = plain(*args, **options)
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    bloom.transformer.forward = forward
    with pytest.raises(ForestError, match="no causal language model"):
        laid_out(bloom, "auto")
