"""Writes docs/forecast.md: its tables are what `tercet plan --machine` computes, so page and code cannot disagree."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tercet.cli.forecast import assumptions, row, works_of
from tercet.forecast.machines import ASSUMED, Machine, machine
from tercet.forecast.stages import Forecast, Work, forecast, needed, too_much
from tercet.pipeline import plan
from tercet.recipe import TrainSpec, library, load
from tercet.store import Store

PAGE = Path(__file__).with_name("forecast.md")
MEASURED = PAGE.parents[1] / "bench" / "results" / "forecast.json"
RECIPES, MACHINES = ("tulu3-8b", "tulu3.1-8b", "tulu3-70b", "tulu3-405b"), ("h100x8", "h100x32", "h100x256")

HEAD = """\
# Forecasts

<!-- Written by docs/make_forecast.py; run `make docs`. -->

`tercet plan RECIPE --machine NAME` says, for every stage that runs a model, what it needs there: GB per rank, GB of a
node's host, GB of disk, hours and cost. It reads the recipe and a `config.json` (of a folder, of the hub's cache, or,
for the models that the recipes of this package name, a table that comes along); no weights are fetched and nothing is
started. What cannot fit is refused with exit code 2, with the smallest change of settings that fits by the same
arithmetic. `--json` prints every term. Machines: `h100`, `h100x8`, `h100x32`, `h100x256`, `h200`, `h200x8`, and `cpu`,
this machine, with its measured rate; `src/tercet/forecast/machines.toml` has their sizes, rates and prices with their
sources.

## What is counted

* **Weights.** Master weights, gradients and two AdamW moments in fp32, 16 bytes a weight shared by all ranks; on one
  card the copy that computes, 2 bytes in bf16; on several the layers that FSDP gathers. `optimizer = "adamw8bit"` has
  moments of 2 bytes; `lora` trains the factors alone. PPO's value model counts as the policy does.
* **Opening.** Each of several ranks reads its own share of every model that is trained or only read (the policy, a
  value or reward model, a reference, the base below adapters) from the disk, and none holds one whole. Folders whose
  tensors have names of an older kind are the exception: every rank opens them whole, which is not counted here.
* **Copies of RL.** A reference, which ranks share. With several ranks or `lag` a whole generator on each rank and, for
  each round of `lag`, the weights held for it: right for small models; of larger ones vLLM writes the completions, on
  cards of its own.
* **Activations** of the longest pass, which is `placement.micro_tokens`, or the longest row or pair, or the longest
  prompt with one completion, where that is longer; never more than a step has on a rank. A layer keeps
  2 H + 3 I + 2 K numbers and 16 H bytes a token,
  where H is the hidden size, I the width of the MLP and K that of the keys: 42 bytes times H in bf16 for Llama 3.1
  8B, 37 for SmolLM2-135M (59 in fp32). With `placement.recompute` it keeps 2 H bytes in bf16; by default (`"auto"`)
  a stage recomputes where it would not fit otherwise, and says so in its notes and in the table. With
  `placement.activation_offloading` what layers keep waits in the host's memory, and two layers' worth is on the card.
  A test counts the tensors that autograd saves and finds these numbers.
* **Tensor and context.** With `placement.mesh = {{ tensor = T }}` a rank has 1 / T of every product's weights, of what
  heads and MLP keep, and of the logits; what the norms keep is whole. With `context = C` it has 1 / C of the tokens.
  The state is shared by all ranks of a group in any case.
* **The heap** of a process on a CPU: a fifth of gradients and moments, which is what glibc's heap holds in pieces too
  small for the next pass (below).
* **Logits**: one chunk with its gradient. **Cache**: keys and values of the most completions that are written at
  once, when there are no gradients. **Evaluations**: beside weights and cache a batch of options that is scored, 8,192
  tokens, or the matrices of `tercet speed`, which every stage multiplies for a moment; on a CPU a packed copy of the
  weights.
* **Ranks on a CPU** share the machine's memory.
* **Disk**: the artifact in fp32 and two checkpoints of 12 bytes a weight.
* **Hours**: 6 FLOP a weight and token of training, at an assumed share of the machine's rate, for as many ranks as a
  step has rows; a step of generation reads all weights and the cache. Neither the network between nodes nor loading,
  verifiers and benchmarks is counted; the evaluations' number of items is not known before the benchmark is made. So
  hours are a lower bound, more so on 256 cards than on 8. Rows and pairs that exist already say how long they are;
  until then lengths are assumed, and answers always are.

What is offered where a stage does not fit is tried by a test: each kind of setting, written into the recipe, is
accepted.

## What fits, and how

The first of these settings that fits by the arithmetic above, in the order in which they cost time: as it is;
`recompute`; with `tensor = 8` inside of a node; `offload` of weights and optimiser; `activation_offloading`. SFT and
DPO as in the published recipes of that size; GRPO with the settings of `tulu3.1-8b`, vLLM on cards of its own. No such
machine was at hand: nothing here is measured.

{ways}
## Measured on a CPU

