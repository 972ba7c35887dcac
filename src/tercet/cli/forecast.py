"""`tercet plan --machine`: what every stage needs on a machine, without weights; what cannot fit is refused."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tercet.cli.output import emit, say, table
from tercet.forecast import SHARES, rate
from tercet.forecast.machines import ASSUMED, CPU, Machine, machine
from tercet.forecast.shape import ModelShape, known
from tercet.forecast.stages import Forecast, forecast, setting_of, value_of
from tercet.forecast.texts import texts_of
from tercet.forecast.work import Work, engines_of
from tercet.pipeline import PlanLine
from tercet.precision import resolve
from tercet.preflight import Obstacle, refuse
from tercet.preflight.facts import Facts
from tercet.recipe import Recipe
from tercet.recipe.specs import ComputeSpec

SHOWN = ("read", "write", "tail", "weights", "score", "train", "round")  # `forecast.rounds.Phases`
PHASES = (
    "seconds of a round; engines (replicas x cards) read prompts, write, wait for the longest answers and get weights, "
    "the trainer scores and trains"
)


def show(args: argparse.Namespace, recipe: Recipe, lines: Sequence[PlanLine], mirror: dict[str, str]) -> int:
    """A line for each stage that runs a model of known shape; RecipeError where one cannot fit."""
    here = (rate(recipe.dtype), SHARES[resolve(recipe.dtype)]) if args.machine == CPU else ()
    where = machine(args.machine, *here)
    works, unknown = works_of(recipe, lines, mirror, where)
    made = {line.name: line.path / "payload" for line in lines if line.exists}
    found = [forecast(work, where, ASSUMED | _lengths(work, made)) for work in works]
    if args.json:
        emit({"machine": asdict(where), "assumed": ASSUMED, "stages": list(map(asdict, found)), "unknown": unknown})
    else:
        _print(found, unknown, where)
    refuse(Obstacle(one.name, "--machine", f"{one.refused}; {_way(one)}") for one in found if one.refused)
    return 0


def _lengths(work: Work, made: Mapping[str, Path]) -> dict[str, float]:
    """How long the texts are that a stage reads, where they exist already."""
    names = (getattr(work.spec, field, "") for field in ("rows", "pairs", "prompts"))
    return next((texts_of(made[name]) for name in names if name in made), {})


def _way(one: Forecast) -> str:
    return f"what fits: {one.instead}" if one.instead else "no setting was found that fits; take a smaller model"


def works_of(
    recipe: Recipe, lines: Sequence[PlanLine], mirror: dict[str, str], where: Machine
) -> tuple[list[Work], dict[str, str]]:
    """Stages with their models; those whose model has no known shape, with its name. A model behind a URL is free."""
    facts = Facts(recipe, {line.name: line.path / "payload" for line in lines if line.exists}, mirror)
    works, unknown = [], {}
    for line in lines:
        spec = recipe.spec(line.name)
        model = getattr(spec, "model", "")
        if not isinstance(spec, ComputeSpec) or not model or facts.served(model):
            continue
        shape = shape_of(facts, model)
        value = shape_of(facts, value_of(spec)) if value_of(spec) else None
        if shape is None or (value_of(spec) and value is None):
            unknown[line.name] = facts.source_of(model).model
        else:
            engines = engines_of(spec, recipe, where)
            left = where.with_cards(max(1, where.cards - (engines.cards if engines else 0)))  # to train
            setting = setting_of(spec, recipe, left, line.forecast.get("completions", 0))
            works.append(Work(line.name, spec, shape, value, setting, line.forecast, engines))
    return works, unknown


def shape_of(facts: Facts, name: str) -> ModelShape | None:
    """The shape of a stage's model: of its configuration on this machine, else of the table of published ones."""
    return ModelShape.of(facts.model(name).config) or known(facts.source_of(name).model)


def _print(found: Sequence[Forecast], unknown: dict[str, str], where: Machine) -> None:
    head = ("stage", "ranks", "weights", "moments", "activ.", "peak", "host", "disk", "hours", "cost")
    table(head, map(row, found))
    if rounds := [one for one in found if one.phases]:
        table(("stage", "ranks", "engines", *SHOWN), map(round_row, rounds))
        say(PHASES)
    say(
        f"GB a rank ({where.memory / 1e9:,.0f} there), GB of a node's host ({where.host / 1e9:,.0f}), GB of disk with "
        "two checkpoints"
    )
    if again := [one.name for one in found if one.recompute]:
        say(f"compute their activations again: {', '.join(again)}")
    say(assumptions(where))
    for name, model in unknown.items():
        say(f"{name}: the shape of {model} is not known; put its config.json into the hub's cache, or name its folder")


def round_row(one: Forecast) -> list[Any]:
    """A line of the table of rounds: seconds."""
    assert one.engines is not None
    cards = f"{one.engines.replicas} x {one.engines.tensor}"
    return [one.name, one.ranks, cards, *(seconds(one.phases[name]) for name in SHOWN)]


def row(one: Forecast) -> list[Any]:
    """A line of the table."""
    sizes = ("master weights", "moments", "activations", "peak", "host")
    hours = "?" if one.hours is None else f"{one.hours:,.1f}"
    dollars = "?" if one.dollars is None else f"${one.dollars:,.0f}" if one.dollars else "-"
    return [one.name, one.ranks, *(_gb(one.bytes.get(name, 0.0)) for name in sizes), _gb(sum(one.disk)), hours, dollars]


def assumptions(where: Machine) -> str:
    """What hours and costs rest on, in a sentence."""
    a = ASSUMED
    texts = f"{a['row']:.0f} tokens a row, {a['side']:.0f} a side of a pair, {a['prompt']:.0f} and {a['answer']:.0f}"
    said = f"assumed: {texts} of prompt and answer; {where.training:.0%} of {where.flops / 1e12:,.3g} TFLOP/s a card"
    return said + (f"; ${where.price:.2f} a card and hour ({where.source})" if where.price else "")


def seconds(value: float) -> str:
    """A number of seconds as the table has it."""
    return f"{value:,.1f}" if value < 10 else f"{value:,.0f}"


def _gb(value: float) -> str:
    return "-" if not value else f"{value / 1e9:,.1f}" if value < 10e9 else f"{value / 1e9:,.0f}"
