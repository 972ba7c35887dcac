"""How the trees of a step are shared out over ranks and cut into batches of at most so many tokens.

Trees that begin alike belong together, as what they share is computed once in every batch that holds one of them. They
are counted by the tokens that are really computed. Where nothing is shared, every tree stands for itself. All of it
is a function of the token ids alone, so every rank comes to the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tercet.device.mesh import Mesh
from tercet.models.forest import Tree
from tercet.models.padded import pack_rows
from tercet.models.trie import Path, Trie, grow
from tercet.recipe import Placement, TrainSpec

SMALLER, TRIED = 0.85, 24  # steps of the size of a piece, where several ranks share the work


class Budget(NamedTuple):
    """The most tokens of a batch; whether what several trees begin with alike is computed once; and whether a tree
    beyond the budget is trained branch by branch."""

    tokens: int
    share: bool = True
    depth_first: bool = False

    @classmethod
    def of(cls, placement: Placement, spec: TrainSpec) -> Budget:
        """The budget of a stage's training passes. A loss that compares leaves needs them in one pass."""
        return cls(placement.micro_tokens, placement.share_prefixes, placement.depth_first and not spec.paired)


class Piece(NamedTuple):
    """Trees that stay together, by number, and the tokens that are computed for them."""

    items: list[int]
    size: int


def cut_step(trees: Sequence[Tree], budget: Budget, mesh: Mesh) -> list[list[int]]:
    """The trees of each of this rank's batches, by number."""
    if mesh.padded:
        mine = share([sum(tree.path_lengths) for tree in trees], mesh)
        return [[mine[i] for i in part] for part in pack_rows([trees[i].path_lengths for i in mine], budget.tokens)]
    found = pieces(trees, budget, mesh.size)
    own = [found[i] for i in share([piece.size for piece in found], mesh)]
    parts = pack([piece.size for piece in own], budget.tokens)
    return [sorted(item for i in part for item in own[i].items) for part in parts]


def pieces(trees: Sequence[Tree], budget: Budget, ranks: int) -> list[Piece]:
    """The trees, those together that share a beginning, as far as the budget and a fair share of the work allow.

    Walked depth first, a family of any size stays together.
    """
    sizes = [tree.num_tokens for tree in trees]
    if not budget.share:
        return [Piece([item], size) for item, size in enumerate(sizes)]
    trie = grow([Path(_beginning(tree), 0, item) for item, tree in enumerate(trees)], share=True)
    limits = [budget.tokens]
    if budget.depth_first and ranks == 1:
        limits = [sum(sizes)]
    elif ranks > 1:  # a smaller piece costs its beginning once more, but ranks share small pieces more evenly
        limits = [int(budget.tokens * SMALLER**tried) for tried in range(TRIED)]
    cuts = [_families(trie, sizes, limit) for limit in limits]
    return min(cuts, key=lambda cut: max(map(sum, _shares([piece.size for piece in cut], ranks))))


def _beginning(tree: Tree) -> np.ndarray:
    """What all leaves of a tree have in common, by which it is compared with others."""
    return np.asarray([*tree.trunk, *tree.leaves[0].token_ids] if len(tree.leaves) == 1 else tree.trunk, np.int64)


def _families(trie: Trie, sizes: Sequence[int], limit: int) -> list[Piece]:
    """Neighbours that share a beginning, at most `limit` tokens of them, and who shares with nobody; by first item."""
    found: list[Piece] = []
    before: set[int] = set()
    for end, item in sorted(zip(trie.ends, range(len(sizes)), strict=True)):
        path = set(trie.above(end))
        shared = sum(trie.nodes[number].size for number in path & before)
        before = path
        if shared and found[-1].size + sizes[item] - shared <= limit:
            found[-1] = Piece([*found[-1].items, item], found[-1].size + sizes[item] - shared)
        else:
            found.append(Piece([item], sizes[item]))
    return sorted((Piece(sorted(items), size) for items, size in found), key=lambda piece: piece.items[0])


def _shares(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """The sizes that each rank gets."""
    return [[sizes[i] for i in items] for items in shares(sizes, ranks)]


def share(sizes: Sequence[int], mesh: Mesh) -> list[int]:
    """The items of this rank, in order."""
    return shares(sizes, mesh.size)[mesh.rank]


def shares(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """The items of every rank: largest first to the rank with least work."""
    loads: list[int] = [0] * ranks
    found: list[list[int]] = [[] for _ in range(ranks)]
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[item]
        found[rank].append(item)
    return [sorted(items) for items in found]


def pack(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Cut items into few batches of at most `budget` tokens (first-fit decreasing); a longer item is alone."""
    left: list[int] = []  # tokens that each batch may still take
    bins: list[list[int]] = []
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        number = next((number for number, tokens in enumerate(left) if sizes[item] <= tokens), len(left))
        if number == len(left):
            left.append(budget)
            bins.append([])
        left[number] -= sizes[item]
        bins[number].append(item)
    return [sorted(items) for items in bins]
