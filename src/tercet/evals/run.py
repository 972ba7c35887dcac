"""The `eval` stage: ask a model every item of a benchmark, and write scores with their errors.

Every finished item goes to an append-only log in the draft, so that a killed evaluation continues. Our own generator
is asked in fixed groups; in low precision a group that was cut short is asked again whole, because a different batch
can change a token there, and a resumed evaluation must end in the same bytes. Engines and servers are asked everything
at once; what runs beside an item there is chance in any case, so whatever is finished stays.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

from tercet import journal, machine
from tercet.evals import episodes, gates, llm_judged
from tercet.evals.results import USAGE, ResultLog, asked, graded, log_usage, total_usage, write_scores
from tercet.evals.task import Item, TaskError, read_benchmark
from tercet.recipe import DAY, EvalSpec, gate
from tercet.records import UNREAD, Result, TaskCard
from tercet.rows import PLAIN, Completion, Generator, Likelihood, Message, Messages, Sampling, speed_of
from tercet.rows_queue import Streamed, as_finished, calls_of, elsewhere, lent
from tercet.sandbox.run import ready
from tercet.store import Artifact, Context, endpoint
from tercet.verify import custom_digest, verifier

GROUP = 256  # items that our own generator is asked at once, and that are lost at most when killed
SCORED = 64  # the same of items that an engine or a server scores
MAX_ERRORS = 0.01  # share of a task's answers that may be lost
ARGUMENT = re.compile(r"\{% set (\w+) = \1 if \1 is defined else (.*?) \+%\}")  # as the base stage writes them
NO_QUESTION = (Message(PLAIN, "Answer:"),)  # the context of an option's unconditional log-probability
Emit = Callable[[Result], None]


class EvalError(RuntimeError):
    """An evaluation cannot be trusted: verifiers, LLM judges or requests failed, or the model gave no usable number."""


@dataclass(frozen=True)
class ItemGroup:
    """Items of one task that are asked together; in a queue each draws by a seed and a number of its own."""

    card: TaskCard
    items: list[Item]
    seed: int
    streams: tuple[tuple[int, int], ...] = ()

    @property
    def sampling(self) -> Sampling:
        """How their answers are drawn."""
        how = replace(self.card.sampling, seed=self.seed, fit=True)
        return Streamed(**vars(how), streams=self.streams) if self.streams else how


def run(spec: EvalSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Evaluate the model; returns every task's headline score."""
    cards, benchmark = read_benchmark(inputs[spec.benchmark].payload)
    template = chat_template(inputs[spec.model].payload)
    cards = [replace(_overridden(card, spec), chat_template=template) for card in cards]
    _check(spec, cards, ctx)
    baselines = _baselines(spec, cards, inputs)
    journal.mend(ctx.work / USAGE, ctx.track.note)
    with ResultLog(ctx.work / "results.jsonl", ctx.track.note) as log:
        free = {card.name for card in cards if _batch_free(spec, card, inputs)}
        groups = _groups(cards, benchmark, ctx.seed)
        queue = elsewhere(spec.engine, inputs[spec.model].payload)
        unfinished = _queued(groups, log, free) if queue else _unfinished(groups, log, free)
        if unfinished:
            model = ctx.open_model(inputs[spec.model].payload, spec.precision, spec.engine)
            with lent(model), log_usage(model, ctx.work / USAGE):
                _evaluate(model, unfinished, len(groups), log, ctx)
            del model  # free its memory for the LLM judge
        results = [log.results[item.task, item.item] for item in benchmark]
    if any(card.judge for card in cards):
        results = llm_judged.run(spec, cards, benchmark, results, inputs, ctx)
    for card in cards:
        check_errors(card, _of_task(card, results))
    scores = write_scores(out, cards, results)
    gates.check(spec.require, out / "results.jsonl", baselines)
    return {**{name: score.score for name, score in scores.items()}, **total_usage(ctx.work / USAGE)}


def chat_template(folder: Path) -> dict[str, Any] | None:
    """What a model folder says about its chat template; None for a server, and for a model without one."""
    path, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    text = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
    if not isinstance(text, str) or not text:
        return None
    given = dict(ARGUMENT.findall(text)) if text.startswith("{% set ") else {}
    about = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "arguments": given}
    return {**about, "date": config.get("chat_template_date") or DAY} if "strftime_now" in text else about


