"""A stage's heaviest step, taken once before the run at a learning rate of nothing, and what the generator says of it.

It is the stage's own code on the model's own weights: master weights, gradients, moments, the batch's layout. So its
peak of memory and its speed are those of the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tercet import machine
from tercet.device import place
from tercet.device.mesh import Mesh, peak_memory
from tercet.device.speed import Shapes, linear_shapes, measure, remember, remembered
from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree
from tercet.models.generate import OUT_OF_MEMORY, LocalGenerator
from tercet.models.hf_folder import load_config, weight_files
from tercet.models.opening import open_policy
from tercet.models.policy import Policy
from tercet.precision import resolve
from tercet.recipe import MonitorSpec, Recipe, RLSpec, TrainSpec
from tercet.records import OK, STOPS, UNTRIED, WARNING, CheckResult
from tercet.rows import Message, Sampling
from tercet.store import Context
from tercet.track import Tracker
from tercet.train.batch import Batch, Step, batches, cut, trained
from tercet.train.export import open_to_train
from tercet.train.loop import State, start, update_once
from tercet.train.packing import Budget
from tercet.train.sft import sft_loss

STATE = 16  # bytes of a weight that is trained: fp32 master, gradient and two moments
SHARE = 0.4  # of the rate of plain products, that a step on a busy machine reaches
SPEED_SECONDS = 2.0
BUSY = 0.6  # of the best rate that was ever measured here: below it another program computes
WRITTEN, LONGEST = 24, 256  # tokens of a completion that is compared, and of its prompt
QUESTIONS = ("What is 2 + 2?", "Name a colour.", "Say hello in French.", "Why is the sky blue?")


@dataclass(frozen=True)
class Rehearsal:
    """The stages that train one model: where it lies, its chat, and the trees of each one's sampled rows."""

    recipe: Recipe
    origin: str
    folder: Path
    chat: Chat
    rows: Mapping[str, Sequence[Tree]]
    seconds: float

    def spec(self, stage: str) -> TrainSpec:
        """The spec of one of them."""
        spec = self.recipe.spec(stage)
        assert isinstance(spec, TrainSpec)
        return spec


def rehearse(asked: Rehearsal, scratch: Path) -> Iterator[CheckResult]:
    """The yardstick, the generator against the trainer, and the heaviest step of all stages."""
    if not asked.rows:
        policy = open_policy(asked.folder, getattr(torch, resolve(asked.recipe.dtype)))
        yield _speed(linear_shapes(policy.model), next(policy.parameters()).dtype)[0]
        return
    if why := _too_large(asked):
        yield CheckResult("longest batch", UNTRIED, why, "try it on the machine that it will run on")
        return
    sizes = {stage: _heaviest(asked, stage, Mesh()).num_tokens for stage in asked.rows}
    stage = max(sizes, key=lambda name: sizes[name])
    ctx = _context(asked.recipe, stage, scratch)
    try:
        policy, ranks, _ = open_to_train(asked.folder, Mesh(device=place.device()), ctx)
        dtype = getattr(torch, asked.spec(stage).precision)
        found, rate = _speed(linear_shapes(policy), dtype)
        yield found
        state = start(policy, asked.spec(stage), ranks, ctx)
        yield compared(policy, asked)
        yield _step(state, asked, stage, ranks, rate)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        what = f"memory ran out in a batch of {sizes[stage]:,} tokens"
        advice = "set placement.recompute = true, lower placement.micro_tokens, or use `lora`"
        yield CheckResult("longest batch", STOPS, what, advice, stage)


def compared(policy: Policy, asked: Rehearsal) -> CheckResult:
    """The largest gap between log-probabilities of what the generator writes and those that training computes."""
    trees = next((trees for stage, trees in asked.rows.items() if isinstance(asked.spec(stage), RLSpec)), ())
    prompts = [list(tree.leaves[0].token_ids) for tree in trees if tree.num_tokens <= LONGEST][:4]
    prompts += [asked.chat.prompt_ids((Message("user", text),)) for text in QUESTIONS[len(prompts) :]]
    generator = LocalGenerator(policy, asked.chat, rows=4, tokens=4 * (LONGEST + WRITTEN))
    written = [one for (one,) in generator.write(prompts, Sampling(max_new_tokens=WRITTEN, fit=True))]
    gaps = [
        abs(ours - theirs)
        for prompt, one in zip(prompts, written, strict=True)
        for ours, theirs in zip(generator.logps(prompt, one.token_ids), one.logps, strict=True)
    ]
    most, allowed = max(gaps, default=0.0), MonitorSpec().gap
    what = f"{len(gaps)} tokens of 4 greedy completions: log-probs at most {most:.2g} nats apart"
    if most <= allowed:
        return CheckResult("generator", OK, what)
    return CheckResult(
        "generator", WARNING, f"{what}, over {allowed:g}", 'set dtype = "float32", or importance_cap = 2'
    )


