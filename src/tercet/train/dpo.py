"""Preference tuning: DPO, its length-normalised form, SimPO (paper §5), IPO, WPO, ORPO and KTO."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tercet.algos.preference import REFERENCE_FREE, Sides, dpo, dpo_norm, implicit_rewards, losses_of, nll
from tercet.device.mesh import Mesh, mesh
from tercet.models.chat import Chat, ChatError, MaskedTokens, open_chat
from tercet.models.forest import Forest, Leaf, Tree
from tercet.models.hf_folder import load_config, model_digest
from tercet.models.opening import open_policy
from tercet.models.policy import Policy
from tercet.models.turns import without_thoughts
from tercet.recipe import KINDS, DPOSpec, RewardModelSpec
from tercet.rows import Messages, Pair, RowError, pair_from
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Limit, Step, Trees, branch, chosen_rows, schedule, within
from tercet.train.checks import check_authors, check_inputs, check_schedule
from tercet.train.compared import Compared
from tercet.train.export import card, open_frozen, open_to_train, write_folder, write_truncation
from tercet.train.kto import ANSWERS, Labels, check_batches, mismatch, mismatched, of_labels
from tercet.train.loop import Loss, State, TrainingError, fit, leaf_sums, start
from tercet.train.packing import Budget
from tercet.train.prefetch import Values, tree_steps
from tercet.train.reference import (
    PART,
    SCORING,
    ReferenceModel,
    Table,
    answer_logps,
    load_table,
    save_table,
    token_digest,
)
from tercet.train.sums import Sum
from tercet.train.tokens import NamedTree, Rule, dropped_thoughts, prepare, stored

UNPAIRED = "unpaired.parquet"  # the table of answers that have a label and no partner
Base = Table | ReferenceModel | None  # the reference: known in advance, live, none


def run(spec: DPOSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Compute the reference's log-probabilities (once, or as it moves), train on the pairs, write a folder."""
    with mesh(ctx.recipe.placement) as ranks:
        source = inputs[spec.model].payload
        check_inputs(spec, inputs, ctx.recipe.placement)
        check_authors(inputs[spec.model], inputs[spec.pairs])
        chat, data = open_chat(source), inputs[spec.pairs]
        path = data.payload / f"{KINDS[data.kind].produces}.parquet"
        trees = encode_pairs(spec, path, chat, out, ranks, ctx)
        labels = Labels.of(path, trees, spec) if path.name == UNPAIRED else None
        total = schedule(len(trees), spec.batch, spec.num_epochs, spec.steps)
        check_schedule(spec, total)
        if spec.loss == "kto":
            check_batches(len(trees), spec.batch, total, of="rows" if labels else "pairs")
        if labels and ranks.first:
            sys.stderr.write(f"tercet: {ctx.name}: {labels.sentence()}\n")
        policy, ranks, cost = open_to_train(source, ranks, ctx, trees)
        base = _base(policy, trees, Origin(source, out, total), spec, ctx, ranks)
        state = start(policy, spec, ranks, ctx, kept=base.kept if isinstance(base, ReferenceModel) else None)
        if state.step == 0 and isinstance(base, Table):
            _check_start(state, trees[:PART], base.answers[:PART], spec, ctx)
        values = partial(_table_values, base, labels)
        steps = pair_steps(trees, base, state, spec, ctx, values)
        loss = Compared(answer_sums, partial(of_labels if labels else preference, spec=spec))
        fit(state, steps, loss, spec, ctx, total=total)
        text = card(spec, inputs, ctx) + (f"\n## Labels\n{labels.sentence()}.\n" if labels else "")
        write_folder(state.trainable, load_config(source), source, out, text)
        counts = labels.metrics() if labels else {"pairs": float(len(trees))}
        return {"steps": float(state.step), **counts, **dropped_thoughts(spec, path), **cost}


def encode_pairs(
    spec: DPOSpec | RewardModelSpec, path: Path, chat: Chat, out: Path, ranks: Mesh, ctx: Context
) -> Trees:
    """Trees of all pairs (or answers with labels) that fit; the truncation table is written before the first step."""
    rule = rule_of(spec, path)
    kept, table = within(prepare(path, chat, rule, ctx), Limit(spec.max_length, spec.overlong, spec.max_lost))
    if not len(kept):
        raise RowError(f"{path}: expected {path.stem}, found none; look at the stage that makes them")
    if ranks.first:
        write_truncation(out, table)
    return kept


def rule_of(spec: DPOSpec | RewardModelSpec, path: Path) -> Rule:
    """How the pairs (or answers with labels) of a file become trees."""
    way, drop = (all_turns if isinstance(spec, DPOSpec) and spec.turns == "all" else branch), spec.thinking == "drop"
    return ANSWERS[drop] if path.name == UNPAIRED else RULES[way, drop]


