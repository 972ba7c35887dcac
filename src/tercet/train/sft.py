"""Supervised finetuning: train on all assistant turns of a mixture (paper §4)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import nn

from tercet.device.mesh import Mesh, mesh
from tercet.models.chat import Chat, open_chat
from tercet.models.turns import without_thoughts
from tercet.recipe import SFTSpec
from tercet.rows import stream_rows
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Limit, Trees, answered, schedule, within
from tercet.train.checks import check_inputs, check_schedule
from tercet.train.export import export, open_to_train, write_truncation
from tercet.train.loop import Loss, fit, reduce_tokens, start
from tercet.train.prefetch import tree_steps
from tercet.train.tokens import NamedTree, Rule, dropped_thoughts, prepare


def run(spec: SFTSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Tokenise, cut or drop, train, write a Hugging Face folder."""
    with mesh(ctx.recipe.placement) as ranks:
        check_inputs(spec, inputs, ctx.recipe.placement)
        source = inputs[spec.model].payload
        chat = open_chat(source)
        path = inputs[spec.rows].payload / "rows.parquet"
        trees = encode(spec, path, chat, out, ranks, ctx)
        total = schedule(len(trees), spec.batch, spec.num_epochs, spec.steps)
        check_schedule(spec, total)
        policy, ranks, cost = open_to_train(source, ranks, ctx, trees)
        state = start(policy, spec, ranks, ctx)
        loss = partial(sft_loss, reduction=spec.reduction, length=spec.max_length)
        steps = tree_steps(trees, spec, ctx, ranks, range(state.step, total))
        fit(state, steps, loss, spec, ctx, total=total)
        export(state.trainable, source, out, spec, inputs, ctx)
        counts = dropped_thoughts(spec, path)
        if trees.tokens.num_split:
            counts["split_rows"] = float(trees.tokens.num_split)
        return {"steps": float(state.step), "rows": float(len(trees)), **counts, **cost}


def encode(spec: SFTSpec, path: Path, chat: Chat, out: Path, ranks: Mesh, ctx: Context) -> Trees:
    """Trees of all rows that fit; the truncation table is written before the first step."""
    kept, table = within(prepare(path, chat, rule_of(spec), ctx), Limit(spec.max_length, spec.overlong, spec.max_lost))
    if ranks.first:
        write_truncation(out, table)
    return kept


def rule_of(spec: SFTSpec) -> Rule:
    """How rows become trees."""
    return TURNS if spec.thinking == "keep" else ANSWERS


def conversations(chat: Chat, path: Path, threads: int, *, drop: bool = False) -> Iterator[NamedTree]:
    """One tree per row: every assistant turn is trained, with its thought or (`drop`) without."""
    rows = enumerate(stream_rows(path))
    keep = without_thoughts if drop else tuple
    named = ((row, keep(row.messages), f"{path}, row {number} ({row.id})") for number, row in rows)
    for row, encoded in chat.encode_all(named, threads):
        yield row.id, row.source, answered(encoded)


TURNS = Rule("conversations@1", conversations)
ANSWERS = Rule("conversations without thoughts@1", partial(conversations, drop=True))


def sft_loss(policy: nn.Module, batch: Batch, *, reduction: str = "token_mean", length: int = 1) -> Loss:
    """Negative log-likelihood of the trained tokens."""
    logps, _ = policy(batch.forest)
    return Loss(reduce_tokens(-logps, batch.forest, reduction, length), {})
