"""Every family computes in forests what its plain forward pass computes, and writes what that would write."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny_config, tiny_model
from test_forest import gradients, plain_logps, some_trees
from tests.forests import related

from tercet.models import generate
from tercet.models.chat import Chat
from tercet.models.depth_first import plan, walked
from tercet.models.forest import NAME, pack_forest, register
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_tokenizer
from tercet.models.layer_wrappers import recompute
from tercet.models.policy import Policy, why_not_forest
from tercet.models.score import Question, score
from tercet.rows import Sampling

EVERY = pytest.mark.parametrize("name", FAMILIES)


def pair(name: str) -> tuple[Policy, torch.nn.Module]:
    """A family's tiny model read through forests, and the same weights with transformers' own attention."""
    register()
    config = tiny_config(name)
    policy, plain = Policy(tiny_model(config, NAME)), tiny_model(config)
    plain.get_input_embeddings().padding_idx = None
    return policy, plain


def assert_near(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Every parameter has nearly the same gradient; experts that no token visits have none."""
    assert mine.keys() == theirs.keys()
    least = 1e-3 * max(float(grad.norm()) for grad in theirs.values())
    gaps = {name: float((mine[name] - grad).norm() / grad.norm().clamp(min=least)) for name, grad in theirs.items()}
    assert max(gaps.values()) < 1e-3, max(gaps, key=gaps.__getitem__)


@EVERY
def test_log_probabilities_and_gradients_are_the_plain_forwards(name):
    policy, plain = pair(name)
    trees = some_trees()
    logps, _ = policy(pack_forest(trees))
    wanted = torch.cat([plain_logps(plain, tree) for tree in trees])
    torch.testing.assert_close(logps, wanted, rtol=1e-4, atol=1e-4)
    assert_near(gradients(policy.model, logps), gradients(plain, wanted))


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "llama4", "deepseek_v3", "gemma3n"])
def test_a_trie_walked_depth_first_has_the_gradient_of_the_whole(name):
    policy, _ = pair(name)
    forest = pack_forest(related(0, depth=4), 16, share=True)
    slopes = torch.linspace(0.5, 2.0, len(forest.targets_P))
    steps = plan(forest, 60, 16)
    assert steps is not None
    theirs = gradients(policy.model, policy(forest)[0])
    policy.zero_grad()
    for part in walked(policy.hidden, steps, torch.autograd.backward):
        (policy(part.forest)[0] * slopes[part.predicted]).sum().backward()
    mine = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    assert_near(mine, theirs)


@pytest.mark.parametrize("name", ["stablelm", "gpt_oss"])
def test_layers_that_are_computed_again_have_the_same_gradient(name):
    policy, plain = pair(name)
    assert why_not_forest(policy) == ""
    recompute(policy)
    one, two = (policy(pack_forest(some_trees(seed)))[0] for seed in (1, 2))  # both wait for their backward
    found = gradients(policy.model, torch.cat((one, two)))
    wanted = torch.cat([plain_logps(plain, tree) for seed in (1, 2) for tree in some_trees(seed)])
    assert_near(found, gradients(plain, wanted))


@EVERY
def test_the_probe_finds_nothing_against_it(name):
    policy, _ = pair(name)
    assert why_not_forest(policy) == ""


PROMPTS = [[40, 41, 42, 43, 44, 45, 46, 47, 48, *tail] for tail in ([5], [6, 7, 8], [9] * 12, [30, 31])]


def greedy(plain: torch.nn.Module, ids: list[int], most: int) -> list[int]:
    """The likeliest tokens one after another, each by a forward pass over all before it."""
    path = list(ids)
    with torch.no_grad():
        for _ in range(most):
            path.append(int(plain(input_ids=torch.tensor([path])).logits[0, -1].argmax()))
    return path[len(ids) :]


@EVERY
@pytest.mark.parametrize("shared", [4, 99], ids=["a shared beginning", "alone"])
def test_greedy_answers_are_those_of_the_plain_forward(name, shared, tiny_folder, monkeypatch):
    monkeypatch.setattr(generate, "SHARED", shared)
    policy, plain = pair(name)
    generator = LocalGenerator(policy, Chat(load_tokenizer(tiny_folder)), rows=3)
    generator.chat.stops = set()
    wanted = [greedy(plain, ids, 9) for ids in PROMPTS]
    for paged in (False, True):
        generator.paged = paged
        found = generator.write(PROMPTS, Sampling(9))
        assert [list(group[0].token_ids) for group in found] == wanted


@EVERY
def test_likelihoods_are_the_plain_forwards(name):
    policy, plain = pair(name)
    base = [(11 * i) % 250 for i in range(40)]
    questions = [Question([*base, 3, 4], [[5, 6], [7]]), Question([*base, 9], [[1, 2, 3, 4]])]
    found = [one.logp for group in score(policy, questions, 4096) for one in group]
    wanted = []
    with torch.no_grad():
        for question in questions:
            for option in question.options:
                path = torch.tensor([[*question.context, *option]])
                logps = plain(input_ids=path).logits[0, :-1].log_softmax(-1).gather(1, path[0, 1:, None])
                wanted.append(float(logps[-len(option) :].sum()))
    assert found == pytest.approx(wanted, rel=1e-4)