def pair_trees(
    chat: Chat, path: Path, threads: int, *, tree: Callable[[Sequence[MaskedTokens]], Tree], drop: bool = False
) -> Iterator[NamedTree]:
    """One tree per pair, made by `tree` of the chosen and the rejected conversation, with thoughts or without."""
    keep = without_thoughts if drop else tuple

    def sides() -> Iterator[tuple[Pair, Messages, str]]:
        for number, (name, value) in enumerate(stored(path)):
            pair = pair_from(value, name)
            for turns in (pair.chosen, pair.rejected):
                yield pair, keep(turns), f"{path}, row {number} ({pair.id})"

    encoded = chat.encode_all(sides(), threads)
    for (pair, chosen), (_, rejected) in zip(encoded, encoded, strict=True):  # one after the other from one iterator
        yield pair.id, pair.source, tree((chosen, rejected))


def all_turns(sides: Sequence[MaskedTokens]) -> Tree:
    """The trunk ends before the first answer: both leaves are trained on all assistant turns.

    The turns before the last are the same on both sides. They cancel in a difference of sums (dpo), but they count in
    both lengths, which brings the means of normalised losses (dpo_norm, simpo, ipo) closer.
    """
    if any(one.others for one in sides):
        raise ChatError(
            'turns = "all" trains all answers of a conversation in one text, but this chat template writes earlier '
            'turns differently once later ones follow; set turns = "last" (in a difference of sums, as in dpo, earlier '
            'turns cancel), or thinking = "drop" where only thoughts are written differently'
        )
    first, other = (one.token_ids for one in sides)
    shared = min(one.mask.index(True) for one in sides)
    while first[:shared] != other[:shared]:
        shared -= 1
    ends = [len(one.mask) - one.mask[::-1].index(True) for one in sides]
    leaves = [Leaf(one.token_ids[shared:end], one.mask[shared:end]) for one, end in zip(sides, ends, strict=True)]
    return Tree(first[:shared], leaves)


PAIRS = Rule("pairs@1", partial(pair_trees, tree=branch))  # only the last turn is trained
ALL_TURNS = Rule("pairs of all turns@1", partial(pair_trees, tree=all_turns))
RULES = {(branch, False): PAIRS, (all_turns, False): ALL_TURNS}
RULES |= {
    (way, True): Rule(f"{rule.name} without thoughts", partial(pair_trees, tree=way, drop=True))
    for (way, _), rule in RULES.items()
}


class Origin(NamedTuple):
    """Where a reference comes from and is kept, and for how many steps it is needed."""

    source: Path
    out: Path
    total: int


def _base(policy: Policy, trees: Trees, origin: Origin, spec: DPOSpec, ctx: Context, ranks: Mesh) -> Base:
    """No reference, a live model that moves, or a table: the one that the draft holds already, or a new one."""
    dtype, layout = getattr(torch, spec.precision), ctx.recipe.placement.layout
    if spec.loss in REFERENCE_FREE:
        return None
    if spec.polyak > 0:
        moving = open_frozen(origin.source, dtype, ranks, ctx, moves=True)
        return ReferenceModel(moving, spec.polyak, spec.polyak_every, dtype)
    made_of = {"weights": model_digest(origin.source), "tokens": token_digest(trees), "dtype": spec.precision}
    steps = range(origin.total) if spec.loss == "kto" else range(0)
    if steps:
        made_of["order"] = f"{origin.total} steps of {spec.batch}, seed {ctx.seed}"
    if (found := load_table(origin.out / "tercet", made_of, ctx.work)) is not None:
        return found
    alone = ranks.size == 1
    reading = policy.to(ranks.device, dtype) if alone else open_frozen(origin.source, dtype, ranks, ctx)
    orders = (chosen_rows(step, len(trees), spec.batch, ctx.seed) for step in steps)
    others = (mismatched(trees, order, spec.max_length) for order in orders)
    logps = partial(answer_logps, reading, ranks=ranks, budget=_scoring(ctx))
    table = Table(logps(trees), [logps(step) for step in others])
    if alone:  # rounding to the compute precision lost bits: read them again
        policy.model = open_policy(origin.source, torch.float32, layout).model
    if ranks.first:
        save_table(origin.out / "tercet", table, made_of, ctx.work)
    ranks.barrier()
    return table


def _scoring(ctx: Context) -> Budget:
    return SCORING._replace(share=ctx.recipe.placement.share_prefixes)


def pair_steps(
    trees: Sequence[Tree], base: Base, state: State, spec: DPOSpec, ctx: Context, values: Values
) -> Iterator[Step]:
    """Packed steps that are left; each leaf carries its reference log-probability, each batch of kto the step's KL."""
    ranks, budget = state.trainable.mesh, Budget.of(ctx.recipe.placement, spec)
    numbers = range(state.step, schedule(len(trees), spec.batch, spec.num_epochs, spec.steps))
    known = tree_steps(trees, spec, ctx, ranks, numbers, values)
    for number, step in zip(numbers, known, strict=True):
        if isinstance(base, ReferenceModel):
            state.whole = False  # until the step is taken: a checkpoint must not hold a reference that has moved
            base.follow(number, state.trainable)
            for batch in step.batches:
                batch.values["reference_L"] = base.answer_logps(batch.forest)
        if spec.loss == "kto" and base is not None:
            chosen = chosen_rows(number, len(trees), spec.batch, ctx.seed)
            kl = mismatch(mismatched(trees, chosen, spec.max_length), base, state.trainable, number, budget)
            step.metrics["kl"] = float(kl)
            for batch in step.batches:
                batch.values["kl"] = kl.to(ranks.device)
        yield step