def check_errors(card: TaskCard, results: list[Result]) -> None:
    """Stop when more than 1 % of a task's answers are lost: neither right nor wrong.

    Those are answers that could not be had or graded, and those on which the LLM judge's verdict cannot be read.
    """
    failed = [(result.item, one) for result in results for one in result.tries if one.lost]
    answers = card.num_items * (card.sampling.n if card.metric == "accuracy" else 1)
    if len(failed) > MAX_ERRORS * answers:
        unread = sum(UNREAD in one.numbers for _, one in failed)
        which = f" ({unread} verdicts of {card.judge} could not be read)" if unread else ""
        raise EvalError(
            f"{card.name}: {len(failed)} of {answers} answers could not be had or graded{which}, more "
            f"than {MAX_ERRORS:.0%}; first item {failed[0][0]!r}: {failed[0][1].detail or 'no detail'}. "
            "Remove the cause and run again: finished items are kept"
        )


def _overridden(card: TaskCard, spec: EvalSpec) -> TaskCard:
    changed = {key: getattr(spec, key) for key in ("temperature", "max_new_tokens") if getattr(spec, key) is not None}
    sampling = replace(card.sampling, **changed, n=card.sampling.n * spec.repeats)
    settings: dict[str, Any] = {"dtype": spec.precision, "engine": spec.engine, "repeats": spec.repeats}
    if card.verifier and verifier(card.verifier).sandbox:
        settings |= {"sandbox": spec.sandbox, "isolation": ready(spec.sandbox)}
    if digest := card.verifier and custom_digest(card.verifier):
        settings |= {"code": (card.code or {}) | {card.verifier: digest}}
    return replace(card, sampling=sampling, **settings)


def _check(spec: EvalSpec, cards: list[TaskCard], ctx: Context) -> None:
    """Refuse before anything is asked: an unknown verifier, a missing judge model, a locked suite."""
    for card in cards:
        if card.verifier:
            verifier(card.verifier)
    llm_judged.check(spec, cards)
    locked = [card.name for card in cards if card.locked]
    if locked and not spec.final:
        raise TaskError(
            f"{', '.join(locked)}: the unseen suite is for the final score only; evaluate it in one eval stage marked "
            "`final = true` (on the command line: --final)"
        )
    if locked:
        opened = {"evaluation": ctx.work.parent.name.removeprefix(".draft-"), "tasks": locked}
        journal.append(ctx.store.root / "unseen.jsonl", opened)


def _baselines(spec: EvalSpec, cards: list[TaskCard], inputs: dict[str, Artifact]) -> dict[str, Path]:
    """The payloads that gates compare with; a gate that cannot be checked stops the stage before anything is asked."""
    wanted = [gate(text) for text in spec.require]
    for one in wanted:
        gates.named(one, [card.name for card in cards])
    return {one.stage: inputs[one.stage].payload for one in wanted if one.stage}


def _groups(cards: list[TaskCard], benchmark: list[Item], seed: int) -> list[ItemGroup]:
    """Fixed groups of each task: the longest questions first where the model writes, parts together where it scores."""
    groups = []
    for card in cards:
        own = [item for item in benchmark if item.task == card.name]
        if card.metric == "accuracy":
            own.sort(key=lambda item: -sum(len(turn.content) for turn in item.messages))
        else:
            own.sort(key=lambda item: item.subset)
        for start in range(0, len(own), GROUP):
            drawn = hashlib.sha256(f"{seed}/{card.name}/{start}".encode()).digest()
            groups.append(ItemGroup(card, own[start : start + GROUP], int.from_bytes(drawn[:4])))
    return groups


def _batch_free(spec: EvalSpec, card: TaskCard, inputs: dict[str, Artifact]) -> bool:
    """Whether an answer does not depend on what else was asked with it, so that every finished item may be kept.

    Greedy text of our own generator in fp32 does not; a log-probability does, in its last digit. What engines and
    servers have in a batch is chance, so that asking again would repeat nothing; but an episode needs its group.
    """
    if endpoint(inputs[spec.model].payload) is not None:
        return True
    if spec.engine != "local" or card.environment:
        return not card.environment
    return card.metric == "accuracy" and not card.sampling.temperature and spec.precision == "float32"


