"""Random trees that begin alike, for the laws of tries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.models.llama import modeling_llama

from tercet.models.forest import Leaf, Tree
from tercet.models.policy import Policy
from tercet.train.export import open_policy


def in_float64(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """A policy in float64 throughout: transformers' norm goes through float32, which hides small differences."""

    def forward(norm, hidden):
        return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)
    return open_policy(folder, torch.float64)


def related(seed: int, depth: int = 3, shortest: int = 32, leaves: int = 2) -> list[Tree]:
    """Trees whose paths part at up to `depth` places, in random order, with duplicates and a stranger among them.

    With one leaf some have a trunk and some have none; otherwise all have `leaves`.
    """
    source = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [source.randrange(256) for _ in range(source.randint(least, most))]

    def beginnings(left: int) -> Iterator[list[int]]:
        own = ids(shortest, shortest + 9)
        yield own
        for number in range(source.randint(1, 2) if left else 0):
            deeper = left - 1 if not number else source.randrange(left)
            yield from (own + below for below in beginnings(deeper))

    def tree(start: list[int]) -> Tree:
        parts = [ids(2, 12) for _ in range(leaves)]
        if leaves == 1 and source.random() < 0.5:
            whole = start + parts[0]
            return Tree([], [Leaf(whole, [source.random() < 0.5 for _ in whole])])
        return Tree(start, [Leaf(part, [True] * len(part)) for part in parts])

    found = [tree(start) for _ in range(2) for start in beginnings(depth - 1)]
    found += [tree(ids(3, 9)), found[0], found[-1]]
    return source.sample(found, len(found))