SmolLM2-135M-Instruct, each stage a process of its own, two steps; GB of the process's peak (`ru_maxrss`) beside what
`tercet plan --machine cpu` says before. `python bench/forecast.py` makes the table again; its recipe and settings stand
there. Of SFT with recomputation the process held 4.1 GB where its tensors and all else that was allocated never took
more than 2.6 (counted in `malloc` and `free`): the rest lies free in glibc's heap, between moments and weights, in
pieces that no large tensor fits. The process keeps its heap because fresh pages cost a fifth of a step. So the heap is
a term of the forecast; its size is one number, fitted to the first six runs. `reward-1536` and `sft-bf16` were run$
after it was fixed, and changed nothing.

{measured}
## The published recipes

Computed by `tercet plan RECIPE --machine MACHINE`: the training stages. Sizes are GB, per rank but for host (of a
node) and disk; recipes are as published, with `[placement]` as it stands in them.

"""
TITLES = ("stage", "ranks", "weights", "moments", "activations", "peak", "host", "disk", "hours", "cost", "fits")


def render() -> str:
    """The whole page."""
    parts = [HEAD.replace("{measured}", measured()).replace("{ways}", ways()).replace("{{", "{").replace("}}", "}")]
    for name in RECIPES:
        for place in MACHINES:
            parts.append(f"`tercet plan {name} --machine {place}`\n\n")
            lines = (TITLES, ["---"] * len(TITLES), *table(name, place))
            parts += [f"| {' | '.join(map(str, cells))} |\n" for cells in lines]
            parts.append("\n")
    said = assumptions(machine(MACHINES[0]))
    return "".join(parts) + said[0].upper() + said[1:] + ".\n"


MODELS = {"8B": "tulu3-8b", "70B": "tulu3-70b", "405B": "tulu3-405b"}
PLACES = ("h100x8", "h100x32", "h100x256")
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("as it is", {"recompute": False}),
    ("recompute", {}),
    ("recompute, tensor = 8", {"tensor": 8}),
    ("recompute, offload", {"offload": True}),
    ("recompute, tensor = 8, offload", {"tensor": 8, "offload": True}),
    ("recompute, tensor = 8, offload, activation_offloading", {"tensor": 8, "offload": True, "to_host": True}),
]


def ways() -> str:
    """The table of what fits each size of model on each number of cards."""
    lines = [
        "| model | cards | stage | how | activations | peak | host |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for size, name in MODELS.items():
        for place in PLACES:
            for work in _stages(name, place):
                lines.append(f"| {size} | {machine(place).cards} | {work.name} | {' | '.join(_way(work, place))} |")
    return "\n".join(lines) + "\n"


def _stages(name: str, place: str) -> Iterator[Work]:
    """SFT, DPO and GRPO of a recipe's model."""
    where = machine(place)
    grpo = next(work for work in _works("tulu3.1-8b", where) if work.name == "rlvr")
    for work in _works(name, where):
        if work.name in ("sft", "dpo"):
            yield work
        if work.name == "sft":
            shape = work.shape
    yield replace(grpo, name="grpo", shape=shape, setting=replace(grpo.setting, copies=0, cached=0))


def _works(name: str, where: Machine) -> list[Work]:
    recipe = load(library.located(name))
    with tempfile.TemporaryDirectory() as folder:
        return works_of(recipe, plan(recipe, Store(Path(folder))), {}, where)[0]


def _way(work: Work, place: str) -> tuple[str, ...]:
    """The setting that fits, with GB of activations, of the peak and of a node's host; or that none does."""
    where = machine(place)
    for said, change in SETTINGS:
        found = needed(replace(work, setting=replace(work.setting, **{"recompute": True, **change})))
        if not too_much(found, where):
            return said, *(f"{found.get(key, 0.0) / 1e9:,.0f}" for key in ("activations", "peak", "host"))
    return "does not fit", "", f"{found['peak'] / 1e9:,.0f}", f"{found['host'] / 1e9:,.0f}"


def measured() -> str:
    """The table of bench/results/forecast.json, in the bench's order."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    lines = ["| run | forecast | measured | difference |", "| --- | --- | --- | --- |"]
    for name in found["runs"]:
        one = found[name]
        lines.append(f"| {name} | {one['forecast_gb']:.2f} | {one['measured_gb']:.2f} | {one['error']:+.1%} |")
    return "\n".join(lines) + f"\n\nOn {found['machine']}.\n"


def table(name: str, place: str) -> Iterator[list[object]]:
    """The rows of a recipe on a machine."""
    recipe, where = load(library.located(name)), machine(place)
    with tempfile.TemporaryDirectory() as folder:
        works, _ = works_of(recipe, plan(recipe, Store(Path(folder))), {}, where)
    for work in works:
        if isinstance(work.spec, TrainSpec):
            found = forecast(work, where, ASSUMED)
            yield [*row(found), _fits(found)]


def _fits(found: Forecast) -> str:
    fits = "yes" if not found.refused else f"no; with: `{found.instead}`" if found.instead else "no"
    return f"{fits}, recomputing" if found.recompute and not found.refused else fits


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