def _table_values(base: Base, labels: Labels | None, places: list[int], forest: Forest) -> dict[str, Tensor]:
    """The reference's log-probabilities of the leaves, zeros where no table knows them; and which leaves are good."""
    sides = labels.sides(places) if labels else {}
    if not isinstance(base, Table) or not places:
        return sides | {"reference_L": torch.zeros(forest.num_leaves)}
    return sides | {"reference_L": base.answers[places].reshape(-1)}


def preference_loss(policy: nn.Module, batch: Batch, *, spec: DPOSpec) -> Loss:
    """The recipe's loss, one term per pair, with accuracy and implicit rewards as metrics."""
    return preference(answer_sums(policy, batch.forest), batch, spec=spec)


def answer_sums(policy: nn.Module, forest: Forest) -> Tensor:
    """Log-probabilities (L,) of the answers."""
    logps_P, _ = policy(forest)
    return leaf_sums(logps_P, forest)


def preference(now: Tensor, batch: Batch, *, spec: DPOSpec) -> Loss:
    """`preference_loss` of the answers' log-probabilities (L,)."""
    if batch.forest.num_leaves % 2:  # the empty batch of a rank with nothing left
        return Loss(Sum(now.sum(), 0.0), {})
    lengths = batch.forest.counts_L.float()
    sides = _sides(now, lengths)
    base = _sides(batch.values["reference_L"], lengths)
    losses = pair_losses(sides, base, spec, batch.values.get("kl"))
    won, lost = _rewards(sides, base, spec)
    num = float(len(losses))
    metrics = {
        "accuracy": (won > lost).float().sum(),
        "margin": (won - lost).sum(),
        "reward_chosen": won.sum(),
        "reward_rejected": lost.sum(),
        "logps_chosen": sides.chosen.detach().sum(),
        "logps_rejected": sides.rejected.detach().sum(),
    }
    return Loss(Sum(losses.sum(), num), {name: Sum(total, num) for name, total in metrics.items()})


def pair_losses(sides: Sides, base: Sides, spec: DPOSpec, kl: Tensor | None = None) -> Tensor:
    """Losses (B,) of the recipe's `loss`, with its anchor to the chosen answers; `kl` () is kto's."""
    losses = losses_of(sides, base, spec, kl)
    return losses + spec.sft_weight * nll(sides) if spec.sft_weight else losses


def _rewards(sides: Sides, base: Sides, spec: DPOSpec) -> tuple[Tensor, Tensor]:
    """The metrics' rewards: beta times the log-ratios; for orpo, lambda times the mean log-probabilities."""
    if spec.loss != "orpo":
        return implicit_rewards(sides, base, spec.beta)
    chosen, rejected = sides.chosen / sides.chosen_lengths, sides.rejected / sides.rejected_lengths
    return spec.odds_weight * chosen.detach(), spec.odds_weight * rejected.detach()


def _sides(values_L: Tensor, lengths_L: Tensor) -> Sides:
    return Sides(values_L[0::2], values_L[1::2], lengths_L[0::2], lengths_L[1::2])


def _check_start(state: State, trees: Sequence[Tree], reference: Tensor, spec: DPOSpec, ctx: Context) -> None:
    """While the policy equals its reference, the loss is log 2: dpo's (also for wpo) or dpo_norm's (also for ipo).

    On one rank the same batches give the same bits; on several the batches differ, and so does rounding.
    """
    ranks = state.trainable.mesh
    alone = Mesh(device=ranks.device, padded=ranks.padded)
    now = answer_logps(state.trainable.module, trees, alone, _scoring(ctx))
    lengths = torch.tensor([[float(sum(leaf.mask)) for leaf in tree.leaves] for tree in trees])
    # an answer without a partner is compared with nothing
    now, reference, lengths = (pad(one, (0, 2 - one.shape[1])).reshape(-1) for one in (now, reference, lengths))
    sides, base = _sides(now, lengths), _sides(reference, lengths)
    loss = dpo_norm if spec.loss in ("dpo_norm", "ipo") else dpo
    found = float(loss(sides, base, beta=spec.beta, label_smoothing=spec.label_smoothing).mean())
    slack = 1e-5 if ranks.size == 1 else 0.05
    if abs(found - math.log(2)) > slack:
        raise TrainingError(
            f"the {loss.__name__} loss before the first step is {found:.6f}, not log 2 = {math.log(2):.6f}: "
            "the reference log-probabilities do not belong to these weights; delete the draft and run again"
        )
