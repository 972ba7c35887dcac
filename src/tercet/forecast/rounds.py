"""How long a round of RL takes with engines, by what its seconds are spent on: writing, weights, scoring, training.

A step of writing reads the weights of a replica and the cache of all that it writes, or multiplies, whichever is
slower; its cards exchange what they computed, and every step takes what starts it. The steps of a round are those in
which all completions are written, as many at once as fit, and those in which only the longest is left.
"""

from __future__ import annotations

import math

from tercet.forecast import memory
from tercet.forecast.machines import ASSUMED, Machine
from tercet.forecast.memory import Setting
from tercet.forecast.shape import ModelShape
from tercet.forecast.work import WRITTEN, Engines, Texts, Work, answer_of, rows_of_step
from tercet.recipe import GRPOSpec, PPOSpec, RLSpec

Phases = dict[str, float]  # seconds
WRITING, LEARNING = ("read", "write", "tail"), ("score", "train")


def round_of(work: Work, machine: Machine, texts: Texts) -> Phases:
    """Seconds of one round by phase, and of the whole `round`; nothing for a stage that has no rounds or no engine.

    With `lag` engines of their own write while the trainer learns, so the longer of the two counts, and the weights,
    for which both wait; in flight the next prompts are written beside the longest answers.
    """
    spec, engines = work.spec, work.engines
    if not isinstance(spec, RLSpec) or engines is None or not machine.flops:
        return {}
    found = written(work, machine, texts, prompts=spec.batch) | {"weights": transfer(work, engines, machine)}
    found |= learned(work, machine, texts)
    writing, learning = (sum(found[name] for name in names) for names in (WRITING, LEARNING))
    if engines.apart and spec.lag:
        steady = writing - found["tail"] if spec.in_flight else writing
        whole = max(steady, learning) + found["weights"]
    else:
        whole = writing + learning + found["weights"]
    return found | {"round": whole}


def written(work: Work, machine: Machine, texts: Texts, prompts: float) -> Phases:
    """Seconds in which engines read prompts and write the completions of all, on the replica that has most."""
    shape, width, engines = work.shape, work.setting.width, work.engines
    assert engines is not None
    each = getattr(work.spec, "num_generations", 1)
    answer = answer_of(work.spec, texts)
    longest = max(answer, getattr(work.spec, "max_new_tokens", None) or WRITTEN)
    mine = math.ceil(prompts / engines.replicas)
    rows = min(mine * each, engines.sequences, held(work, engines, texts["prompt"] / each + answer))
    rate = engines.tensor * machine.flops * machine.reading
    tokens = texts["prompt"] + answer / 2  # of a row's cache, when half is written
    many, one = (step(shape, engines, machine, number, (width, tokens)) for number in (rows, 1.0))
    return {
        "read": mine * texts["prompt"] * 2.0 * shape.active / rate,
        "write": mine * each / rows * answer * many,
        "tail": (longest - answer) * one,
    }


def held(work: Work, engines: Engines, tokens: float) -> float:
    """How many completions of so many tokens the cache of a replica holds; a prompt is there once for its group."""
    shape = work.shape
    cache = memory.engine(shape, work.setting, engines.tensor, engines.room)["cache"]
    return max(1.0, cache / (tokens * shape.cache(work.setting.width) / heads_apart(shape, engines)))


def heads_apart(shape: ModelShape, engines: Engines) -> int:
    """Parts that the cache is in: cards beyond the number of key heads repeat them."""
    return min(engines.tensor, shape.kv_heads)


def step(shape: ModelShape, engines: Engines, machine: Machine, rows: float, sizes: tuple[int, float]) -> float:
    """Seconds of a token of each of `rows` completions; `sizes` are a number's bytes and the tokens of their cache."""
    width, tokens = sizes
    cards = engines.tensor
    read = width * shape.active / cards + rows * tokens * shape.cache(width) / heads_apart(shape, engines)
    compute = 2.0 * shape.active * rows / (cards * machine.flops * machine.reading)
    seconds = ASSUMED["step"] + max(compute, read / (machine.bandwidth * ASSUMED["bandwidth"]))
    if cards == 1:
        return seconds
    near = cards <= machine.node
    wire = (machine.link if near else machine.network) * ASSUMED["link"]
    sent = 2.0 * width * rows * shape.hidden * (1 - 1 / cards) / wire  # a ring's sum of what all cards computed
    return seconds + 2 * shape.layers * (sent + ASSUMED["near" if near else "far"])


def transfer(work: Work, engines: Engines, machine: Machine) -> float:
    """Seconds of new weights: the trainer's ranks gather them; then a wire, or within a card a copy."""
    setting = work.setting
    size = float(setting.width * work.shape.parameters)
    if not engines.apart:
        copied = size / engines.tensor / (machine.bandwidth * ASSUMED["bandwidth"])
        return gathered(size, setting, machine) + copied
    near = setting.ranks + engines.cards <= machine.node and not engines.served
    wire = (machine.link if near else machine.network) * ASSUMED["link"]
    if engines.parts:
        return size / engines.tensor / wire
    return gathered(size, setting, machine) + size / wire  # one rank sends to all


def gathered(size: float, setting: Setting, machine: Machine) -> float:
    """Seconds in which ranks that share weights have each other's; all cards of a node share its wires."""
    sharing = setting.ranks // setting.groups
    wire = machine.link if sharing <= machine.node else min(machine.link, setting.node * machine.network)
    return size * (1 - 1 / sharing) / (wire * ASSUMED["link"]) if sharing > 1 else 0.0


def learned(work: Work, machine: Machine, texts: Texts) -> Phases:
    """Seconds of old log-probs, reference and values of a round's tokens, and of its updates."""
    spec, setting = work.spec, work.setting
    assert isinstance(spec, RLSpec)
    policy, value = work.shape.active, work.value.active if work.value else 0
    old = spec.minibatches * spec.passes > 1 if isinstance(spec, GRPOSpec) else True
    old = old and not (isinstance(spec, PPOSpec) and spec.old_logps == "generator")
    reference = setting.reference and (spec.kl_beta > 0 or isinstance(spec, PPOSpec))
    read = 2.0 * ((old + reference) * policy + value)
    each = (4.0 if setting.lora else 6.0) + (2.0 if setting.recompute else 0.0)
    tokens = spec.batch * (texts["prompt"] + spec.num_generations * answer_of(spec, texts))
    busy = min(setting.ranks, rows_of_step(spec) * setting.tensor * setting.context)
    rate = busy * machine.flops * machine.training
    # Between nodes a group of ranks has its layers gathered for each pass, forward and backward, while it computes.
    passes = math.ceil(tokens * setting.tensor * setting.context / busy / setting.tokens)
    size = float(setting.width * (work.shape.parameters + (work.value.parameters if work.value else 0)))
    wire = passes * gathered(size / setting.tensor, setting, machine)
    return {
        "score": max(tokens * read / rate, (old + reference) * wire),
        "train": spec.passes * max(tokens * each * (policy + value) / rate, 2 * wire),
    }
