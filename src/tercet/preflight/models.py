"""Whether the models can do what the recipe asks of them: context, kind, memory."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from functools import cache

from tercet.argv import command
from tercet.device.plans import SplitError, check_mesh
from tercet.machine import memory_bytes
from tercet.precision import has_gpu
from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import EvalSpec, ModelSource, OnPolicyPairsSpec, RLSpec, TrainSpec

TRAINED = 16  # bytes of a weight that is trained: fp32 master, gradient and two moments
GIGA = 1e9


def fits_context(facts: Facts, name: str) -> Iterator[Obstacle]:
    """The longest row (of an RL stage: prompt and completion) against the context of the model."""
    spec = facts.recipe.spec(name)
    if isinstance(spec, RLSpec):
        longest, given = spec.max_length + spec.max_new_tokens, "max_length (the prompt) and max_new_tokens make"
    elif isinstance(spec, TrainSpec):
        longest, given = spec.max_length, "max_length makes"
    elif isinstance(spec, OnPolicyPairsSpec):
        longest, given = spec.max_new_tokens, "max_new_tokens makes"
    else:
        return
    model = facts.model(spec.model)
    if longest > model.context:
        over = longest - int(model.context)
        yield Obstacle(
            name,
            given.split()[0],
            f"{given} {longest:,} tokens, and the model {model.name!r} reads {model.context:,}; lower "
            f"{'them' if isinstance(spec, RLSpec) else 'it'} by {over:,}, or take a model with a longer context",
        )


def right_kind(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Servers and encoders cannot be trained, and what compares embeddings needs an encoder."""
    spec = facts.recipe.spec(name)
    for key in ("model", "value") if isinstance(spec, TrainSpec) else ():
        used = getattr(spec, key, "")
        if used and facts.served(used):
            what = "is behind a URL and has no weights here; train one from a folder, a hub id or a package"
            yield Obstacle(name, key, f"the model {used!r} {what}")
    readers = [getattr(spec, key, "") for key in ("model", "judge")] if not isinstance(spec, ModelSource) else []
    for used in filter(None, readers):
        if getattr(facts.source_of(used), "encoder", False):
            yield Obstacle(name, "model", f"{used!r} is an encoder, which writes no text; name a causal language model")
    if isinstance(spec, EvalSpec) and spec.embedder and not getattr(facts.source_of(spec.embedder), "encoder", False):
        yield Obstacle(name, "embedder", f"{spec.embedder!r} is no encoder; set encoder = true on its stage")


def fits_memory(facts: Facts, name: str) -> Iterator[Obstacle]:
    """The state of training alone against the memory of this machine (or of its card)."""
    spec, placement = facts.recipe.spec(name), facts.recipe.placement
    if not isinstance(spec, TrainSpec) or facts.served(spec.model):
        return
    model, there = facts.model(spec.model), _memory()
    bytes_each = TRAINED if spec.lora is None else (0.5 if spec.lora.quantize else 4)
    needed = model.parameters * bytes_each / (placement.ranks if has_gpu() else 1)
    if needed > there and not (has_gpu() and placement.offload):
        what = "weights, gradients and two moments in fp32" if spec.lora is None else "frozen weights"
        yield Obstacle(
            name,
            "model",
            f"{model.parameters / 1e9:.1f} billion parameters of {model.name!r} need {needed / GIGA:,.0f} GB "
            f"({what}), and there are {there / GIGA:,.0f} GB here; take a smaller model"
            f"{', `lora`' if spec.lora is None else ''} or a larger machine",
        )


def divides(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Heads and products of the model against `placement.mesh`."""
    spec, shape = facts.recipe.spec(name), facts.recipe.placement.shape
    if not isinstance(spec, TrainSpec) or facts.served(spec.model) or shape.tensor * shape.context == 1:
        return
    values = dict(facts.model(spec.model).config)
    from transformers import CONFIG_MAPPING  # takes a second, which only a mesh needs

    if (kind := values.pop("model_type", "")) not in CONFIG_MAPPING:
        return  # not at hand yet, or with code of its own: the stage says so
    try:
        check_mesh(CONFIG_MAPPING[kind](**values), shape, adapters=spec.lora is not None)
    except SplitError as error:
        yield Obstacle(name, "placement.mesh", str(error))


@cache
def _memory() -> float:
    """Bytes of the machine's memory, or of one card where there is one."""
    if not has_gpu():
        return float(memory_bytes() or math.inf)
    asked = command("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20)
        return min(float(line) for line in done.stdout.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return math.inf


CHECKS = (fits_context, right_kind, fits_memory, divides)
