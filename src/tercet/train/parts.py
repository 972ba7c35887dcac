"""Batches beyond the token budget, part by part, where a walk below a trunk alone does not do.

Ranks that share a model gather its layers together, so each must run it equally often and in the same order. Their
plans are made alike: a rank that has less to do runs an idle part, or an idle trunk, where another has a real one.

Some models need more of a trunk than keys and values. For them a batch becomes several, and each computes the trunks of
its leaves again. That is exact for a loss that is a sum over leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch

from tercet.device.mesh import Mesh
from tercet.models.depth_first import Part, Walk, plan
from tercet.models.forest import Forest, Tree, pack_forest
from tercet.train.packing import Budget

Steps = list[Part | Walk]
Shape = list["Shape"]
"""What a plan runs: an empty list for a part, for a walk the shapes of what is below its trunk."""


def planned(
    trees: Sequence[Sequence[Tree]], forests: Sequence[Forest], budget: Budget, mesh: Mesh, multiple: int
) -> list[Steps | None]:
    """How each batch, of these trees and so laid out, is taken part by part, alike on all ranks; None: all at once."""
    if not budget.depth_first:
        return [None] * len(forests)
    if mesh.padded or not mesh.walks:
        plans = [
            repeated(own, budget.tokens, multiple, padded=mesh.padded)
            if mesh.padded or forest.num_tokens > budget.tokens
            else None
            for own, forest in zip(trees, forests, strict=True)
        ]
    else:
        plans = [plan(forest, budget.tokens, multiple) for forest in forests]
    if mesh.size == 1 or not mesh.data.max([float(any(plans))])[0]:
        return plans
    shapes = map(agreed, zip(*mesh.data.gather([shape_of(one or []) for one in plans]), strict=True))
    every = zip(plans, forests, shapes, strict=True)
    return [fitted(steps or [_whole(forest)], shape, multiple) if shape else None for steps, forest, shape in every]


def repeated(trees: Sequence[Tree], budget: int, multiple: int = 1, *, padded: bool = False) -> Steps | None:
    """The leaves of a batch in parts of at most `budget` tokens, each with the trunks that it needs; None: all at once.

    A leaf that exceeds the budget with its trunk is alone. `padded`: each path is a row as long as the longest.
    """
    leaves = [(number, leaf) for number, tree in enumerate(trees) for leaf in range(len(tree.leaves))]
    groups: list[list[tuple[int, int]]] = []
    used = longest = 0
    for number, leaf in leaves:
        tree = trees[number]
        path = len(tree.trunk) + len(tree.leaves[leaf].token_ids)
        longest, rows = max(longest, path), len(groups[-1]) + 1 if groups else 1
        same = bool(groups) and groups[-1][-1][0] == number
        cost = rows * longest if padded else used + path - (len(tree.trunk) if same else 0)
        if not groups or cost > budget:
            groups.append([])
            cost = longest = path
        groups[-1].append((number, leaf))
        used = cost
    if len(groups) < 2:
        return None
    return _parts(trees, groups, multiple, share=not padded)


def _parts(trees: Sequence[Tree], groups: Sequence[Sequence[tuple[int, int]]], multiple: int, *, share: bool) -> Steps:
    """Leaves and their predicted tokens stand in the parts as in the batch, one after another."""
    found: Steps = []
    leaves = tokens = 0
    for group in groups:
        numbers = dict.fromkeys(number for number, _ in group)
        own = [
            Tree(trees[number].trunk, [trees[number].leaves[leaf] for tree, leaf in group if tree == number])
            for number in numbers
        ]
        forest = pack_forest(own, multiple, share=share)
        more = len(forest.targets_P)
        found.append(
            Part(forest, torch.arange(leaves, leaves + len(group)), torch.arange(tokens, tokens + more)),
        )
        leaves, tokens = leaves + len(group), tokens + more
    return found


def num_tokens(steps: Sequence[Part | Walk]) -> int:
    """Tokens that a plan computes."""
    return sum(
        step.forest.num_tokens if isinstance(step, Part) else step.trunk.num_tokens + num_tokens(step.below)
        for step in steps
    )


def shape_of(steps: Sequence[Part | Walk]) -> Shape:
    """See `Shape`."""
    return [[] if isinstance(step, Part) else shape_of(step.below) for step in steps]


def agreed(shapes: Sequence[Shape]) -> Shape:
    """The least shape that has room for each of these."""
    found: Shape = []
    for same in zip_longest(*shapes, fillvalue=[]):
        walks = [one for one in same if one]
        found.append(agreed(walks) if walks else [])
    return found


def fitted(steps: Sequence[Part | Walk], shape: Shape, multiple: int) -> Steps:
    """The plan with idle parts and trunks wherever the shape has more."""
    found: Steps = []
    for step, below in zip_longest(steps, shape):
        if not below:
            found.append(step or _idle(multiple))
        elif isinstance(step, Walk):
            found.append(Walk(step.trunk, step.states, fitted(step.below, below, multiple), everywhere=True))
        else:
            own = [step] if step else []
            found.append(Walk(_idle(multiple).forest, None, fitted(own, below, multiple), everywhere=True))
    return found


def _whole(forest: Forest) -> Part:
    return Part(forest, torch.arange(forest.num_leaves), torch.arange(len(forest.targets_P)))


def _idle(multiple: int) -> Part:
    """A part without leaves: two tokens that nobody learns from."""
    none = torch.zeros(0, dtype=torch.long)
    return Part(pack_forest([Tree([0, 0], [])], multiple), none, none)