def _speed(shapes: Shapes, dtype: torch.dtype) -> tuple[CheckResult, float]:
    """The yardstick of `tercet speed`, and how it compares with the best that this machine has shown."""
    device = place.device()
    now = remember(measure(shapes, dtype, device, SPEED_SECONDS), shapes, dtype, device)
    best = remembered(shapes, dtype, device)
    name = str(dtype).removeprefix("torch.")
    what = f"{now.flops / 1e9:,.0f} GFLOP/s in {name} products of the model's shapes, {torch.get_num_threads()} threads"
    if now.flops >= BUSY * best:
        return CheckResult("speed", OK, what), now.flops
    advice = "another program computes here: wait for it, or the run takes as much longer"
    return CheckResult("speed", WARNING, f"{what}; it has been {best / 1e9:,.0f}", advice), now.flops


def _too_large(asked: Rehearsal) -> str:
    """Why no step is taken: the state of training would not fit the memory that is free."""
    stored = sum(file.stat().st_size for file in weight_files(asked.folder))
    width = 2 if str(getattr(load_config(asked.folder), "dtype", "")).endswith("16") else 4
    parameters, free = stored / width, machine.available_memory()
    whole = any(asked.spec(stage).lora is None for stage in asked.rows)
    needed = parameters * (STATE if whole else 4)
    if place.device().type == "cuda" or needed < free:
        return ""
    return f"the state of training needs {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB are free here"


def _heaviest(asked: Rehearsal, stage: str, ranks: Mesh) -> Batch:
    """The batch with the most tokens of the longest step that the sampled rows allow."""
    spec, placement = asked.spec(stage), asked.recipe.placement
    limit = placement.micro_tokens
    trees = _groups(spec, asked.rows[stage], limit) if isinstance(spec, RLSpec) else _longest(spec, asked.rows[stage])
    return max(batches(trees, Budget.of(placement, spec), ranks), key=lambda batch: batch.num_tokens)


def _longest(spec: TrainSpec, trees: Sequence[Tree]) -> list[Tree]:
    """The longest rows of a sample, as many as a step has; made up where there is none."""
    kept = [tree for tree in trees if max(tree.path_lengths) <= spec.max_length]
    if spec.overlong == "cut":
        kept = [one for one in (cut(tree, spec.max_length) for tree in trees) if trained(one)]
    sides = 2 if spec.paired else 1
    made = Tree([], [_leaf(number, spec.max_length) for number in range(sides)])
    return sorted(kept, key=lambda tree: -tree.num_tokens)[: spec.batch] or [made]


def _groups(spec: RLSpec, trees: Sequence[Tree], limit: int) -> list[Tree]:
    """Prompts as long as the longest sampled one, with completions of full length, as many as a pass takes."""
    length = max((tree.num_tokens for tree in trees if tree.num_tokens <= spec.max_length), default=spec.max_length)
    size = length + spec.num_generations * spec.max_new_tokens
    number = max(1, min(limit // size, spec.batch // spec.minibatches))
    each = range(spec.num_generations)
    return [
        Tree(_leaf(group, length).token_ids, [_leaf(one, spec.max_new_tokens) for one in each])
        for group in range(number)
    ]


def _leaf(start: int, length: int) -> Leaf:
    """Tokens that any vocabulary has, trained; another `start` begins with another one."""
    return Leaf([10 + (start + 7 * place) % 200 for place in range(length)], [True] * length)


def _step(state: State, asked: Rehearsal, stage: str, ranks: Mesh, rate: float) -> CheckResult:
    """Forward, backward and update of the heaviest batch; a shorter one where it would take too long."""
    spec, batch = asked.spec(stage), _heaviest(asked, stage, ranks)
    most, whole = int(asked.seconds * rate * SHARE / state.trainable.flops), batch.num_tokens
    if whole > most:
        tree = Tree([], [_leaf(0, max(64, min(most, spec.max_length)))])
        (batch,) = batches([tree], Budget.of(asked.recipe.placement, spec), ranks)
    began = time.monotonic()
    loss = partial(sft_loss, reduction="token_mean", length=spec.max_length)
    measured = update_once(state, Step([batch]), loss, 0.0, spec)
    seconds, peak = time.monotonic() - began, peak_memory(ranks.device)
    what = f"{batch.num_tokens:,} tokens forward, backward and update in {seconds:.1f} s"
    what += f" ({measured['tokens_per_second']:,.0f} tokens/s), peak {peak:.1f} GB"
    if not asked.rows[stage]:
        what += "; of full length, as its rows are not known yet"
    if whole > most:
        return CheckResult(
            "longest batch", WARNING, f"{what}; the longest has {whole:,}, too many to try here", "", stage
        )
    return CheckResult("longest batch", OK, what, stage=stage)


def _context(recipe: Recipe, stage: str, scratch: Path) -> Context:
    """What a stage's code is given, without a store, tracker or generator of its own."""
    again = recipe.placement.recompute
    if again == "auto":  # a card that has too little memory for a stage recomputes, then with no more than this
        again = place.device().type != "cpu"
    changed = {"compile": False, "recompute": again}  # minutes, and the same numbers
    recipe = recipe.model_copy(update={"placement": recipe.placement.model_copy(update=changed)})
    work = scratch / "store" / "stage" / "work"
    work.mkdir(parents=True)
    return Context(stage, recipe.seed_of(stage), recipe, work, Tracker(None), {}, open_model=lambda *_: None)
