"""What every stage of a recipe needs on a machine, in bytes, hours and money, and what would make it fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tercet.forecast import memory
from tercet.forecast.machines import ASSUMED, Machine
from tercet.forecast.memory import Bytes, Setting
from tercet.forecast.rounds import Phases, round_of, written
from tercet.forecast.work import WRITTEN, Engines, Texts, Work, answer_of, engines_of, rows_of_step
from tercet.precision import resolve
from tercet.recipe import DPOSpec, OfflineSpec, PPOSpec, Recipe, RLSpec, TrainSpec
from tercet.recipe.placement import ALONE, Placement
from tercet.recipe.specs import ArtifactSpec

MOST_RANKS = 1024
LORA = 16


@dataclass(frozen=True)
class Forecast:
    """A stage's forecast; `hours` is None where nobody knows how much there is to do, `refused` why it cannot fit."""

    name: str
    kind: str
    ranks: int
    bytes: Bytes  # per rank, by what they are for; `host` of a node
    disk: tuple[float, float]  # artifact, checkpoints
    tokens: float
    hours: float | None
    dollars: float | None
    recompute: bool = False
    refused: str = ""
    instead: str = field(default="")  # the nearest setting that fits
    engines: Engines | None = None
    phases: Phases = field(default_factory=dict)  # of a round of RL with engines


def forecast(work: Work, machine: Machine, texts: Texts) -> Forecast:
    """The forecast of a stage, with the nearest setting that fits where its own does not."""
    work = settled(work, machine)
    found = needed(work)
    tokens, seconds = duration(work, machine, texts)
    hours = None if seconds is None else seconds / 3600
    engines = work.engines
    cards = work.setting.ranks if isinstance(work.spec, TrainSpec) or engines is None else engines.tensor
    beside = engines.cards if engines and isinstance(work.spec, TrainSpec) else 0
    refused = refusal(work, machine)
    return Forecast(
        name=work.name,
        kind=getattr(work.spec, "kind", ""),
        ranks=cards,
        bytes=found,
        disk=memory.disk(work.shape, work.setting, work.value) if isinstance(work.spec, TrainSpec) else (0.0, 0.0),
        tokens=tokens,
        hours=hours,
        dollars=None if hours is None else hours * (cards + beside) * machine.price,
        recompute=work.setting.recompute,
        refused=refused,
        instead=nearest(work, machine) if refused else "",
        engines=engines,
        phases=round_of(work, machine, texts),
    )


def settled(work: Work, machine: Machine) -> Work:
    """The stage with recomputation, where that is left to its forecast and the card is too small without."""
    there = needed(work)
    fits = there["peak"] <= machine.memory and (machine.card or there.get("host", 0.0) <= machine.host)
    return work if fits or not work.setting.auto else replace(work, setting=replace(work.setting, recompute=True))


def needed(work: Work) -> Bytes:
    """Bytes of a stage by what they are for."""
    if isinstance(work.spec, TrainSpec):
        return memory.training(work.shape, work.setting, work.value)
    if work.engines:
        return memory.engine(work.shape, work.setting, work.engines.tensor, work.engines.room)
    return memory.generation(work.shape, work.setting)


def refusal(work: Work, machine: Machine) -> str:
    """Why a stage or its engines cannot run there; empty where they can."""
    engines = work.engines
    if engines and not isinstance(work.spec, TrainSpec) and engines.tensor > machine.cards and not engines.served:
        return f"each engine takes {engines.tensor} cards of {machine.cards}"
    if engines and engines.cards >= machine.cards and isinstance(work.spec, TrainSpec):
        return f"the engines take {engines.cards} cards of {machine.cards}, and none is left to train"
    if engines and engines.apart:
        peak = memory.engine(work.shape, work.setting, engines.tensor, engines.room)["peak"]
        if peak > engines.room:
            return f"needs {peak / 1e9:,.0f} GB of an engine's {engines.room / 1e9:,.0f} on each of its cards"
    return too_much(needed(work), machine)


def too_much(found: Bytes, machine: Machine) -> str:
    """Why a process does not fit; empty where it does."""
    if found["peak"] > machine.memory:
        what = "card" if machine.card else "machine"
        return f"needs {found['peak'] / 1e9:,.0f} GB of a {what}'s {machine.memory / 1e9:,.0f}"
    if found.get("host", 0.0) > machine.host:
        return f"needs {found['host'] / 1e9:,.0f} GB of a node's {machine.host / 1e9:,.0f}"
    return ""


def nearest(work: Work, machine: Machine) -> str:
    """The fewest changes after which it fits, those of results last; empty where none was found."""
    changes = list(_changes(work, machine))
    for number in range(1, 4):
        for chosen in itertools.combinations(changes, number):
            setting = work.setting
            for _, change in chosen:
                setting = replace(setting, **change)
            if setting.eight_bits and (setting.ranks > 1 or setting.offload):
                continue  # `device.optim` refuses both
            if not refusal(replace(work, setting=setting), machine):
                return ", ".join(text for text, _ in chosen)
    if other := _other_engines(work, machine):
        return other
    if not isinstance(work.spec, TrainSpec):
        return "serve the model on several cards and name its URL, http://HOST/v1#NAME"
    return ""


