"""Whether a training stage computes its activations again, where its recipe leaves that to the forecast."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from tercet.forecast.machines import CPU, Machine, machine
from tercet.forecast.shape import ModelShape
from tercet.forecast.stages import needed, setting_of, settled, value_of
from tercet.forecast.work import Work
from tercet.precision import has_gpu
from tercet.recipe import Recipe, TrainSpec


def decided(recipe: Recipe, name: str, inputs: Mapping[str, Path], card: Callable[[], float]) -> tuple[Recipe, str]:
    """The recipe with what its forecast decides for a stage on this machine, and why, where activations go.

    `inputs` are the payloads that the stage reads; `card` gives the bytes of a rank's card, where there is one.
    """
    spec, place = recipe.spec(name), recipe.placement
    if not isinstance(spec, TrainSpec) or place.recompute != "auto":
        return recipe, ""
    where = machine(CPU)
    if has_gpu():
        where = Machine("this card", place.ranks, place.ranks // place.nodes, card(), math.inf, 0.0, 0.0)
    shapes = [_shape(inputs[one]) if one in inputs else None for one in (spec.model, value_of(spec))]
    again, why = False, ""
    if shapes[0] is not None and (shapes[1] is not None or not value_of(spec)):
        work = Work(name, spec, shapes[0], shapes[1], setting_of(spec, recipe, where), {})
        again = settled(work, where).setting.recompute
        before, after = (needed(replace(work, setting=replace(work.setting, recompute=one))) for one in (False, True))
        why = f"placement.recompute: layers compute their activations again; without, a rank needs about {_gb(before)}"
        why += f" of its {where.memory / 1e9:,.0f} GB, with it {_gb(after)}"
    placed = place.model_copy(update={"recompute": again})
    return recipe.model_copy(update={"placement": placed}), why if again else ""


def _shape(folder: Path) -> ModelShape | None:
    """None also where there is no configuration: the stage itself says so."""
    try:
        return ModelShape.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return None


def _gb(found: Mapping[str, float]) -> str:
    return f"{found['peak'] / 1e9:,.0f} GB"
