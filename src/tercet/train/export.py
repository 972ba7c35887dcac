"""What every training stage opens and writes: a policy to train, and a plain Hugging Face folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable, share_frozen
from tercet.journal import write_json
from tercet.models.adapter import KEPT
from tercet.models.base_layout import save_model
from tercet.models.forest import Tree
from tercet.models.hf_folder import load_config
from tercet.models.lora import Merged
from tercet.models.meta_policy import meta_policy
from tercet.models.opening import open_policy
from tercet.models.policy import Policy, Reader
from tercet.recipe import BaseSpec, TrainSpec
from tercet.store import Artifact, Context
from tercet.train.checks import CheckError

SAMPLE = 256  # trees that tell how many tokens a layout computes


class Opened(NamedTuple):
    """A policy to train, ranks that pack batches as it reads them, and what its layout costs, for the artifact."""

    policy: Policy
    ranks: Mesh
    metrics: dict[str, float]


def open_to_train(source: Path, ranks: Mesh, ctx: Context, trees: Sequence[Tree] = ()) -> Opened:
    """Open what a stage trains. Where no forest carries it, that and its cost are said; `trees` tell the cost.

    Of several ranks each reads its share alone, later.
    """
    layout = ctx.recipe.placement.layout
    policy = (meta_policy(source, layout) if ranks.size > 1 else None) or open_policy(source, torch.float32, layout)
    if ranks.axes and ranks.axes.shape.context > 1 and (policy.padded or not policy.walks):
        why = policy.why_padded or "its recurrent layers pass a state from token to token"
        raise CheckError(f"placement.mesh.context: the tokens of a row cannot be spread over ranks, because {why}")
    if not policy.padded:
        return Opened(policy, replace(ranks, walks=policy.walks), {})
    some = [trees[i] for i in range(min(SAMPLE, len(trees)))]
    cost = sum(sum(tree.path_lengths) for tree in some) / max(1, sum(tree.num_tokens for tree in some)) if some else 0.0
    often = f"{cost:.2f} times the tokens of a forest" if some else "each prompt again for every completion"
    if ranks.first:
        sys.stderr.write(f"tercet: {ctx.name}: one path a row, because {policy.why_padded}; it computes {often}\n")
    return Opened(policy, replace(ranks, padded=True), {"padded": 1.0, **({"padded_cost": cost} if some else {})})


def open_frozen(source: Path, dtype: torch.dtype, ranks: Mesh, ctx: Context, *, moves: bool = False) -> Policy:
    """Open a model that is only read: on one rank whole, on several a share on each.

    Its weights are in `dtype`, or in fp32 where it `moves`; then several ranks compute in `dtype` all the same.
    """
    layout, kept = ctx.recipe.placement.layout, torch.float32 if moves else dtype
    if ranks.size > 1:
        policy = meta_policy(source, layout) or open_policy(source, kept, layout)
        share_frozen(policy, dtype, ranks, kept)
        return policy
    return open_policy(source, kept, layout).to(ranks.device).requires_grad_(False)


def export(
    trainable: Trainable, source: Path, out: Path, spec: TrainSpec, inputs: dict[str, Artifact], ctx: Context
) -> None:
    """Write master weights as safetensors, the source's tokenizer and a model card. Every rank takes part."""
    write_folder(trainable, load_config(source), source, out, card(spec, inputs, ctx))


def write_folder(
    trainable: Trainable, config: PretrainedConfig, source: Path, out: Path, text: str, *, part: str = ""
) -> None:
    """Write any trained model, or a part, with its card's `text`; what it learned as adapters is kept beside it.

    Ranks write a file of weights each in turn.
    """
    state = ((name.removeprefix("model."), value) for name, value in trainable.full_state(part))
    save_model(out, config, state, source=source, mesh=trainable.mesh)
    if trainable.mesh.first:
        (out / "README.md").write_text(text + _layout_note(trainable.module), encoding="utf-8")
    if isinstance(trainable.merge, Merged):
        trained = {name.removeprefix("model."): value.cpu() for name, value in trainable.trained_state(part)}
        if trainable.mesh.first:
            trainable.merge.write_factors(out / KEPT, trained)
    trainable.mesh.barrier()


def card(spec: TrainSpec, inputs: dict[str, Artifact], ctx: Context, task: str = "text-generation") -> str:
    """A model card: what it is, how it was trained, from what; `task` is the hub's name for what it does."""
    base = ctx.recipe.base
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {task}",
        "tags: [tercet]",
        "---",
        f"# {ctx.recipe.name}: {ctx.name}",
        "",
        f"Made by the `{spec.kind}` stage `{ctx.name}` of the recipe `{ctx.recipe.name}`.",
        "",
        f"- base model: `{base.model}` (chat template: {_template(base)}); its licence applies",
        *(f"- input `{name}`: {artifact.kind} `{artifact.key}`" for name, artifact in sorted(inputs.items())),
        "",
        "## Settings",
        "```json",
        json.dumps(spec.model_dump() | {"dtype": spec.precision}, indent=2, sort_keys=True),
        "```",
        "",
    ]
    return "\n".join(lines)


def _template(base: BaseSpec) -> str:
    """The template by its name, with what the recipe fixed about it."""
    given = [f"{name} = {json.dumps(value)}" for name, value in sorted(base.template_args.items())]
    return ", ".join([base.template, *given, *([f"date {base.date}"] if base.date else [])])


def _layout_note(module: nn.Module) -> str:
    """A card's last lines where no forest carried the model."""
    padded = [one for one in module.modules() if isinstance(one, Reader) and one.padded]
    why = next((f", because {one.why_padded}" for one in padded if one.why_padded), "")
    return f"\n## Layout\nTrained one path a row (`padded`){why}.\n" if padded else ""


def write_truncation(out: Path, table: dict[str, Any]) -> None:
    """Keep the rows and tokens lost per source, for the report."""
    folder = out / "tercet"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "truncation.json", table, sort_keys=True)