def _unfinished(groups: list[ItemGroup], log: ResultLog, free: set[str]) -> list[ItemGroup]:
    """What is left to ask: only the missing items of `free` tasks, else every group that misses one, whole."""
    left = []
    for group in groups:
        missing = [item for item in group.items if not log.has(item.task, item.item)]
        if missing:
            # Elsewhere an answer depends, in a last digit or a token, on its batch: only whole groups repeat it.
            again = missing if group.card.name in free else group.items
            left.append(ItemGroup(group.card, again, group.seed))
            log.forget((item.task, item.item) for item in again)
    return left


def _queued(groups: list[ItemGroup], log: ResultLog, free: set[str]) -> list[ItemGroup]:
    """What is left to ask, as few calls as possible: of a task that writes, all items at once; episodes by groups.

    Each item draws as it would in its group, whatever else is left.
    """
    streams = {
        (item.task, item.item): (group.seed, number) for group in groups for number, item in enumerate(group.items)
    }
    whole: dict[str, list[Item]] = {}
    episodes_left: list[ItemGroup] = []
    cards = {group.card.name: group.card for group in groups}
    for group in _unfinished(groups, log, free):
        if group.card.environment:
            episodes_left.append(group)
        else:
            whole.setdefault(group.card.name, []).extend(group.items)
    left = []
    for name, items in whole.items():
        size = len(items) if cards[name].metric == "accuracy" else SCORED
        for start in range(0, len(items), size):
            part = items[start : start + size]
            left.append(ItemGroup(cards[name], part, 0, tuple(streams[item.task, item.item] for item in part)))
    return left + episodes_left


def _evaluate(model: Generator, groups: list[ItemGroup], of: int, log: ResultLog, ctx: Context) -> None:
    """Ask the groups that are left `of` all, keep every answer as it comes, stop when there are too many errors."""
    done, total = len(log.results), len(log.results) + sum(len(group.items) for group in groups)
    lock, ended = Lock(), Event()

    def ask(group: ItemGroup) -> None:
        def emit(result: Result) -> None:
            nonlocal done
            with lock:  # threads may ask side by side
                if ended.is_set():
                    raise EvalError(f"{group.card.name} was stopped; run again: finished items are kept")
                log.append(result)
                done += 1
                ctx.track.progress(done, total, note=group.card.name)
                if group.streams and done % GROUP == 0:  # as often as where groups are asked one after another
                    check_errors(group.card, _of_task(group.card, list(log.results.values())))

        ctx.track.progress(done, total, note=group.card.name)
        if group.card.environment:
            episodes.play(model, group.card, group.items, group.seed, emit)
        else:
            (_generate if group.card.metric == "accuracy" else _score)(model, group, emit)

    side_by_side = [group for group in groups if group.streams]
    for part, calls in ((side_by_side, calls_of(model)), ([one for one in groups if not one.streams], 1)):
        number = max(0, of - len(part))
        for group, _ in as_finished(ask, part, calls, ended):
            number += 1
            with lock:
                log.sync()
                if measured := speed_of(model):
                    ctx.track.log(number, **measured)
                check_errors(group.card, _of_task(group.card, list(log.results.values())))


def _generate(model: Generator, group: ItemGroup, emit: Emit) -> None:
    """Let the model write, and grade each answer as it finishes."""
    prompts = [item.messages for item in group.items]
    ids = _prompt_ids(model, prompts)
    waiting = dict(enumerate(group.items))
    name = group.card.verifier
    workers = machine.cores() if name and verifier(name).slow else 1
    with ThreadPoolExecutor(workers) as pool:  # slow verifiers grade while the model still writes
        grading: deque[Future[Result]] = deque()

        def finished(i: int, completions: list[Completion]) -> None:
            if i in waiting:
                item = waiting.pop(i)
                grading.append(pool.submit(graded, item, completions, group.card, ids[i]))
            while grading and grading[0].done():
                emit(grading.popleft().result())

        # A generator may report answers early, in any order, or none of them: the rest is taken from what it returns.
        for i, completions in enumerate(model.complete(prompts, group.sampling, finished)):
            finished(i, completions)
        for future in grading:
            emit(future.result())


