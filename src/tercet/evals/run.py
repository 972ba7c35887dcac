"""The `eval` stage: put an exam to a model and say how well it did, and how sure we are (hop 11 of the road).

Every finished item goes to an append-only segment in the draft, so that a killed exam continues. Items are asked in
fixed groups; a group that was cut short is asked again whole, because in low precision a different batch can change a
token, and a resumed exam must end in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tercet.evals import gates
from tercet.evals.results import Result, Segment, dump, summary
from tercet.evals.task import Item, read_exam
from tercet.recipe import Eval, gate
from tercet.rows import Completion, Generator, Likelihood, Messages, Sampling
from tercet.verify import verifier

if TYPE_CHECKING:
    from tercet.store import Artifact, Context

GROUP = 128  # items asked at once, and lost at most when killed
MAX_ERRORS = 0.01  # share of a task's items whose judge may fail
Card = dict[str, Any]
Emit = Callable[[Result], None]


class EvalError(RuntimeError):
    """An exam cannot be trusted: judges failed, or the model gave no usable number."""


@runtime_checkable
class Encoder(Protocol):
    """A generator that can also show the token ids it reads; an endpoint behind a network cannot."""

    def encode(self, prompts: Sequence[Messages]) -> list[list[int]]:
        """Token ids of each rendered prompt."""
        ...


@dataclass(frozen=True)
class Group:
    """Items of one task that are asked together."""

    card: Card
    items: list[Item]
    seed: int


def run(spec: Eval, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Examine the model; returns every task's headline score."""
    cards, exam = read_exam(inputs[spec.exam].payload)
    cards = [_overridden(card, spec) for card in cards]
    baselines = _baselines(spec, cards, inputs)
    for card in cards:
        if card["verifier"]:
            verifier(card["verifier"])
    groups = _groups(cards, exam, ctx.seed)
    with Segment(ctx.work / "results.jsonl") as segment:
        unfinished = [group for group in groups if not all(segment.has(item.task, item.item) for item in group.items)]
        if unfinished:
            _examine(ctx.open_model(inputs[spec.model].payload, spec.dtype), unfinished, segment, len(exam), ctx)
        results = [segment.results[item.task, item.item] for item in exam]
    scores = {card["name"]: summary(card, _of_task(card, results)) for card in cards}
    (out / "results.jsonl").write_text("".join(map(dump, results)), encoding="utf-8")
    (out / "scores.json").write_text(json.dumps(scores, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    gates.check(spec.require, out / "results.jsonl", baselines)
    return {name: score["score"] for name, score in scores.items()}


def _overridden(card: Card, spec: Eval) -> Card:
    changed = {key: getattr(spec, key) for key in ("temperature", "max_new_tokens") if getattr(spec, key) is not None}
    return {**card, "sampling": {**card["sampling"], **changed}}


def _baselines(spec: Eval, cards: list[Card], inputs: dict[str, Artifact]) -> dict[str, Path]:
    """The payloads that gates compare with; a gate that cannot be checked is an error before the exam, not after."""
    wanted = [gate(text) for text in spec.require]
    for one in wanted:
        gates.named(one, [card["name"] for card in cards])
    return {one.stage: inputs[one.stage].payload for one in wanted if one.stage}


def _groups(cards: list[Card], exam: list[Item], seed: int) -> list[Group]:
    groups = []
    for card in cards:
        asked = [item for item in exam if item.task == card["name"]]
        for start in range(0, len(asked), GROUP):
            drawn = hashlib.sha256(f"{seed}/{card['name']}/{start}".encode()).digest()
            groups.append(Group(card, asked[start : start + GROUP], int.from_bytes(drawn[:4])))
    return groups


def _examine(model: Generator, groups: list[Group], segment: Segment, total: int, ctx: Context) -> None:
    """Ask every group, keep every answer as it comes, and stop after a task whose judge failed too often."""
    done = total - sum(len(group.items) for group in groups)
    for group in groups:

        def emit(result: Result, note: str = group.card["name"]) -> None:
            nonlocal done
            segment.append(result)
            done += 1
            ctx.track.progress(done, total, note=note)

        ask = _generate if group.card["metric"] == "accuracy" else _score
        ask(model, group, emit)
        segment.sync()
        _check_errors(group.card, _of_task(group.card, list(segment.results.values())))


def _generate(model: Generator, group: Group, emit: Emit) -> None:
    """Let the model write, and grade each answer as it finishes."""
    sampling = Sampling(**{**group.card["sampling"], "seed": group.seed})
    prompts = [item.messages for item in group.items]
    ids = _prompt_ids(model, prompts)
    waiting = dict(enumerate(group.items))

    def finished(i: int, completions: list[Completion]) -> None:
        if i in waiting:
            emit(_graded(waiting.pop(i), completions[0], group.card, ids[i]))

    for i, completions in enumerate(model.complete(prompts, sampling, finished)):
        finished(i, completions)


def _graded(item: Item, completion: Completion, card: Card, prompt_ids: Sequence[int]) -> Result:
    grade = verifier(item.verifier)(completion.text, item.truth)
    cut = completion.stop == "length" and grade.outcome in ("graded", "unparsed")
    return {
        **_head(item, card, prompt_ids),
        "output": completion.text,
        "num_tokens": len(completion.token_ids),
        "stop": completion.stop,
        "answer": grade.answer,
        "score": float(grade.score),
        "outcome": "truncated" if cut else grade.outcome,
        "detail": grade.detail,
    }


def _score(model: Generator, group: Group, emit: Emit) -> None:
    """Take the log-probabilities of the options, each as the assistant's turn."""
    prompts = [item.messages for item in group.items]
    ids = _prompt_ids(model, prompts)
    answers = model.likelihood(prompts, [item.options for item in group.items])
    measure = _chosen if group.card["metric"] == "choice" else _bits_per_byte
    for item, likelihoods, prompt_ids in zip(group.items, answers, ids, strict=True):
        _check_finite(item, likelihoods)
        emit({**_head(item, group.card, prompt_ids), **measure(item, likelihoods, group.card)})


def _chosen(item: Item, likelihoods: Sequence[Likelihood], card: Card) -> Result:
    """Multiple choice three ways: raw, per token and per byte of log-probability; ties go to the lowest index."""
    logps = [one.logp for one in likelihoods]
    num_tokens = [one.num_tokens for one in likelihoods]
    num_bytes = [len(option.encode()) for option in item.options]
    sizes = {"raw": [1] * len(logps), "per_token": num_tokens, "per_byte": num_bytes}
    picks = {key: _best([logp / size for logp, size in zip(logps, by, strict=True)]) for key, by in sizes.items()}
    picked = picks[card["choose_by"]]
    return {
        "output": item.options[picked],
        "stop": "",
        "answer": item.options[picked],
        "score": float(picked == item.gold),
        "outcome": "graded",
        "detail": "",
        "options": list(item.options),
        "gold": item.gold,
        **{key: float(pick == item.gold) for key, pick in picks.items()},
        "logps": logps,
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
    }


def _bits_per_byte(item: Item, likelihoods: Sequence[Likelihood], card: Card) -> Result:
    """-logp / ln 2 over the UTF-8 bytes of the gold answer."""
    bits = -likelihoods[0].logp / math.log(2)
    num_bytes = len(item.options[0].encode())
    return {
        "output": "",
        "stop": "",
        "answer": "",
        "score": bits / num_bytes,
        "outcome": "graded",
        "detail": "",
        "bits": bits,
        "num_bytes": num_bytes,
        "num_tokens": likelihoods[0].num_tokens,
    }


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _head(item: Item, card: Card, prompt_ids: Sequence[int]) -> Result:
    return {
        "task": item.task,
        "item": item.item,
        "skill": item.skill,
        "template": item.template,
        "metric": card["metric"],
        "digest": item.digest,
        "messages": [asdict(turn) for turn in item.messages],
        "prompt_ids": list(prompt_ids),
        "truth": item.truth,
    }


def _prompt_ids(model: Generator, prompts: Sequence[Messages]) -> Sequence[Sequence[int]]:
    return model.encode(prompts) if isinstance(model, Encoder) else [[]] * len(prompts)


def _of_task(card: Card, results: list[Result]) -> list[Result]:
    return [result for result in results if result["task"] == card["name"]]


def _check_finite(item: Item, likelihoods: Sequence[Likelihood]) -> None:
    for option, one in zip(item.options, likelihoods, strict=True):
        if not math.isfinite(one.logp) or one.num_tokens < 1:
            raise EvalError(
                f"{item.task}, item {item.item!r}: the model gives {option!r:.60} the log-probability {one.logp} over "
                f'{one.num_tokens} tokens; its weights are broken, or dtype = "float32" is needed'
            )


def _check_errors(card: Card, results: list[Result]) -> None:
    failed = [result for result in results if result["outcome"] == "error"]
    if len(failed) > MAX_ERRORS * card["num_items"]:
        raise EvalError(
            f"{card['name']}: {card['verifier']} could not judge {len(failed)} of {card['num_items']} answers, more "
            f"than {MAX_ERRORS:.0%}; first item {failed[0]['item']!r}: {failed[0]['detail'] or 'no detail'}. "
            "Mend the judge and run again: finished items are kept"
        )
