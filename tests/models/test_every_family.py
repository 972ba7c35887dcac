"""Every causal language model that transformers knows: our log-probabilities, gradients and answers are its own.

Each family's configuration is made small (`tercet.models.miniature`), read in a forest where that works and one path a
row where it does not, and compared with a plain forward pass over each path alone. docs/families.md is the table of it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from families_table import EXCEPTIONS, KINDS, PAGE, small_config

from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_tokenizer
from tercet.models.miniature import build
from tercet.models.opening import laid_out
from tercet.rows import Sampling

TREES = [
    Tree(list(range(20, 29)), [Leaf([7, 2, 8, 40, 41, 42, 43], [True] * 7), Leaf([4, 9, 33], [False, True, True])]),
    Tree(
        [], [Leaf([3, 61, 4, 71, 5, 9, 2, 6, 15, 35], [False, True, True, False, False, True, True, True, True, True])]
    ),
]
PROMPTS = [[40, 41, 42, 43, 44, 45, 46, *tail] for tail in ([5], [6, 7, 8, 9], [30, 31])]
MOST = 4


def plain_logps(model) -> torch.Tensor:
    """Log-probabilities of the trained tokens by a pass over each path by itself."""
    found = []
    for tree in TREES:
        for leaf in tree.leaves:
            path = torch.tensor([[*tree.trunk, *leaf.token_ids]])
            logps = model(input_ids=path, use_cache=False).logits[0].log_softmax(-1)
            places = [len(tree.trunk) + place for place, trained in enumerate(leaf.mask) if trained]
            found.append(logps[[place - 1 for place in places]].gather(1, path[0, places, None])[:, 0])
    return torch.cat(found)


def greedy(model, ids: list[int]) -> list[int]:
    path = list(ids)
    with torch.no_grad():
        for _ in range(MOST):
            path.append(int(model(input_ids=torch.tensor([path]), use_cache=False).logits[0, -1].argmax()))
    return path[len(ids) :]


def gradients(model, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(0.5, 1.5, len(logps))
    (logps * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in EXCEPTIONS])
def test_a_family_is_read_trained_and_written_as_transformers_does(kind, tiny_folder):
    config = small_config(kind)
    model, plain = build(copy.deepcopy(config)), build(copy.deepcopy(config))
    policy = laid_out(model, "auto")
    assert ("padded" if policy.padded else "forest") == PAGE[kind]
    plain.get_input_embeddings().padding_idx = None
    logps, wanted = policy(pack_forest(TREES))[0], plain_logps(plain)
    torch.testing.assert_close(logps, wanted, rtol=1e-3, atol=1e-3)
    mine, theirs = gradients(model, logps), gradients(plain, wanted)
    most = max(float(grad.norm()) for grad in theirs.values())
    gaps = {
        name: float((mine[name] - grad).norm() / max(float(grad.norm()), 1e-2 * most)) for name, grad in theirs.items()
    }
    assert max(gaps.values()) < 5e-3, max(gaps.items(), key=lambda one: one[1])
    generator = LocalGenerator(policy, Chat(load_tokenizer(tiny_folder)))
    generator.chat.stops = set()
    found = generator.write(PROMPTS, Sampling(MOST))
    assert [list(group[0].token_ids) for group in found] == [greedy(plain, ids) for ids in PROMPTS]


@pytest.mark.fast
def test_the_table_names_every_family_and_few_are_exceptions():
    assert PAGE.keys() == KINDS.keys()
    assert {kind for kind, how in PAGE.items() if how == "refused"} == EXCEPTIONS.keys()
    assert len(KINDS) - len(EXCEPTIONS) >= 60
