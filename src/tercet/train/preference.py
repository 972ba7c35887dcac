"""Preference tuning: DPO, its length-normalised form, SimPO (paper §5), IPO, WPO and ORPO."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tercet.algos.preference import Sides, dpo, dpo_norm, implicit_rewards, ipo, nll, orpo, simpo, wpo
from tercet.device.mesh import Mesh, mesh
from tercet.models.chat import Chat
from tercet.models.folder import load_tokenizer, model_digest
from tercet.models.forest import Forest, Tree
from tercet.models.policy import Policy
from tercet.recipe import DPO, Reward
from tercet.rows import Messages, Pair, pair_from, read_table, write_table
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Limit, Step, Trees, batches, branch, chosen_rows, schedule, within
from tercet.train.export import export, open_policy, write_truncation
from tercet.train.loop import Loss, Sum, TrainingError, fit, leaf_sums, start
from tercet.train.tokens import NamedTree, Rule, prepare, stored

PART, SCORE_TOKENS = 16, 4096  # pairs read at once, and token budget of one batch, when reference log-probs are made
REFERENCE_FREE = ("simpo", "orpo")


def run(spec: DPO, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Reference log-probabilities once, then one pass over the pairs."""
    with mesh() as ranks:
        source = inputs[spec.model].payload
        chat = Chat(load_tokenizer(source))
        trees = encode_pairs(spec, inputs[spec.pairs].payload / "pairs.parquet", chat, out, ranks, ctx)
        policy = open_policy(source)
        reference = None if spec.loss in REFERENCE_FREE else _reference(policy, trees, source, out, spec, ranks)
        total = schedule(len(trees), spec.batch, spec.epochs, spec.steps)
        state = start(policy, spec, ranks, ctx)
        loss = partial(preference_loss, spec=spec)
        if state.step == 0 and reference is not None:
            _check_start(state.trainable.module, trees, reference, spec, ranks)
        steps = pair_steps(trees, reference, spec, ctx, ranks, first=state.step, total=total)
        fit(state, steps, loss, spec, ctx, total=total)
        export(state.trainable, source, out, spec, inputs, ctx)
        return {"steps": float(state.step), "pairs": float(len(trees))}


def encode_pairs(spec: DPO | Reward, path: Path, chat: Chat, out: Path, ranks: Mesh, ctx: Context) -> Trees:
    """Trees of all pairs that fit; the truncation table is written before the first step."""
    kept, table = within(prepare(path, chat, PAIRS, ctx), Limit(spec.max_tokens, spec.overlong, spec.max_lost))
    if ranks.first:
        write_truncation(out, table)
    return kept


def forks(chat: Chat, path: Path, threads: int) -> Iterator[NamedTree]:
    """One tree per pair: the prompt, the chosen leaf, the rejected leaf; only the last turn is trained."""

    def sides() -> Iterator[tuple[Pair, Messages, str]]:
        for number, (name, value) in enumerate(stored(path)):
            pair = pair_from(value, name)
            for turns in (pair.chosen, pair.rejected):
                yield pair, turns, f"{path}, row {number} ({pair.id})"

    encoded = chat.encode_all(sides(), threads)
    for (pair, chosen), (_, rejected) in zip(encoded, encoded, strict=True):
        yield pair.id, pair.source, branch((chosen, rejected))


PAIRS = Rule("pairs@1", forks)


def pair_steps(  # noqa: PLR0913
    trees: Sequence[Tree], reference: Tensor | None, spec: DPO, ctx: Context, ranks: Mesh, *, first: int, total: int
) -> Iterator[Step]:
    """Packed steps; each leaf carries its reference log-probability."""
    for step in range(first, total):
        chosen = chosen_rows(step, len(trees), spec.batch, ctx.seed)

        def values(items: list[int], forest: Forest, chosen: list[int] = chosen) -> dict[str, Tensor]:
            if reference is None or not items:
                return {"reference_L": torch.zeros(forest.num_leaves)}
            return {"reference_L": reference[[chosen[i] for i in items]].reshape(-1)}

        yield Step(batches([trees[i] for i in chosen], ctx.recipe.placement.micro_tokens, ranks, values))


def preference_loss(policy: nn.Module, batch: Batch, *, spec: DPO) -> Loss:
    """The recipe's loss, one term per pair, with accuracy and implicit rewards as metrics."""
    logps_P, _ = policy(batch.forest)
    now = leaf_sums(logps_P, batch.forest)
    if batch.forest.num_leaves % 2:  # the empty batch of a rank with nothing left
        return Loss(Sum(now.sum(), 0.0), {})
    lengths = torch.bincount(batch.forest.leaf_P, minlength=batch.forest.num_leaves).float()
    sides = _sides(now, lengths)
    base = _sides(batch.values["reference_L"], lengths)
    losses = pair_losses(sides, base, spec)
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


def pair_losses(sides: Sides, base: Sides, spec: DPO) -> Tensor:
    """Losses (B,) of the recipe's `loss`, with its anchor to the chosen answers."""
    losses = _preference(sides, base, spec)
    return losses + spec.sft_weight * nll(sides) if spec.sft_weight else losses


