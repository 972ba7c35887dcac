"""Reinforcement learning with verifiable rewards by GRPO (paper §6; Tülu 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tercet.algos.policy import Clip, grpo
from tercet.device.mesh import Mesh, mesh
from tercet.models.chat import Chat
from tercet.models.folder import load_tokenizer
from tercet.models.forest import Leaf, Tree
from tercet.recipe import RLVR
from tercet.rows import Row, RowError, read_rows, row_from, write_table
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Limit, within
from tercet.train.export import export, open_policy, write_truncation
from tercet.train.loop import Loss, Sum, fit, reduce_tokens, start
from tercet.train.rollout import Ledger, Writer, rounds
from tercet.train.tokens import NamedTree, Rule, prepare, stored
from tercet.verify import verifier


def run(spec: RLVR, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Sample, grade, learn, `spec.steps` times; leave weights and every rollout."""
    with mesh() as ranks:
        source = inputs[spec.model].payload
        chat = Chat(load_tokenizer(source))
        rows = prompts(spec, inputs[spec.prompts].payload / "rows.parquet", chat, out, ranks, ctx)
        state = start(open_policy(source), spec, ranks, ctx)
        reference = None
        if spec.kl_beta > 0:
            reference = open_policy(source, getattr(torch, spec.dtype)).to(ranks.device).requires_grad_(False)
        ledger = Ledger(ctx.work / "rollouts.jsonl", state.step // spec.minibatches, ranks)
        writer = Writer(state.trainable, source, chat, ctx.recipe.placement.gen_rows)
        steps = rounds(rows, writer, reference, ledger, spec, ctx, first=state.step // spec.minibatches)
        total = spec.steps * spec.minibatches
        fit(state, steps, partial(grpo_loss, spec=spec), spec, ctx, total=total, updates_per_round=spec.minibatches)
        export(state.trainable, source, out, spec, inputs, ctx)
        if ranks.first:
            write_table(out / "tercet" / "rollouts.parquet", ledger.read())
        return {"steps": float(state.step), "updates": float(state.updates), "prompts": float(len(rows))}


def prompts(spec: RLVR, path: Path, chat: Chat, out: Path, ranks: Mesh, ctx: Context) -> list[Row]:
    """Rows with a judge whose prompt fits; over-long prompts are dropped and counted, never cut."""
    rows = [row for row in read_rows(path) if row.verifier]
    if not rows:
        raise RowError(f"{path}: no row names a verifier; RLVR needs rows with 'verifier' and 'truth'")
    for row in rows:
        verifier(row.verifier)
    kept, table = within(prepare(path, chat, PROMPTS, ctx), Limit(spec.max_tokens, "drop", spec.max_lost))
    if ranks.first:
        write_truncation(out, table)
    return [rows[number] for number in kept.rows.tolist()]


def waiting(chat: Chat, path: Path, _threads: int) -> Iterator[NamedTree]:
    """One tree per row with a judge: its prompt."""
    for name, value in stored(path):
        if (row := row_from(value, name)).verifier:
            ids = chat.prompt_ids(row.prompt)
            yield row.id, row.source, Tree([], [Leaf(ids, [True] * len(ids))])


PROMPTS = Rule("prompts@1", waiting)


def grpo_loss(policy: nn.Module, batch: Batch, *, spec: RLVR) -> Loss:
    """Clipped surrogate plus beta x k3 per token, reduced as the recipe says.

    With one mini-batch per round the old log-probs are this very pass's, so the ratio is 1 and only its gradient acts.
    """
    logps_P, _ = policy(batch.forest, temperature=spec.temperature)
    old_P = batch.values.get("old_P", logps_P.detach())
    reference_P = batch.values.get("reference_P", logps_P.detach())
    parts = grpo(logps_P, old_P, reference_P, batch.values["advantages_P"], Clip(spec.clip_low, spec.clip_high))
    losses_P = parts.policy + spec.kl_beta * parts.kl
    objective = reduce_tokens(losses_P, batch.forest, spec.reduction, spec.max_new_tokens)
    count = float(len(losses_P))
    gap = (logps_P.detach() - batch.values["sampled_P"]).abs()
    watched = {"kl": parts.kl.detach(), "clip_share": parts.clipped.float(), "logp_gap": gap}
    return Loss(objective, {name: Sum(values.sum(), count) for name, values in watched.items()})