def _other_engines(work: Work, machine: Machine) -> str:
    """Engines of more cards, or fewer of them; for a stage that only writes, an engine at all."""
    trains = isinstance(work.spec, TrainSpec)
    if not machine.card or (trains and not work.engines) or not hasattr(work.spec, "engine"):
        return ""
    said = [] if work.engines else [f'stage.{work.name}.engine = "vllm"']
    now = work.engines or Engines(1, 1, ALONE * machine.memory, int(ASSUMED["sequences"]), apart=True)
    beside = trains and not now.apart  # which has one card, its trainer's
    if beside:
        said.append('placement.engine.placement = "apart"')
        now = replace(now, replicas=1, room=ALONE * machine.memory, apart=True)
    powers = [2**n for n in range(0 if beside else 1, 11)]
    found = [replace(now, replicas=max(1, now.replicas // n), tensor=now.tensor * n) for n in powers]
    found = [one for one in found if one.tensor <= machine.node]
    found += [replace(now, replicas=now.replicas // n) for n in powers if now.replicas // n]
    for one in found:
        ranks = max(1, machine.cards - one.cards)
        setting = work.setting
        if trains:
            setting = replace(
                setting, ranks=ranks, node=min(ranks, machine.node), engine=0.0 if beside else setting.engine
            )
        if not refusal(replace(work, engines=one, setting=setting), machine):
            said += [f"placement.engine.replicas = {one.replicas}"] if one.replicas != now.replicas else []
            said += [f"placement.engine.tensor_parallel_size = {one.tensor}"] if one.tensor != now.tensor else []
            return ", ".join(said)
    return ""


def _changes(work: Work, machine: Machine) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that save memory, with what they change: first those that leave the results as they are."""
    s, stage = work.setting, f"stage.{work.name}"
    if s.cached > 16384:
        yield "placement.gen_tokens = 16384", {"cached": 16384}
    if not isinstance(work.spec, TrainSpec):
        return
    if not s.recompute:
        yield "placement.recompute = true", {"recompute": True}
    if s.card:
        yield from _on_cards(s)
    if s.copies and isinstance(work.spec, RLSpec):
        yield f'{stage}.engine = "vllm" on cards of its own', {"copies": 0, "cached": 0}
    if s.card and not s.eight_bits:
        yield f'{stage}.optimizer = "adamw8bit"', {"eight_bits": True}
    if not s.lora:
        yield f"{stage}.lora = {{ r = {LORA} }}", {"lora": LORA}


def _on_cards(s: Setting) -> Iterator[tuple[str, dict[str, Any]]]:
    """What cards can do beside, or more of them."""
    if not s.offload:
        yield "placement.offload = true", {"offload": True}
    if not s.to_host:
        yield "placement.activation_offloading = true", {"to_host": True}
    if s.groups > 1:
        yield "placement.mesh.replicate = 1", {"groups": 1}
    ranks = s.ranks
    while (ranks := ranks * 2) <= MOST_RANKS:
        yield f"placement.ranks = {ranks} on {ranks} cards", {"ranks": ranks, "node": min(8, ranks)}


def duration(work: Work, machine: Machine, texts: Texts) -> tuple[float, float | None]:
    """Tokens that are trained on or written, and seconds; None where the number of rows is not known."""
    training = trained_tokens(work, texts) if isinstance(work.spec, TrainSpec) else 0.0
    completions = work.ahead.get("completions", 0)
    answer = answer_of(work.spec, texts)
    if not (training or completions) or not machine.flops:
        return training + completions * answer, None
    if phases := round_of(work, machine, texts):
        assert isinstance(work.spec, RLSpec)
        return training + completions * answer, work.spec.rounds * phases["round"]
    if work.engines and not training:
        prompts = completions / getattr(work.spec, "num_generations", 1)
        return completions * answer, sum(written(work, machine, texts, prompts).values())
    model = work.shape.active + (work.value.active if work.value else 0)
    cost = 4.0 if work.setting.lora else 6.0
    cost = cost * model + (2.0 * model if work.setting.recompute else 0.0)
    cost += 2.0 * work.shape.active if work.setting.reference else 0.0
    busy = min(work.setting.ranks, rows_of_step(work.spec))
    seconds = training * cost / (busy * machine.flops * machine.training)
    return training + completions * answer, seconds + writing(work, machine, texts)


def trained_tokens(work: Work, texts: Texts) -> float:
    """Tokens of all steps, forward and backward; prompts count once for all of their completions."""
    spec, steps = work.spec, work.ahead.get("steps", 0)
    if isinstance(spec, RLSpec):
        prompts = spec.rounds * spec.batch * spec.passes
        return prompts * (texts["prompt"] + spec.num_generations * answer_of(spec, texts))
    if not isinstance(spec, OfflineSpec):
        return 0.0
    each = min(2 * texts["side"] if spec.paired else texts["row"], spec.max_length * (2 if spec.paired else 1))
    return float(steps * spec.batch * each)


def writing(work: Work, machine: Machine, texts: Texts) -> float:
    """Seconds of generation: a step reads all weights and the cache of its rows, or computes, whichever is slower."""
    completions, s = work.ahead.get("completions", 0), work.setting
    if not completions:
        return 0.0
    answer, shape = answer_of(work.spec, texts), work.shape
    mine = completions / min(s.ranks, completions)
    rows = min(mine, max(1.0, s.cached / (texts["prompt"] + answer)))
    read = s.width * shape.active + rows * (texts["prompt"] + answer / 2) * shape.cache(s.width)
    compute = 2.0 * shape.active * rows / (machine.flops * machine.reading)
    step = max(compute, read / (machine.bandwidth * ASSUMED["bandwidth"]) if machine.bandwidth else 0.0)
    prompts = mine / getattr(work.spec, "num_generations", 1)
    reading = prompts * texts["prompt"] * 2.0 * shape.active / (machine.flops * machine.reading)
    return mine / rows * answer * step + reading


def setting_of(spec: ArtifactSpec, recipe: Recipe, machine: Machine, completions: int = 0) -> Setting:
    """A stage's setting on a machine; training takes all its cards, the rest one. 0 completions: not known."""
    place = recipe.placement
    dtype = getattr(spec, "dtype", "auto")
    dtype = recipe.dtype if dtype == "auto" else dtype
    if dtype == "auto":
        dtype = "bfloat16" if machine.card else resolve("auto")
    width = 2 if dtype == "bfloat16" else 4
    if not isinstance(spec, TrainSpec):
        rows = min(place.gen_rows, completions or place.gen_rows)
        longest = int(ASSUMED["prompt"]) + (getattr(spec, "max_new_tokens", None) or WRITTEN)
        cached = min(place.gen_tokens, rows * longest)
        return Setting(card=machine.card, width=width, tokens=place.micro_tokens, cached=cached)
    ranks = machine.cards if machine.card else place.ranks
    alike = place.mesh.tensor * place.mesh.context if ranks % (place.mesh.tensor * place.mesh.context) == 0 else 1
    found = Setting(
        ranks=ranks,
        node=min(ranks, machine.node) if machine.card else ranks,
        card=machine.card,
        width=width,
        tokens=_pass(spec, place, ranks // alike),
        recompute=place.recompute is True,
        auto=place.recompute == "auto",
        to_host=place.activation_offloading and machine.card,
        offload=place.offload and machine.card,
        eight_bits=spec.optimizer == "adamw8bit",
        lora=spec.lora.r if spec.lora else 0,
        groups=place.shape.replicate if ranks % (place.shape.replicate * alike) == 0 else 1,
        tensor=place.mesh.tensor if alike > 1 else 1,
        context=place.mesh.context if alike > 1 else 1,
        slices=ranks > 1,
        reference=isinstance(spec, RLSpec) or (isinstance(spec, DPOSpec) and spec.polyak > 0),
    )
    if not isinstance(spec, RLSpec):
        return found
    if spec.engine != "local":
        engines = engines_of(spec, recipe, machine)
        return replace(found, engine=engines.room if engines and not engines.apart else 0.0)
    own = (1 + spec.lag if spec.lag else 0) + (1 if ranks > 1 or spec.lag else 0)
    rows = min(place.gen_rows, math.ceil(spec.batch * spec.num_generations / ranks))
    return replace(found, copies=own, cached=min(place.gen_tokens, rows * (spec.max_length + spec.max_new_tokens)))


def _pass(spec: TrainSpec, place: Placement, ranks: int) -> int:
    """Tokens of the longest pass: what is allowed, unless a step has less; a branch, pair or row it holds in any case.

    Of a group of completions, or a pair, it holds all where it may not take one branch after another.
    """
    leaves = spec.num_generations if isinstance(spec, RLSpec) else 2 if spec.paired else 1
    trunk, leaf = (spec.max_length, spec.max_new_tokens) if isinstance(spec, RLSpec) else (0, spec.max_length)
    step = math.ceil(rows_of_step(spec) / ranks) * (trunk + leaves * leaf)
    return max(min(place.micro_tokens, step), trunk + leaf * (1 if place.depth_first else leaves))


def value_of(spec: ArtifactSpec) -> str:
    """The stage that a value model starts from; empty where there is none."""
    return spec.value if isinstance(spec, PPOSpec) else ""
