"""The reward model: a Bradley-Terry scorer on preference pairs (paper §5.4.1, T36)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from tercet.algos.preference import bradley_terry
from tercet.device.mesh import Mesh, mesh
from tercet.models.chat import Chat
from tercet.models.folder import check_folder, load_tokenizer
from tercet.models.forest import NAME, Tree, register
from tercet.models.policy import Scorer, check_supported
from tercet.recipe import Reward
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Trees, batches, order, packed_steps, schedule
from tercet.train.export import card, open_policy, write_folder
from tercet.train.loop import Loss, Sum, TrainingError, fit, start
from tercet.train.preference import encode_pairs


def run(spec: Reward, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Train a scalar head and the whole model on pairs; report accuracy on pairs kept aside."""
    with mesh() as ranks:
        source = inputs[spec.model].payload
        chat = Chat(load_tokenizer(source))
        trees = encode_pairs(spec, inputs[spec.pairs].payload / "pairs.parquet", chat, out, ranks, ctx)
        train, held = split(trees, spec, ctx.seed)
        total = schedule(len(train), spec.batch, spec.epochs, spec.steps)
        scorer = open_scorer(source, chat.tokenizer.pad_token_id, ctx.seed)
        state = start(scorer, spec, ranks, ctx)
        steps = packed_steps(train, spec, ctx, ranks, first=state.step, total=total)
        fit(state, steps, reward_loss, spec, ctx, total=total)
        accuracy = held_out_accuracy(state.trainable.module, held, ctx, ranks) if held else 0.0
        write_folder(state.trainable, scorer.model.config, source, out, card(spec, inputs, ctx))
        return {
            "steps": float(state.step),
            "pairs": float(len(train)),
            "held_out": float(len(held)),
            "accuracy": accuracy,
        }


def split(trees: Trees, spec: Reward, seed: int) -> tuple[Trees, Trees]:
    """Train and held-out pairs, fixed by the seed."""
    shuffled = trees[order(len(trees), 0, seed)]
    kept = int(len(shuffled) * spec.holdout)
    if len(shuffled) - kept < 1:
        raise TrainingError(f"{len(shuffled)} pairs with holdout = {spec.holdout} leave none to train on")
    return shuffled[kept:], shuffled[:kept]


def open_scorer(folder: Path, pad_id: int | None, seed: int) -> Scorer:
    """The folder's transformer with a fresh head, std 1 / sqrt(d + 1)."""
    check_folder(folder)
    register()
    check_supported(open_policy(folder))
    model = AutoModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=1, dtype=torch.float32, attn_implementation=NAME, local_files_only=True
    )
    model.config.pad_token_id = pad_id
    model.config.architectures = [type(model).__name__]
    size = model.score.weight.shape[1]
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, size, generator=source) / (size + 1) ** 0.5)
    return Scorer(model)


def reward_loss(scorer: nn.Module, batch: Batch) -> Loss:
    """-log sigmoid(r(chosen) - r(rejected)), one term per pair."""
    scores = scorer(batch.forest)
    if batch.forest.num_leaves % 2:
        return Loss(Sum(scores.sum() * 0.0, 0.0), {})
    chosen, rejected = scores[0::2], scores[1::2]
    losses = bradley_terry(chosen, rejected)
    num = float(len(losses))
    margin = (chosen - rejected).detach()
    return Loss(
        Sum(losses.sum(), num), {"accuracy": Sum((margin > 0).float().sum(), num), "margin": Sum(margin.sum(), num)}
    )


@torch.no_grad()
def held_out_accuracy(scorer: nn.Module, trees: Sequence[Tree], ctx: Context, ranks: Mesh) -> float:
    """Share of held-out pairs whose chosen answer scores higher."""
    right = total = 0.0
    for batch in batches(trees, ctx.recipe.placement.micro_tokens, ranks):
        accuracy = reward_loss(scorer, batch).metrics.get("accuracy")
        if accuracy is not None:
            right, total = right + float(accuracy.total), total + accuracy.weight
    right, total = ranks.sum([right, total])
    return right / max(total, 1.0)
