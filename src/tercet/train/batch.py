"""From conversations to packed steps: trees, the length policy, which rows a step takes, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tercet.device.mesh import Mesh
from tercet.models.chat import MaskedTokens, last_turn
from tercet.models.depth_first import Part, Walk
from tercet.models.forest import Forest, Leaf, Owners, Tree, pack_forest
from tercet.models.forest_cuda import BLOCK
from tercet.train.packing import Budget, cut_step
from tercet.train.parts import num_tokens, planned
from tercet.train.tokens import Tokens

FILL = 64  # batches are padded to a multiple of this many tokens, on a GPU to whole blocks of attention
EMPTY = Tree([], [Leaf([0, 0], [False, False])])  # a rank with nothing left still takes part in the collectives


@dataclass
class Batch:
    """A forest and the numbers that go with it: per leaf (L,) or per predicted token (P,)."""

    forest: Forest
    values: dict[str, Tensor] = field(default_factory=dict)
    part: str = ""  # of the trained module, where a stage trains two side by side
    owners: Owners | None = None  # the answers of the losses, where these are not of the forest's predicted tokens
    walk: list[Part | Walk] | None = None  # how to train it part by part, where it exceeds the budget

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return num_tokens(self.walk) if self.walk else self.forest.num_tokens

    @property
    def forests(self) -> list[Forest]:
        """What is computed, as forests that stand for themselves."""
        parts = [step.forest for step in self.walk or () if isinstance(step, Part)]
        return parts if self.walk and len(parts) == len(self.walk) else [self.forest]

    def moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with `move` applied to its tensors."""
        values = {name: move(value) for name, value in self.values.items()}
        walk = self.walk and [one.moved(move) for one in self.walk]
        return replace(self, forest=self.forest.moved(move), values=values, walk=walk)


@dataclass
class Step:
    """One optimiser update: this rank's batches, and metrics known before training (a rollout's rewards)."""

    batches: list[Batch]
    metrics: dict[str, float] = field(default_factory=dict)


class Limit(NamedTuple):
    """The length policy of a stage."""

    max_length: int
    overlong: str  # "drop", "cut" or "error"
    max_lost: float


class TruncationError(ValueError):
    """Rows are longer than the recipe allows."""


def answered(encoded: MaskedTokens) -> Tree:
    """All assistant turns trained; what follows the last trained token is cut.

    One leaf, or one for each text that the conversation takes (`MaskedTokens.others`): they share what they begin with
    as their trunk, up to the first trained token.
    """
    paths = [*encoded.others, encoded]
    ends = [len(one.mask) - one.mask[::-1].index(True) for one in paths]
    shared = min(one.mask.index(True) for one in paths) if encoded.others else 0
    trunk = list(encoded.token_ids[:shared])
    while any(one.token_ids[: len(trunk)] != trunk for one in paths):
        trunk.pop()
    shared = len(trunk)
    return Tree(trunk, [Leaf(one.token_ids[shared:e], one.mask[shared:e]) for one, e in zip(paths, ends, strict=True)])


def branch(encoded: Sequence[MaskedTokens]) -> Tree:
    """A prompt with one leaf per answer, all of it trained. Tokens the answers do not share leave the trunk."""
    pairs = [last_turn(one) for one in encoded]
    shared = min(len(ids) for ids, _ in pairs)
    while any(ids[:shared] != pairs[0][0][:shared] for ids, _ in pairs):
        shared -= 1
    leaves = []
    for ids, completion in pairs:
        rest = list(ids[shared:])
        leaves.append(Leaf(rest + list(completion), [False] * len(rest) + [True] * len(completion)))
    return Tree(list(pairs[0][0][:shared]), leaves)


def cut(tree: Tree, max_length: int) -> Tree:
    """Right-truncate every path to `max_length`."""
    trunk = list(tree.trunk[:max_length])
    left = max_length - len(trunk)
    return Tree(trunk, [Leaf(leaf.token_ids[:left], leaf.mask[:left]) for leaf in tree.leaves])


def trained(tree: Tree) -> bool:
    """Whether every leaf still has a token to train on."""
    return all(any(leaf.mask[0 if tree.trunk else 1 :]) for leaf in tree.leaves)


@dataclass(frozen=True)
class Trees(Sequence[Tree]):
    """Some rows of a token file in some order, each made into a tree (cut to `max_length`) when it is asked for."""

    tokens: Tokens
    rows: np.ndarray
    max_length: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        """A tree; for a slice or a list of places the same view of fewer rows."""
        if not isinstance(place, int):
            return Trees(self.tokens, self.rows[place], self.max_length)
        tree = self.tokens.tree(int(self.rows[place]))
        return tree if tree.num_tokens <= self.max_length else cut(tree, self.max_length)


