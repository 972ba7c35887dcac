"""Writes docs/forecast.md: its tables are what `tercet plan --machine` computes, so page and code cannot disagree."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tercet.cli.forecast import SHOWN, assumptions, row, seconds, works_of
from tercet.forecast.machines import ASSUMED, Machine, machine
from tercet.forecast.rounds import round_of
from tercet.forecast.stages import Forecast, forecast, needed, refusal, setting_of, settled, too_much
from tercet.forecast.work import Engines, Work, rows_of_step
from tercet.pipeline import plan
from tercet.recipe import Recipe, TrainSpec, library, load
from tercet.recipe.placement import ALONE
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
arithmetic. `--json` prints every term. Machines: `h100`, `h100x8`, `h100x32`, `h100x64`, `h100x256`, `h200`, `h200x8`,
and `cpu`, this machine, with its measured rate; `src/tercet/forecast/machines.toml` has their sizes, rates and prices
with their sources.

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
## Rounds of RL with engines

{rounds}
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
    head = HEAD.replace("{measured}", measured()).replace("{ways}", ways())
    parts = [head.replace("{{", "{").replace("}}", "}").replace("{rounds}", rounds())]
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


ROUNDS = """\
Where completions come from engines (`engine = "vllm"`), `tercet plan --machine` also prints the seconds of a round:

* **read**: the prompts, once for a group's completions: 2 FLOP a weight and token, on the replica that has most.
* **write**: all completions, as many at once as `max_num_seqs` and the cache allow. A step of a replica reads its
  weights and the cache of all that it writes at {bandwidth:.0%} of the memory's bandwidth, or multiplies, whichever is
  slower, and takes {step:.0f} ms besides; cards of one replica exchange what they computed twice a layer
  ({near:.0f} µs each time within a node, {far:.0f} between nodes).
* **tail**: the steps in which only the longest completion is left. One of a round is taken to reach `max_new_tokens`.
* **weights**: the new weights in bf16. The trainer's ranks gather them, and one rank sends them to all engines, or,
  with `options = {{ weight_transfer_config = {{ backend = "nccl_m2n" }} }}`, every card of an engine gets its own part
  alone; within a node by NVLink (450 GB/s), else by a card's network (50 GB/s), at {link:.0%} of it. Engines wait.
  Checksums are made at the start and when asked for, and are not counted.
* **score**: a forward pass each of the policy for old log-probs, where there is more than one update, of the reference
  and of a value model.
* **train**: all updates, as above; between nodes ranks that share weights gather the layers of each pass twice, and
  the longer of computing and gathering counts.
* **round**: with `lag` the longer of writing (read, write, tail) and learning (score, train), and weights; otherwise
  the sum. With `in_flight` the next prompts are written beside the tail. Engines on the trainer's own cards
  (`colocated`) take turns with it.

A trainer's ranks beyond the prompts of an update have nothing to do: 24 of Tülu 3.1, 640 of the 70B model. Engines take
their cards (`replicas` times `tensor_parallel_size`) from those of `--machine`, and the trainer has the others; servers
that `placement.engine.urls` names are on cards of their own. A card of an engine must hold its part of the weights in
`gpu_memory_utilization` of its memory; the rest is cache. Evaluations of a model that no card holds fit in the same
way, by an engine of several cards. Loading, verifiers and the time that groups of unequal length wait for one another
are not counted, and engines are taken to run with CUDA graphs.

### What was published, and what this arithmetic says of it

Learners and engines as allenai/open-instruct has them, in its page of Tülu 3 commands and, by their names, in
`scripts/train/tulu3/`; hours from the paper (§6.3) and from the figure of a re-run. Lengths are not published and are
assumed (below). GPU-hours are those of all cards booked.

{published}
The 405B model is the one case with published phases: about 550 s of writing, 25 of weights and 1,500 of training a
round, where this arithmetic has {writing}, {sending} and {learning}. Lengths are assumed and batches are the recipes';
its learners took one row a pass, and by the command went over a round four times, where the recipe has the paper's
once. So **read these figures as where time goes**; of training they are bounds from below, and a run takes a multiple.

### Ours on 8 and on 32 nodes

The recipes' own settings (`tulu3.1-8b` with `engine = "vllm"`), and the split of the cards with the shortest round by
this arithmetic, of engines with 1, 2, 4 or 8 cards; of splits within 1 % the one with fewest cards.

{ours}
What differs from the published runs: engines are as many as it takes to write while the trainer trains, where one was
published; weights go to the 70B model's engines in parts, where one rank sent them whole. Batches and updates are the
same. Tülu 3.1 gains nothing from more than a few nodes: an update has 24 prompts, and the tail of 2,048 tokens gets no
shorter.

### What weights cost

By the same kind of arithmetic, weights over HTTP with hashes on both sides take 35 to 50 s an update for 8B: {http}
hours of Tülu 3.1's 1,920 rounds. As they go now:
{now}.

