"""Log-probabilities of many continuations: every shared token is computed once.

A question is a tree: its context is the trunk, its options are leaves. Contexts that begin alike (few-shot examples of
one subject) share nodes of a trie. An option's last token is never computed, only looked up: options of one token cost
nothing at all.

Shape suffixes: T tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tercet.models.flops import ComputeAccount, attended_pairs
from tercet.models.forest import Forest, Leaf, Tree, pack_forest
from tercet.models.forest_cuda import BLOCK
from tercet.models.policy import Policy
from tercet.models.trie import SHARED, alike
from tercet.rows import Likelihood

Ids = Sequence[int]
CHUNK = 256  # positions whose logits exist at once


@dataclass(frozen=True)
class Question:
    """A context and the continuations to score, as token ids. Neither the context nor an option is empty."""

    context: Ids
    options: Sequence[Ids]

    @property
    def num_tokens(self) -> int:
        """Tokens to compute when nothing is shared with other questions."""
        return len(self.context) + sum(len(option) - 1 for option in self.options)

    def tree(self) -> Tree:
        """The tokens to compute."""
        return Tree(self.context, [Leaf(option[:-1], [True] * (len(option) - 1)) for option in self.options])


@torch.no_grad()
def score(
    policy: Policy, questions: Sequence[Question], budget: int, work: ComputeAccount | None = None
) -> Iterator[list[Likelihood]]:
    """The likelihoods of every question's options, in order; batches hold at most `budget` tokens where they can."""
    for batch in _rows(questions, budget) if policy.padded else _batches(questions, budget):
        yield from _score(policy, batch, work)


def _batches(questions: Sequence[Question], budget: int) -> Iterator[list[Question]]:
    """Neighbours together; what a context shares with the one before it is counted once."""
    batch: list[Question] = []
    used = 0
    for question in questions:
        shared = alike(np.asarray(batch[-1].context), np.asarray(question.context)) if batch else 0
        cost = question.num_tokens - (shared if shared >= SHARED else 0)
        if batch and used + cost > budget:
            yield batch
            batch, used, cost = [], 0, question.num_tokens
        batch.append(question)
        used += cost
    if batch:
        yield batch


def _rows(questions: Sequence[Question], budget: int) -> Iterator[list[Question]]:
    """Batches of at most `budget` tokens when every option is a row of its own, padding included."""
    batch: list[Question] = []
    rows = longest = 0
    for question in questions:
        length = len(question.context) + max(map(len, question.options), default=1) - 1
        if batch and (rows + len(question.options)) * max(longest, length) > budget:
            yield batch
            batch, rows, longest = [], 0, 0
        batch.append(question)
        rows, longest = rows + len(question.options), max(longest, length)
    if batch:
        yield batch


def _score(policy: Policy, questions: list[Question], work: ComputeAccount | None) -> list[list[Likelihood]]:
    device = policy.head().weight.device
    multiple = BLOCK if device.type == "cuda" and not policy.padded else 1
    forest = pack_forest([one.tree() for one in questions], multiple, share=not policy.padded)
    options = [option for question in questions for option in question.options]
    # a leaf's tokens predict each other; its last one, or the context's, predicts the option's last token
    places = torch.cat((forest.predict_P, forest.last_L))
    targets = torch.cat((forest.targets_P, torch.tensor([option[-1] for option in options])))
    owners = torch.cat((forest.leaf_P, torch.arange(len(options))))
    if work is not None:
        work.add(forest.num_tokens, attended_pairs(forest), len(places.unique()))
    logps, greedy = _look_up(policy, forest.to(device), places, targets, owners)
    found = iter(Likelihood(logp, len(option), top) for option, logp, top in zip(options, logps, greedy, strict=True))
    return [[next(found) for _ in question.options] for question in questions]


def _look_up(
    policy: Policy, forest: Forest, places: Tensor, targets: Tensor, owners: Tensor
) -> tuple[list[float], list[bool]]:
    """Summed log-probability of each option in nats, and whether every token of it is the most likely one.

    `places` are those of the hidden states that predict `targets`, tokens of the options `owners`.
    """
    hidden = policy.hidden(forest, forest.input_ids, forest.position_ids)
    device, number = hidden.device, forest.num_leaves
    wanted, row = torch.unique(places, return_inverse=True)
    logps = torch.zeros(number, dtype=torch.float64)
    greedy = torch.ones(number, dtype=torch.bool)
    for start in range(0, len(wanted), CHUNK):
        part = wanted[start : start + CHUNK]
        logits = policy.head()(hidden[part.to(device)]).float()
        inside = (row >= start) & (row < start + len(part))
        rows, tokens = (row[inside] - start).to(device), targets[inside].to(device)
        chosen = logits[rows, tokens] - logits.logsumexp(1)[rows]
        logps.index_add_(0, owners[inside], chosen.double().cpu())
        greedy[owners[inside][(logits.argmax(1)[rows] != tokens).cpu()]] = False
    return logps.tolist(), greedy.tolist()
