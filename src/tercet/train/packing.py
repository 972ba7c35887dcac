"""How the trees of a step are shared out over ranks and cut into batches of at most so many tokens.

Trees that begin alike belong together, as what they share is computed once in every batch that holds one of them. They
are counted by the tokens that are really computed. Where nothing is shared, every tree stands for itself. All of it
is a function of the token ids alone, so every rank comes to the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tercet.device.mesh import Mesh
from tercet.models.forest import Tree, paths
from tercet.models.padded import pack_rows
from tercet.models.trie import Trie, grow
from tercet.recipe import Placement, TrainSpec

SMALLER, TRIED = 0.85, 24  # steps of the size of a piece, where several ranks share the work


class Budget(NamedTuple):
    """The most tokens of a batch; whether what several trees begin with alike is computed once; whether what exceeds
    the budget is trained branch by branch; and whether the loss compares leaves, which then costs a pass more."""

    tokens: int
    share: bool = True
    depth_first: bool = False
    compared: bool = False

    @classmethod
    def of(cls, placement: Placement, spec: TrainSpec) -> Budget:
        """The budget of a stage's training passes."""
        return cls(placement.micro_tokens, placement.share_prefixes, placement.depth_first, spec.paired)


class Piece(NamedTuple):
    """Trees that stay together, by number, and the tokens that are computed for them."""

    items: list[int]
    size: int


def cut_step(trees: Sequence[Tree], budget: Budget, mesh: Mesh) -> list[list[int]]:
    """The trees of each of this rank's batches, by number; `mesh` are ranks that read other rows."""
    if mesh.padded:
        mine = share([sum(tree.path_lengths) for tree in trees], mesh)
        return [[mine[i] for i in part] for part in pack_rows([trees[i].path_lengths for i in mine], budget.tokens)]
    if mesh.size > 1 or not mesh.walks or budget.compared:  # work is shared out, and a batch of parts costs more
        budget = budget._replace(depth_first=False)
    found = pieces(trees, budget, mesh.size)
    own = [found[i] for i in share([piece.size for piece in found], mesh)]
    parts = pack([piece.size for piece in own], budget.tokens)
    return [sorted(item for i in part for item in own[i].items) for part in parts]


def pieces(trees: Sequence[Tree], budget: Budget, ranks: int) -> list[Piece]:
    """The trees, those together that share a beginning, as far as the budget and a fair share of the work allow.

    Walked depth first, a family of any size stays together.
    """
    if not budget.share:
        return [Piece([item], tree.num_tokens) for item, tree in enumerate(trees)]
    own = paths(trees)
    trie = grow(own, share=True)
    nodes: list[set[int]] = [set() for _ in trees]  # of each tree
    for path, end in zip(own, trie.ends, strict=True):
        nodes[path.tree].update(trie.above(end))
    limits = [budget.tokens]
    if budget.depth_first:
        limits = [trie.num_tokens]
    elif ranks > 1:  # a smaller piece costs its beginning once more, but ranks share small pieces more evenly
        limits = [int(budget.tokens * SMALLER**tried) for tried in range(TRIED)]
    cuts = [_families(trie, nodes, limit) for limit in limits]
    return min(cuts, key=lambda cut: max(map(sum, _shares([piece.size for piece in cut], ranks))))


def _families(trie: Trie, nodes: Sequence[set[int]], limit: int) -> list[Piece]:
    """Neighbours that share a node, at most `limit` tokens of them, and who shares with nobody; by first item."""
    found: list[Piece] = []
    held: set[int] = set()  # nodes of the last piece
    for item in sorted(range(len(nodes)), key=lambda item: (sorted(nodes[item]), item)):
        more = sum(trie.nodes[number].size for number in nodes[item] - held)
        if nodes[item] & held and found[-1].size + more <= limit:
            found[-1] = Piece([*found[-1].items, item], found[-1].size + more)
            held |= nodes[item]
        else:
            found.append(Piece([item], sum(trie.nodes[number].size for number in nodes[item])))
            held = set(nodes[item])
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
