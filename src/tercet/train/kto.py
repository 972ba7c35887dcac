"""KTO: its baseline, the KL of answers to other prompts, and its loss on answers that have a label but no partner.

Kahneman-Tversky optimisation (Ethayarajh et al. 2024, §4.2) compares an answer's log-ratio with z0, an estimate of
KL(policy || reference) from mismatched answers: each prompt of a step with the answer of the next row in the step's
order (of pairs, with the next chosen answer). Both models score them before the step's first loss, over all its batches
and ranks, so it does not matter how a step is cut. (TRL takes the KL of each rank's micro-batch, and where batches are
accumulated it differs.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tercet.algos.preference import kto_unpaired, mismatch_kl
from tercet.device.shard import Trainable
from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree
from tercet.models.turns import without_thoughts
from tercet.recipe import DPOSpec
from tercet.rows import stream_rows
from tercet.train.batch import Batch, Trees, branch, cut
from tercet.train.checks import CheckError
from tercet.train.loop import Loss
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel, Table, answer_logps, per_leaf
from tercet.train.sums import Sum
from tercet.train.tokens import NamedTree, Rule

ADVISED = (1.0, 1.5)  # of `Labels.ratio` (the paper's eq. 9; TRL warns above 4/3, as the paper's first version said)


def check_batches(rows: int, batch: int, total: int, *, of: str = "pairs") -> None:
    """Refuse steps of a single pair or row: there is no other prompt whose answer could be mismatched."""
    last = rows % batch or batch
    reached = total >= -(-rows // batch)  # the first epoch's last step, the only one that may be smaller
    if batch == 1 or (last == 1 and reached):
        raise CheckError(
            f'loss = "kto" compares answers across the {of} of a step and needs two of them in each, but {rows} '
            f"{of} in steps of batch = {batch} leave one alone; choose another batch"
        )


def mismatched(trees: Sequence[Tree], chosen: Sequence[int], max_length: int) -> list[Tree]:
    """The prompt of each of these trees with the first answer of the next; the last gets the first's.

    Cut to `max_length`. Where neighbours share a prompt, the answer is not mismatched, as in TRL.
    """
    prompts, answers = [], []
    for tree in (trees[row] for row in chosen):
        leaf = tree.leaves[0]
        begin = list(leaf.mask).index(True)
        prompts.append([*tree.trunk, *leaf.token_ids[:begin]])
        answers.append(leaf.token_ids[begin:])
    others = [*answers[1:], *answers[:1]]
    made = (Tree(ids, [Leaf(answer, [True] * len(answer))]) for ids, answer in zip(prompts, others, strict=True))
    return [cut(tree, max_length) for tree in made]


def mismatch(
    trees: Sequence[Tree], base: Table | ReferenceModel, trainable: Trainable, step: int, budget: Budget
) -> Tensor:
    """The KL () of a step, the same on every rank: a pass of the policy (and of a live reference) without gradient."""
    now = answer_logps(trainable.module, trees, trainable.mesh, budget)
    if isinstance(base, Table):
        return mismatch_kl(now, base.mismatched[step])
    return mismatch_kl(now, per_leaf(base.answer_logps, trees, budget, trainable.mesh))


def answer_trees(chat: Chat, path: Path, threads: int, *, drop: bool = False) -> Iterator[NamedTree]:
    """One tree per row of `unpaired.parquet`: a prompt and its last answer, with thoughts or (`drop`) without."""
    keep = without_thoughts if drop else tuple
    rows = enumerate(stream_rows(path))
    named = ((row, keep(row.messages), f"{path}, row {number} ({row.id})") for number, row in rows)
    for row, encoded in chat.encode_all(named, threads):
        yield row.id, row.source, branch((encoded,))


ANSWERS = {False: Rule("unpaired@1", answer_trees)}
ANSWERS |= {True: Rule("unpaired@1 without thoughts", partial(answer_trees, drop=True))}


class Labels(NamedTuple):
    """Which rows of a file are good `(R,)`, the rows that are trained on, and the weights of good and bad answers."""

    good_R: np.ndarray
    rows: np.ndarray
    weights: tuple[float, float]

    @classmethod
    def of(cls, path: Path, trees: Trees, spec: DPOSpec) -> Labels:
        """The labels in `unpaired.parquet`."""
        good = pq.read_table(path, columns=["good"])["good"].to_pylist()
        return cls(np.array(good, dtype=bool), trees.rows, (spec.desirable_weight, spec.undesirable_weight))

    def sides(self, places: list[int]) -> dict[str, Tensor]:
        """The answers of a batch that are good and those that are bad, as indices: the host knows their numbers."""
        good = torch.from_numpy(self.good_R[self.rows[places]])
        return {"good_I": good.nonzero()[:, 0], "bad_I": (~good).nonzero()[:, 0]}

    @property
    def counts(self) -> tuple[int, int]:
        """Good and bad rows that are trained on."""
        good = int(self.good_R[self.rows].sum())
        return good, len(self.rows) - good

    @property
    def ratio(self) -> float:
        """desirable_weight x good rows over undesirable_weight x bad rows; 0 without bad rows."""
        (good, bad), (desirable, undesirable) = self.counts, self.weights
        return desirable * good / (undesirable * bad) if bad else 0.0

    def sentence(self) -> str:
        """The ratio, what the paper advises, and a weight that would be in its range where this one is not."""
        (good, bad), (low, high) = self.counts, ADVISED
        said = f"{good} good and {bad} bad answers: "
        if not (good and bad):
            return f"{said}KTO tells good answers from bad ones and needs both"
        said += f"desirable_weight x good / (undesirable_weight x bad) is {self.ratio:.2f}"
        advice = f"the paper advises {low:g} to {high:g} (eq. 9)"
        if low <= self.ratio <= high:
            return f"{said}; {advice}"
        key, weight = "undesirable_weight", self.weights[1] * self.ratio / low
        if self.ratio < low:
            key, weight = "desirable_weight", self.weights[0] * low / self.ratio
        return f"{said}; {advice}: set {key} = {weight:.3g}"

    def metrics(self) -> dict[str, float]:
        """For the artifact."""
        good, bad = self.counts
        return {"good": float(good), "bad": float(bad), "weighted_ratio": self.ratio}


def of_labels(now: Tensor, batch: Batch, *, spec: DPOSpec) -> Loss:
    """KTO's loss, one term per answer, with the implicit rewards of good (chosen) and bad (rejected) answers.

    `now` (L,) are the answers' log-probabilities.

    `accuracy` is the share of answers on their side of the baseline. `sft_weight` adds the good ones' mean token loss.
    """
    good_I, bad_I = batch.values["good_I"], batch.values["bad_I"]
    num_good, num_bad = float(len(good_I)), float(len(bad_I))
    if not num_good + num_bad:  # the empty batch of a rank with nothing left
        return Loss(Sum(now.sum(), 0.0), {})
    ratios = now - batch.values["reference_L"]
    good, bad, kl = ratios[good_I], ratios[bad_I], batch.values["kl"]
    weights = spec.desirable_weight, spec.undesirable_weight
    losses = torch.cat(kto_unpaired(good, bad, kl, beta=spec.beta, weights=weights))
    total = losses.sum()
    if spec.sft_weight:
        total = total - spec.sft_weight * (now / batch.forest.counts_L)[good_I].sum()
    right = (good > kl).float().sum() + (bad < kl).float().sum()
    metrics = {
        "accuracy": Sum(right, num_good + num_bad),
        "reward_chosen": Sum(spec.beta * good.detach().sum(), num_good),
        "reward_rejected": Sum(spec.beta * bad.detach().sum(), num_bad),
        "logps_chosen": Sum(now[good_I].detach().sum(), num_good),
        "logps_rejected": Sum(now[bad_I].detach().sum(), num_bad),
    }
    return Loss(Sum(total, num_good + num_bad), metrics)