def _preference(sides: Sides, base: Sides, spec: DPO) -> Tensor:
    beta, smoothing = spec.beta, spec.label_smoothing
    match spec.loss:
        case "simpo":
            return simpo(sides, beta=beta, gamma_beta_ratio=spec.gamma_beta_ratio, label_smoothing=smoothing)
        case "orpo":
            return orpo(sides, odds_weight=spec.odds_weight)
        case "ipo":
            return ipo(sides, base, beta=beta)
        case "wpo":
            published = spec.wpo_weight == "published"
            return wpo(sides, base, beta=beta, label_smoothing=smoothing, published=published)
        case "dpo_norm":
            return dpo_norm(sides, base, beta=beta, label_smoothing=smoothing)
        case "dpo":
            return dpo(sides, base, beta=beta, label_smoothing=smoothing)


def _rewards(sides: Sides, base: Sides, spec: DPO) -> tuple[Tensor, Tensor]:
    """What the metrics call rewards: beta times the log-ratios; for orpo, lambda times the mean log-probabilities."""
    if spec.loss != "orpo":
        return implicit_rewards(sides, base, spec.beta)
    chosen, rejected = sides.chosen / sides.chosen_lengths, sides.rejected / sides.rejected_lengths
    return spec.odds_weight * chosen.detach(), spec.odds_weight * rejected.detach()


def _sides(values_L: Tensor, lengths_L: Tensor) -> Sides:
    return Sides(values_L[0::2], values_L[1::2], lengths_L[0::2], lengths_L[1::2])


@torch.no_grad()
def reference_logps(policy: nn.Module, trees: Sequence[Tree], ranks: Mesh) -> Tensor:
    """Summed log-probabilities `(pairs, 2)` of the starting model, fp32, on every rank."""
    mine = list(range(ranks.rank, len(trees), ranks.size))
    found: dict[int, list[float]] = {}
    for start_at in range(0, len(mine), PART):
        part = mine[start_at : start_at + PART]
        alone = Mesh(device=ranks.device)

        def keep(items: list[int], forest: Forest) -> dict[str, Tensor]:
            return {"item": torch.tensor(items)}

        for batch in batches([trees[i] for i in part], SCORE_TOKENS, alone, keep):
            sums = leaf_sums(policy(batch.forest)[0], batch.forest).reshape(-1, 2).tolist()
            found |= {part[int(i)]: pair for i, pair in zip(batch.values["item"], sums, strict=True)}
    whole = {i: pair for rank in ranks.gather(found) for i, pair in rank.items()}
    return torch.tensor([whole[i] for i in range(len(trees))], dtype=torch.float32).reshape(-1, 2)


def _reference(policy: Policy, trees: Sequence[Tree], source: Path, out: Path, spec: DPO, ranks: Mesh) -> Tensor:
    """Read the cached table when weights, tokens and precision are the same; compute and keep it otherwise."""
    path = out / "tercet" / "reference.parquet"
    stamp = {"weights": model_digest(source), "tokens": token_digest(trees), "dtype": spec.dtype}
    note = path.with_name("reference.json")
    if path.is_file() and note.is_file() and json.loads(note.read_text()) == stamp:
        return torch.tensor([[row["chosen"], row["rejected"]] for row in read_table(path)], dtype=torch.float32)
    policy.to(ranks.device, getattr(torch, spec.dtype))
    table = reference_logps(policy, trees, ranks)
    fresh = open_policy(source)  # rounding to the compute precision lost bits: read the masters again
    policy.model = fresh.model
    if ranks.first:
        rows = [{"pair": i, "chosen": c, "rejected": r} for i, (c, r) in enumerate(table.tolist())]
        write_table(path, rows)
        note.write_text(json.dumps(stamp, indent=2, sort_keys=True) + "\n")
    ranks.barrier()
    return table


def token_digest(trees: Sequence[Tree]) -> str:
    """SHA-256 over every token id and mask, in order."""
    digest = hashlib.sha256()
    for tree in trees:
        digest.update(
            repr((list(tree.trunk), [(list(leaf.token_ids), list(leaf.mask)) for leaf in tree.leaves])).encode()
        )
    return digest.hexdigest()


def _check_start(module: nn.Module, trees: Sequence[Tree], reference: Tensor, spec: DPO, ranks: Mesh) -> None:
    """With the policy still equal to its reference, the loss is log 2: dpo (also for wpo) or dpo_norm (also for ipo).

    On one rank the same batches give the same bits; on several the batches differ, and so does rounding.
    """
    part = trees[:PART]
    now = reference_logps(module, part, Mesh(device=ranks.device)).reshape(-1)
    lengths = torch.tensor([float(sum(leaf.mask)) for tree in part for leaf in tree.leaves])
    base = _sides(reference[:PART].reshape(-1), lengths)
    loss = dpo_norm if spec.loss in ("dpo_norm", "ipo") else dpo
    found = float(loss(_sides(now, lengths), base, beta=spec.beta, label_smoothing=spec.label_smoothing).mean())
    slack = 1e-5 if ranks.size == 1 else 0.05
    if abs(found - math.log(2)) > slack:
        raise TrainingError(
            f"the {loss.__name__} loss before the first step is {found:.6f}, not log 2 = {math.log(2):.6f}: "
            "the reference log-probabilities do not belong to these weights; delete the draft and run again"
        )
