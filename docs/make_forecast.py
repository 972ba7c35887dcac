"""Writes docs/forecast.md: its tables are what `tercet plan --machine` computes, so page and code cannot disagree."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tercet.cli.forecast import assumptions, row, works_of
from tercet.forecast.machines import ASSUMED, machine
from tercet.forecast.stages import Forecast, forecast
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

## Measured on a CPU

SmolLM2-135M-Instruct, each stage a process of its own, two steps; GB of the process's peak (`ru_maxrss`) beside what
`tercet plan --machine cpu` says before. `python bench/forecast.py` makes the table again; its recipe and settings stand
there. `sft-recompute` was not looked at while the arithmetic was made, and is outside of 15 %: about half a gigabyte
that the first step leaves in the heap is not counted; activations fill it where they are kept.

{measured}
## The published recipes

Computed by `tercet plan RECIPE --machine MACHINE`: the training stages. Sizes are GB, per rank but for host (of a
node) and disk; recipes are as published, with `[placement]` as it stands in them.

"""
TITLES = ("stage", "ranks", "weights", "moments", "activations", "peak", "host", "disk", "hours", "cost", "fits")


def render() -> str:
    """The whole page."""
    parts = [HEAD.replace("{measured}", measured())]
    for name in RECIPES:
        for place in MACHINES:
            parts.append(f"`tercet plan {name} --machine {place}`\n\n")
            lines = (TITLES, ["---"] * len(TITLES), *table(name, place))
            parts += [f"| {' | '.join(map(str, cells))} |\n" for cells in lines]
            parts.append("\n")
    said = assumptions(machine(MACHINES[0]))
    return "".join(parts) + said[0].upper() + said[1:] + ".\n"


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
