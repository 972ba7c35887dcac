"""A stage with the model that it runs, and with the engines that write for it, as far as the forecast is concerned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tercet.forecast.machines import ASSUMED, Machine
from tercet.forecast.memory import Setting
from tercet.forecast.shape import ModelShape
from tercet.recipe import Recipe, RLSpec, TrainSpec
from tercet.recipe.specs import ArtifactSpec, ComputeSpec

Texts = Mapping[str, float]  # mean tokens of a row, of a side of a pair, of a prompt and of an answer
WRITTEN = 2048  # tokens of the longest completion, where a task decides


@dataclass(frozen=True)
class Engines:
    """The engines of a stage. Example: two replicas of four cards each, on 8 cards, with 76.5 GB of every one."""

    replicas: int
    tensor: int  # cards of each
    room: float  # bytes of each card that an engine takes
    sequences: int  # completions that a replica writes at once
    apart: bool  # not on the cards that train
    served: bool = False  # by servers that run elsewhere, on cards that are not of this machine
    parts: bool = False  # trainers send each card its own part of new weights alone (nccl_m2n)

    @property
    def cards(self) -> int:
        """Cards of the machine that are theirs alone."""
        return self.replicas * self.tensor if self.apart and not self.served else 0


@dataclass(frozen=True)
class Work:
    """A stage with the model that it runs, as far as the forecast is concerned."""

    name: str
    spec: ComputeSpec
    shape: ModelShape
    value: ModelShape | None
    setting: Setting
    ahead: Mapping[str, int]
    engines: Engines | None = None


def engines_of(spec: ArtifactSpec, recipe: Recipe, machine: Machine) -> Engines | None:
    """The engines of a stage that names one, on cards; beside a trainer each of its ranks has one."""
    place = recipe.placement.engine
    if getattr(spec, "engine", "local") == "local" or not machine.card:
        return None
    trains = isinstance(spec, TrainSpec)
    apart = place.placement == "apart" or not trains
    replicas = len(place.urls) or place.replicas if apart else machine.cards
    return Engines(
        replicas=replicas,
        tensor=place.tensor_parallel_size,
        room=place.share(beside=not apart) * machine.memory,
        sequences=place.max_num_seqs or int(ASSUMED["sequences"]),
        apart=apart,
        served=bool(place.urls),
        parts=dict(place.options.get("weight_transfer_config", {})).get("backend") == "nccl_m2n",
    )


def answer_of(spec: ArtifactSpec, texts: Texts) -> float:
    """Mean tokens of an answer: as long as assumed, unless the stage allows less."""
    return min(texts["answer"], getattr(spec, "max_new_tokens", None) or math.inf)


def rows_of_step(spec: ComputeSpec) -> int:
    """How many ranks a step can keep busy."""
    if isinstance(spec, RLSpec):
        return max(1, spec.batch // spec.minibatches)
    return spec.batch if isinstance(spec, TrainSpec) else 1
