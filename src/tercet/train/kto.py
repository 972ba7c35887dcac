"""KTO's baseline: the KL of answers to other prompts, over the whole optimiser step.

Kahneman-Tversky optimisation (Ethayarajh et al. 2024, §4.2) compares an answer's log-ratio with z0, an estimate of
KL(policy || reference) from mismatched answers: each prompt of a step with the chosen answer of the next pair in the
step's order. Both models score them before the step's first loss, over all its batches and ranks, so it does not matter
how a step is cut. (TRL takes the KL of each rank's micro-batch, and where batches are accumulated it differs.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tercet.algos.preference import mismatch_kl
from tercet.device.shard import Trainable
from tercet.models.forest import Leaf, Tree
from tercet.train.batch import cut
from tercet.train.checks import CheckError
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel, Table, answer_logps, per_leaf


def check_pairs(num_pairs: int, batch: int, total: int) -> None:
    """Refuse steps of a single pair: there is no other prompt whose answer could be mismatched."""
    last = num_pairs % batch or batch
    reached = total >= -(-num_pairs // batch)  # the first epoch's last step, the only one that may be smaller
    if batch == 1 or (last == 1 and reached):
        raise CheckError(
            f'loss = "kto" compares answers across the pairs of a step and needs two of them in each, but {num_pairs} '
            f"pairs in steps of batch = {batch} leave one alone; choose another batch"
        )


def mismatched(trees: Sequence[Tree], chosen: Sequence[int], max_length: int) -> list[Tree]:
    """The prompt of each of these pairs with the chosen answer of the next; the last gets the first's.

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
