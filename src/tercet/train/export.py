"""What every training stage opens and writes: a policy to train, and a plain Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from tercet.device.shard import Trainable
from tercet.journal import write_json
from tercet.models.adapter import KEPT
from tercet.models.base_layout import save_model
from tercet.models.forest import NAME, register
from tercet.models.hf_folder import load_config, load_model
from tercet.models.lora import Merged
from tercet.models.policy import Policy, check_supported
from tercet.recipe import BaseSpec, TrainSpec
from tercet.store import Artifact, Context


def open_policy(folder: Path, dtype: torch.dtype = torch.float32) -> Policy:
    """Load a folder for training through forests; unsupported architectures are refused."""
    register()
    policy = Policy(load_model(folder, dtype, attention=NAME).eval())
    check_supported(policy)
    return policy


def export(
    trainable: Trainable, source: Path, out: Path, spec: TrainSpec, inputs: dict[str, Artifact], ctx: Context
) -> None:
    """Write master weights as safetensors, the source's tokenizer and a model card. Every rank takes part."""
    write_folder(trainable, load_config(source), source, out, card(spec, inputs, ctx))


def write_folder(
    trainable: Trainable, config: PretrainedConfig, source: Path, out: Path, text: str, *, part: str = ""
) -> None:
    """Write any trained model, or a part, with its card's `text`; what it learned as adapters is kept beside it.

    Ranks that do not write hold one tensor at a time.
    """
    state = ((name.removeprefix("model."), value) for name, value in trainable.full_state(part))
    if trainable.mesh.first:
        save_model(out, config, state, source=source)
        (out / "README.md").write_text(text, encoding="utf-8")
    else:
        for _ in state:  # gathering a tensor takes every rank
            pass
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


def write_truncation(out: Path, table: dict[str, Any]) -> None:
    """Keep the rows and tokens lost per source, for the report."""
    folder = out / "tercet"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "truncation.json", table, sort_keys=True)