"""
PUBLISHED = [  # model, recipe, learners, replicas and cards of each, booked, hours published, what a round took
    ("Tülu 3.1 8B", "tulu3.1-8b", 12, 1, 4, 16, "", ""),
    ("Tülu 3.1 8B, `grpo_8b.sh`", "tulu3.1-8b", 12, 4, 1, 16, "41 (660), on a figure", "57, if of all 2,000,000"),
    ("Tülu 3.1 8B, `grpo_fast_8b_single_node.sh`", "tulu3.1-8b", 6, 2, 1, 8, "", ""),
    ("Tülu 3 70B", "tulu3-70b", 40, 1, 4, 48, "60 (2,880)", "346, if of all 400,000 answers"),
    ("Tülu 3 405B", "tulu3-405b", 232, 1, 16, 256, "46 (11,776)", "about 2,075 (§8.1)"),
]
SPLIT_TITLES = ("model", "cards", "learners", "engines", *SHOWN)


def rounds() -> str:
    """The section of rounds: what was published, ours on 8 and 32 nodes, and what weights cost."""
    given = {name: ASSUMED[name] for name in ("bandwidth", "link")}
    given |= {name: ASSUMED[name] * 1e6 for name in ("near", "far")} | {"step": ASSUMED["step"] * 1e3}
    http = " to ".join(f"{1920 * each / 3600:.0f}" for each in (35, 50))
    first = _split("tulu3.1-8b", 16, Engines(1, 4, 0.0, 1024, apart=True))
    weights = first[1]["weights"]
    now = f"{weights:.1f} s each from 12 learners to an engine on four cards, {weights * 1920 / 60:.0f} minutes in all"
    _, large = _split("tulu3-405b", 248, Engines(1, 16, 0.0, 1024, apart=True))
    sides = {"writing": ("read", "write", "tail"), "sending": ("weights",), "learning": ("score", "train")}
    said = {name: f"{sum(large[one] for one in parts):.0f}" for name, parts in sides.items()}
    return ROUNDS.format(published=published(), ours=ours(), http=http, now=now, **given, **said)


def published() -> str:
    """The published splits, with the forecast of each."""
    titles = (*SPLIT_TITLES, "hours (GPU-hours) published", "a round published")
    lines = []
    for said, name, learners, replicas, tensor, booked, hours, took in PUBLISHED:
        engines = Engines(replicas, tensor, 0.0, int(ASSUMED["sequences"]), apart=True)
        _, phases = _split(name, learners + engines.cards, engines, lag=1)
        lines.append((said, booked, *_cells(learners, engines, phases), hours or "-", took or "-"))
    return _markdown(titles, lines)


def ours() -> str:
    """The best split of each number of cards, in turn where the recipe says so and one round ahead."""
    lines = []
    for said, name in (("Tülu 3.1 8B", "tulu3.1-8b"), ("Tülu 3 70B", "tulu3-70b")):
        for cards in (64, 256):
            for lag in (0, 1):
                _, engines, phases = min(_splits(name, cards, lag), key=lambda one: one[0])
                learners = int(phases.pop("learners"))
                lines.append((said, cards, f"`lag = {lag}`", *_cells(learners, engines, phases)))
    return _markdown((*SPLIT_TITLES[:2], "", *SPLIT_TITLES[2:]), lines)


def _splits(name: str, cards: int, lag: int) -> Iterator[tuple[tuple[float, int], Engines, dict[str, float]]]:
    """Every split of so many cards that fits, with what to compare: a round to 1 %, then the cards that are used."""
    given = _published(name)[1].engines
    parts = given is not None and given.parts
    for tensor in (1, 2, 4, 8):
        for replicas in range(1, min(cards // tensor, 64)):
            engines = Engines(replicas, tensor, 0.0, int(ASSUMED["sequences"]), apart=True, parts=parts)
            work, phases = _split(name, cards, engines, lag)
            if phases:
                busy = min(work.setting.ranks, rows_of_step(work.spec))
                whole = round(math.log(phases["round"]) / 0.01)
                yield (whole, busy + engines.cards), engines, phases | {"learners": busy}


def _split(name: str, cards: int, engines: Engines, lag: int | None = None) -> tuple[Work, dict[str, float]]:
    """An RL stage's work on so many cards with its engines', and the phases of its round; none where too small."""
    where = machine("h100x256").with_cards(cards)
    recipe, work = _published(name)
    engines = replace(engines, room=ALONE * where.memory)
    spec = work.spec if lag is None else work.spec.model_copy(update={"lag": lag})
    setting = setting_of(spec, recipe, where.with_cards(cards - engines.cards))
    work = settled(replace(work, spec=spec, setting=setting, engines=engines), where)
    return work, {} if refusal(work, where) else round_of(work, where, ASSUMED)


@cache
def _published(name: str) -> tuple[Recipe, Work]:
    recipe = load(library.located(name), ['stage.rlvr.engine="vllm"'])
    with tempfile.TemporaryDirectory() as folder:
        works, _ = works_of(recipe, plan(recipe, Store(Path(folder))), {}, machine("h100x256"))
    return recipe, next(work for work in works if work.name == "rlvr")


def _cells(learners: int, engines: Engines, phases: dict[str, float]) -> tuple[object, ...]:
    return (learners, f"{engines.replicas} x {engines.tensor}", *(seconds(phases[name]) for name in SHOWN))


def _markdown(titles: tuple[object, ...], lines: list[tuple[object, ...]]) -> str:
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in (titles, ["---"] * len(titles), *lines))


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