def within(tokens: Tokens, limit: Limit) -> tuple[Trees, dict[str, Any]]:
    """Apply the length policy: the rows that stay, and a table of what is lost per source."""
    sizes_R = tokens.sizes_RS.sum(axis=1)
    longest_R = tokens.sizes_RS[:, 0] + tokens.sizes_RS[:, 1:].max(axis=1, initial=0)
    lost_R, cut_R, left_R = longest_R > limit.max_length, np.zeros(len(tokens), dtype=bool), sizes_R.copy()
    for row in np.flatnonzero(lost_R).tolist() if limit.overlong != "drop" else ():
        if limit.overlong == "error":
            raise TruncationError(
                f"row {tokens.name(row)} of {tokens.sources[tokens.source_R[row]]} has {longest_R[row]} tokens, more "
                f'than max_length = {limit.max_length}; raise max_length, or set overlong = "drop" or "cut"'
            )
        shorter = cut(tokens.tree(row), limit.max_length)
        if trained(shorter):
            lost_R[row], cut_R[row], left_R[row] = False, True, shorter.num_tokens
    left_R[lost_R] = 0
    counts = {"rows": np.ones(len(tokens)), "lost_rows": lost_R, "cut_rows": cut_R, "tokens": sizes_R}
    counts["lost_tokens"] = sizes_R - left_R
    sums = {key: np.bincount(tokens.source_R, values, len(tokens.sources)) for key, values in counts.items()}
    table = {name: {key: int(sums[key][i]) for key in sums} for i, name in enumerate(tokens.sources)}
    _check_lost(table, limit)
    kept = Trees(tokens, np.flatnonzero(~lost_R), limit.max_length)
    return kept, {"max_length": limit.max_length, "overlong": limit.overlong, "sources": table}


def _check_lost(table: dict[str, dict[str, int]], limit: Limit) -> None:
    rows, lost = (sum(count[key] for count in table.values()) for key in ("rows", "lost_rows"))
    if rows and lost == rows:
        raise TruncationError(f"all {rows} rows are longer than max_length = {limit.max_length}; raise max_length")
    if rows and lost / rows > limit.max_lost:
        raise TruncationError(
            f"{lost} of {rows} rows ({lost / rows:.1%}) are longer than max_length = {limit.max_length} and would be "
            f'lost, more than max_lost = {limit.max_lost:.0%}; raise one of the two, or set overlong = "cut"'
        )


def order(num_rows: int, epoch: int, seed: int) -> list[int]:
    """A permutation fixed by (seed, epoch)."""
    return _permutation(num_rows, epoch, seed).tolist()


@lru_cache(maxsize=2)
def _permutation(num_rows: int, epoch: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=source)


def schedule(num_rows: int, batch: int, epochs: int, steps: int | None) -> int:
    """Optimiser steps of all epochs, at most `steps`: the last batch of an epoch may be smaller."""
    total = -(-num_rows // batch) * epochs
    return min(total, steps) if steps else total


def chosen_rows(step: int, num_rows: int, batch: int, seed: int) -> list[int]:
    """The rows of optimiser step `step`, a pure function of its number, so a resumed run needs no cursor but that."""
    per_epoch = -(-num_rows // batch)
    epoch, place = divmod(step, per_epoch)
    return _permutation(num_rows, epoch, seed)[place * batch : (place + 1) * batch].tolist()


def filling(device: torch.device) -> int:
    """The multiple of tokens that a batch is padded to."""
    return BLOCK if device.type == "cuda" else FILL


def batches(
    trees: Sequence[Tree],
    budget: Budget,
    mesh: Mesh,
    values: Callable[[list[int], Forest], dict[str, Tensor]] | None = None,
    multiple: int | None = None,
) -> list[Batch]:
    """This rank's batches of one step; all ranks get equally many. `values(items, forest)` adds per-leaf numbers.

    They are padded to `multiple`, by default that of the mesh's device.
    """
    if mesh.padded:  # rows share nothing, and are filled up by themselves
        budget, multiple = budget._replace(share=False), 1
    multiple = multiple or filling(mesh.device)
    readers = mesh.data
    parts = cut_step(trees, budget, readers)
    forests = [pack_forest([trees[i] for i in items], multiple, share=budget.share) for items in parts]
    most = int(readers.max([float(len(forests))])[0])
    for _ in range(len(forests), most):
        parts.append([])
        forests.append(pack_forest([EMPTY], multiple if multiple == BLOCK else 1))
    walks = planned([[trees[i] for i in items] for items in parts], forests, budget, mesh, multiple)
    extras = [values(items, forest) if values else {} for items, forest in zip(parts, forests, strict=True)]
    made = [Batch(forest, extra, walk=walk) for forest, extra, walk in zip(forests, extras, walks, strict=True)]
    return [batch.moved(lambda tensor: tensor.to(mesh.device)) for batch in made]
