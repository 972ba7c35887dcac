"""Decoding through a model's own cache: the tokens that the forest's generator writes, for any family of layers."""

from __future__ import annotations

import pytest
import torch
from transformers import Lfm2Config, MambaConfig, Qwen3NextConfig

from tercet.models.backbone import backbone
from tercet.models.generate import LocalGenerator
from tercet.models.miniature import build, miniature
from tercet.models.opening import laid_out
from tercet.models.own_cache import OwnCache, cache_works
from tercet.models.row_decoding import Room, _batches
from tercet.rows import Message, Sampling

PROMPTS = [
    (Message("user", text),) for text in ("Hi", "What is a basin and where does its water go?", "x" * 90, "Why?")
]
CHANCE = Sampling(12, temperature=0.9, n=3, seed=4)
HYBRIDS = {"qwen3_next": Qwen3NextConfig, "lfm2": Lfm2Config, "mamba": MambaConfig}


@pytest.fixture(scope="module")
def generators(sharp_folder) -> list[LocalGenerator]:
    return [LocalGenerator.open(sharp_folder, "float32", rows=8, layout=layout) for layout in ("forest", "padded")]


@pytest.mark.parametrize(
    "sampling", [Sampling(20), CHANCE, Sampling(20, stop=("e",))], ids=["greedy", "chance", "stop"]
)
def test_both_layouts_write_the_same_tokens(generators, sampling):
    forest, padded = (one.complete(PROMPTS, sampling) for one in generators)
    assert [[one.token_ids for one in group] for group in padded] == [
        [one.token_ids for one in group] for group in forest
    ]
    assert [[one.stop for one in group] for group in padded] == [[one.stop for one in group] for group in forest]
    for ours, theirs in zip(padded, forest, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_both_layouts_find_the_same_likelihoods(generators):
    options = [["yes", "no", "a longer one"]] * len(PROMPTS)
    forest, padded = (one.likelihood(PROMPTS, options) for one in generators)
    for ours, theirs in zip(padded, forest, strict=True):
        assert [one.greedy for one in ours] == [one.greedy for one in theirs]
        assert [one.logp for one in ours] == pytest.approx([one.logp for one in theirs], abs=1e-3)


def test_it_streams(generators):
    texts = ["".join(one.stream(PROMPTS[0], Sampling(12))) for one in generators]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_recurrence_goes_on_from_its_state_when_rows_leave_and_share_a_prompt(kind):
    """Oracle: the whole row is computed again for every token."""
    model = build(miniature(HYBRIDS[kind]()))
    assert cache_works(model)
    rows = torch.tensor([[5, 9, 11, 30, 2, 7], [8, 3, 3, 17, 21, 4]])
    again, cached = OwnCache(model, reread=True), OwnCache(model)
    with torch.no_grad():
        for one in (again, cached):
            one.read(rows)
            one.choose([1, 0, 1])
        for place in range(4):
            fed = torch.tensor([[place], [place + 9], [place + 20]])
            torch.testing.assert_close(cached.read(fed), again.read(fed), rtol=1e-3, atol=1e-3)
        for one in (again, cached):
            one.choose([2, 0])
        fed = torch.tensor([[6], [10]])
        torch.testing.assert_close(cached.read(fed), again.read(fed), rtol=1e-3, atol=1e-3)


def test_a_cache_that_does_not_work_is_found_out_and_left_alone(sharp_folder):
    policy = laid_out(build(miniature(MambaConfig())), "padded")
    model = backbone(policy.model)
    plain = model.forward
    model.forward = lambda *args, cache_params=None, **options: plain(*args, **options)  # forgets what it has read
    assert not cache_works(policy.model)


def test_prompts_of_unlike_length_share_a_batch_while_that_costs_little():
    room = Room(rows=8, tokens=1000)
    assert list(_batches([10, 12, 60], Sampling(8), room)) == [[(2, 0)], [(1, 0), (0, 0)]]
    assert [len(batch) for batch in _batches([10] * 3, Sampling(8, n=3), room)] == [8, 1]
    assert [len(batch) for batch in _batches([90] * 6, Sampling(10), Room(8, 300))] == [3, 3]
