"""The reference of a policy: a table made before the first step, or a live model, frozen or following the policy.

A table costs one pass over the pairs and no memory while training; a live model is for answers nobody knows in advance
(rollouts) and for a reference that moves (Polyak averaging: every so many steps a share of the way to the policy).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.device.shares import both_shares
from tercet.journal import intact, stamp, write_json
from tercet.models.forest import Forest, Tree
from tercet.models.policy import Policy
from tercet.rows import read_table, write_table
from tercet.train.batch import batches
from tercet.train.loop import leaf_sums
from tercet.train.packing import Budget

PART, SCORING = 16, Budget(4096)  # trees that a rank takes at once, and what one batch holds, when a table is made


class ReferenceModel:
    """A live reference: a model of its own, of which each of several ranks holds a share.

    With `share` > 0 it moves by that share to the policy every `every` steps: ref = share x policy + (1 - share) x ref,
    in fp32, so give it a policy in fp32 (on its device), and in `dtype` the precision to compute in, unless ranks share
    it, whose shares bring that with them. `kept` is what a checkpoint must hold: give it to `start(..., kept=)` before
    the first `logps`.
    """

    def __init__(self, policy: Policy, share: float, every: int, dtype: torch.dtype | None = None) -> None:
        self.share, self.every = share, every
        self.policy = policy.requires_grad_(False).eval()
        own: dict[str, Tensor] = dict(self.policy.named_parameters())
        shared = any(hasattr(value, "to_local") for value in own.values())
        weights = own if shared else {name: value.detach().float() for name, value in own.items()}
        if dtype is not None and not shared:
            self.policy.to(dtype)  # in place: parameters change their storage, the fp32 master weights keep theirs
        self.copied = not shared and any(value.data_ptr() != own[name].data_ptr() for name, value in weights.items())
        self.kept = weights if share else {}
        self._fresh = False

    @torch.no_grad()
    def logps(self, forest: Forest, temperature: float = 1.0) -> Tensor:
        """Log-probabilities (P,) of the trained tokens."""
        if not self._fresh:
            self._refresh()
        return self.policy(forest, temperature=temperature)[0]

    def answer_logps(self, forest: Forest) -> Tensor:
        """Log-probabilities (L,) of the answers, each summed over its tokens."""
        return leaf_sums(self.logps(forest), forest)

    @torch.no_grad()
    def follow(self, step: int, trainable: Trainable) -> None:
        """Move where that is due after optimiser step (or round) `step`; every rank must call it."""
        if not self.share or not step or step % self.every:
            return
        for name, value in trainable.state():
            own, other = both_shares(self.kept[name], value)
            own.lerp_(other.to(own), self.share)
        self._fresh = False

    def _refresh(self) -> None:
        """Make the compute copy equal the master weights."""
        if self.copied and self.kept:
            for name, value in self.policy.named_parameters():
                value.copy_(self.kept[name])
        self._fresh = True


class Table(NamedTuple):
    """Summed log-probabilities of the starting model, fp32.

    `answers` (pairs, 2): of the chosen and the rejected ones, or (rows, 1) of answers without partners; `mismatched`:
    per step, of the answers to other prompts that kto needs, (pairs or rows of the step, 1).
    """

    answers: Tensor
    mismatched: list[Tensor]


def load_table(folder: Path, made_of: dict[str, Any], work: Path) -> Table | None:
    """The table in `folder`, unless it was made of something else: other weights, tokens, precision or order.

    Nor where a byte of it is not what `save_table` wrote, by the digests that it kept in `work`.
    """
    tables = ("reference.parquet", *(("mismatched.parquet",) if "order" in made_of else ()))
    if not all(intact(folder / name, work) for name in ("reference.json", *tables)):
        return None
    if json.loads((folder / "reference.json").read_text("utf-8")) != made_of:
        return None
    answers = [list(row.values())[1:] for row in read_table(folder / "reference.parquet")]
    rows = read_table(folder / "mismatched.parquet") if "order" in made_of else []
    steps = [torch.tensor([[row["logp"]] for row in step]) for _, step in groupby(rows, itemgetter("step"))]
    return Table(torch.tensor(answers, dtype=torch.float32), steps)


def save_table(folder: Path, table: Table, made_of: dict[str, Any], work: Path) -> None:
    """Keep a table for a run that continues, what it was made of, and in `work` the digests of both."""
    for damaged in ("reference.parquet", "mismatched.parquet", "reference.json"):
        (folder / damaged).unlink(missing_ok=True)  # a link in its place would be written through
    names = ("pair", "chosen", "rejected") if table.answers.shape[1] == 2 else ("row", "logp")
    rows = [dict(zip(names, (i, *logps), strict=True)) for i, logps in enumerate(table.answers.tolist())]
    write_table(folder / "reference.parquet", rows)
    if "order" in made_of:
        found = [{"step": i, "logp": x} for i, step in enumerate(table.mismatched) for x in step.flatten().tolist()]
        write_table(folder / "mismatched.parquet", found)
        stamp(folder / "mismatched.parquet", work)
    write_json(folder / "reference.json", made_of)
    stamp(folder / "reference.parquet", work)
    stamp(folder / "reference.json", work)


def answer_logps(policy: nn.Module, trees: Sequence[Tree], ranks: Mesh, budget: Budget = SCORING) -> Tensor:
    """Log-probabilities `(trees, leaves)` of the answers, each summed over its tokens; fp32, on every rank."""
    return per_leaf(lambda forest: leaf_sums(policy(forest)[0], forest), trees, budget, ranks)


@torch.no_grad()
def per_leaf(value: Callable[[Forest], Tensor], trees: Sequence[Tree], budget: Budget, ranks: Mesh) -> Tensor:
    """`value` of each leaf, `(trees, leaves)` in fp32 on every rank; trees have equally many leaves.

    Ranks share the trees and call `value` equally often, so it may be a sharded model.
    """
    found: dict[int, list[float]] = {}
    part = PART * ranks.data.size

    def keep(items: list[int], _forest: Forest) -> dict[str, Tensor]:
        return {"item": torch.tensor(items, dtype=torch.long)}

    for begin in range(0, len(trees), part):
        for batch in batches(list(trees[begin : begin + part]), budget, ranks, keep):
            items, values = batch.values["item"].tolist(), value(batch.forest)
            if items:  # the empty batch of a rank with nothing left has none
                rows = values.float().reshape(len(items), -1).tolist()
                found |= {begin + item: row for item, row in zip(items, rows, strict=True)}
    whole = {item: row for rank in ranks.data.gather(found) for item, row in rank.items()}
    return torch.tensor([whole[item] for item in range(len(trees))], dtype=torch.float32)


def token_digest(trees: Sequence[Tree]) -> str:
    """SHA-256 over every token id and mask, in order."""
    digest = hashlib.sha256()
    for tree in trees:
        leaves = [(list(leaf.token_ids), list(leaf.mask)) for leaf in tree.leaves]
        digest.update(repr((list(tree.trunk), leaves)).encode())
    return digest.hexdigest()