def _score(model: Generator, group: ItemGroup, emit: Emit) -> None:
    """Take the log-probabilities of the options, each as the text after the prompt."""
    prompts = [item.messages for item in group.items]
    ids = _prompt_ids(model, prompts)
    options = [item.options for item in group.items]
    answers = model.likelihood(prompts, options)
    alone: Iterable[Sequence[Likelihood]] = [()] * len(prompts)
    if group.card.choose_by == "unconditional":
        alone = model.likelihood([NO_QUESTION] * len(prompts), options)
    for item, likelihoods, free, prompt_ids in zip(group.items, answers, alone, ids, strict=True):
        head = asked(item, group.card, prompt_ids)
        error = next((one.error for one in (*likelihoods, *free) if one.error), "")
        if error:
            emit(replace(head, stop="error", outcome="error", detail=error))
            continue
        _check_finite(item, likelihoods)
        emit(measured(head, item, likelihoods, group.card, free))


def measured(
    head: Result, item: Item, likelihoods: Sequence[Likelihood], card: TaskCard, alone: Sequence[Likelihood]
) -> Result:
    """The result of an item by the log-probabilities of its options (`alone`: those without its prompt)."""
    scored = replace(
        head,
        outcome="graded",
        options=item.options,
        gold=item.gold,
        logps=[one.logp for one in likelihoods],
        greedy=[one.greedy for one in likelihoods],
        num_tokens=[one.num_tokens for one in likelihoods],
        num_bytes=[len(option.encode()) for option in item.options],
    )
    return MEASURES[card.metric](scored, card, alone)


def _chosen(result: Result, card: TaskCard, alone: Sequence[Likelihood]) -> Result:
    """Multiple choice by raw log-probability and per token, character and byte; ties go to the lowest index."""
    sizes = {
        "raw": [1] * len(result.logps),
        "per_token": result.num_tokens,
        "per_char": [len(option) for option in result.options],
        "per_byte": result.num_bytes,
    }
    picks = {
        way: _best([logp / size for logp, size in zip(result.logps, by, strict=True)]) for way, by in sizes.items()
    }
    if alone:
        picks["unconditional"] = _best([logp - free.logp for logp, free in zip(result.logps, alone, strict=True)])
    picked = picks[card.choose_by]
    right: dict[str, Any] = {way: float(pick == result.gold) for way, pick in picks.items()}
    text = result.options[picked]
    return replace(result, output=text, answer=text, score=float(picked == result.gold), **right)


def _true_share(result: Result, card: TaskCard, alone: Sequence[Likelihood]) -> Result:
    """MC2: probability of the true options over that of all, from summed log-probabilities. MC1: is the first the best
    one of itself and the untrue ones?"""
    logps = result.logps
    shares = [math.exp(logp - max(logps)) for logp in logps]
    best = result.options[_best(logps)]
    score = math.fsum(shares[: result.gold]) / math.fsum(shares)
    numbers = {"mc1": float(logps[0] > max(logps[result.gold :]))}
    return replace(result, output=best, answer=best, score=score, numbers=numbers)


def _bits_per_byte(result: Result, card: TaskCard, alone: Sequence[Likelihood]) -> Result:
    """-logp / ln 2 over the UTF-8 bytes of the gold answer."""
    bits, (num_bytes,), (num_tokens,) = -result.logps[0] / math.log(2), result.num_bytes, result.num_tokens
    return replace(result, score=bits / num_bytes, bits=bits, num_bytes=num_bytes, num_tokens=num_tokens)


MEASURES = {"choice": _chosen, "mc2": _true_share, "bpb": _bits_per_byte}


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _prompt_ids(model: Generator, prompts: Sequence[Messages]) -> Sequence[Sequence[int]]:
    """The token ids that a generator reads; an endpoint behind a network cannot show them."""
    encode = getattr(model, "encode", None)
    return encode(prompts) if encode else [[]] * len(prompts)


def _of_task(card: TaskCard, results: list[Result]) -> list[Result]:
    return [result for result in results if result.task == card.name]


def _check_finite(item: Item, likelihoods: Sequence[Likelihood]) -> None:
    for option, one in zip(item.options, likelihoods, strict=True):
        if not math.isfinite(one.logp) or one.num_tokens < 1:
            raise EvalError(
                f"{item.task}, item {item.item!r}: the model gives {option!r:.60} the log-probability {one.logp} over "
                f'{one.num_tokens} tokens; its weights are broken, or dtype = "float32" is needed'
            )
