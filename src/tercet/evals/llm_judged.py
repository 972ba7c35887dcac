"""The second half of an evaluation that LLM judges grade: ask the judge model about every answer.

Verdicts go to a log of their own, so that a killed evaluation neither answers nor judges an item twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Event
from typing import Any

from tercet.evals.results import USAGE, ResultLog, log_usage, summed, with_grade
from tercet.evals.task import Item, TaskError
from tercet.recipe import EvalSpec
from tercet.records import Result, TaskCard
from tercet.rows_queue import as_finished, calls_of, elsewhere, lent
from tercet.store import Artifact, Context
from tercet.verify import Grade, llm_judge, verifier
from tercet.verify.llm_judges import Case, LLMJudge, graded, swapped

GROUP, PART = 128, 16  # answers judged at once; by each of the calls that an engine takes side by side
Judged = tuple[Item, Result]
Asked = tuple[LLMJudge[Case, Grade], Case]


def check(spec: EvalSpec, cards: Sequence[TaskCard]) -> None:
    """Refuse, before anything is asked, an evaluation whose judge is unknown or missing."""
    judged = [card for card in cards if card.judge]
    encoding = [card.judge for card in judged if verifier(card.judge).embeds]
    if judged and not spec.judge:
        names = ", ".join(f"{card.name} ({card.judge})" for card in judged)
        raise TaskError(
            f"{names}: an LLM judge grades these tasks; name one with `judge = ...` (a stage of kind `model`, or an "
            "endpoint), on the command line --judge"
        )
    if encoding and not spec.embedder:
        raise TaskError(
            f"{encoding[0]} compares embeddings in some categories; name an encoder with `embedder = ...` (a stage of "
            "kind `model` with encoder = true), on the command line --embedder"
        )


def run(
    spec: EvalSpec,
    cards: Sequence[TaskCard],
    benchmark: Sequence[Item],
    results: Sequence[Result],
    inputs: dict[str, Artifact],
    ctx: Context,
) -> list[Result]:
    """The results with every answer of an LLM-judged task graded; the others as they are."""
    by_name = {card.name: card for card in cards}
    with ResultLog(ctx.work / "judged.jsonl", ctx.track.note) as log:
        waiting = [pair for pair in zip(benchmark, results, strict=True) if pair[0].judge]
        groups = [waiting[start : start + GROUP] for start in range(0, len(waiting), GROUP)]
        left = [part for group in groups if (part := _unjudged(group, log, spec, inputs))]
        if left:
            model = ctx.open_model(inputs[spec.judge].payload, spec.precision, spec.engine)
            embedder = _encoder(spec, inputs)
            calls = 1 if embedder else calls_of(model)
            with lent(model), log_usage(model, ctx.work / USAGE, "judge_"):
                asking = partial(graded, model=model, embedder=embedder)
                parts = left if calls == 1 else _parts(left)
                _judge(asking, parts, log, by_name, ctx, calls)
        return [log.results.get((item.task, item.item), r) for item, r in zip(benchmark, results, strict=True)]


def _judge(
    asking: Callable[[list[Asked]], list[Grade]],
    groups: list[list[Judged]],
    log: ResultLog,
    cards: Mapping[str, TaskCard],
    ctx: Context,
    calls: int,
) -> None:
    """Judge every answer, `calls` groups side by side, and keep each group's verdicts as they come."""
    done, total = 0, sum(map(len, groups))

    def judged(part: list[Judged]) -> tuple[list[dict[int, Asked]], list[Grade]]:
        asked = [_asked(item, result, ctx.seed, cards[item.task]) for item, result in part]
        return asked, asking([one for own in asked for one in own.values()])

    for part, (asked, found) in as_finished(judged, groups, calls, Event()):
        grades = iter(found)
        for (item, result), samples in zip(part, asked, strict=True):
            own = {sample: next(grades) for sample in samples}
            log.append(_with_grades(result, own, cards[item.task]))
        log.sync()
        done += len(part)
        ctx.track.progress(done, total, note="judging")


def _unjudged(group: Sequence[Judged], log: ResultLog, spec: EvalSpec, inputs: dict[str, Artifact]) -> list[Judged]:
    """What is left to judge of a group. Our own generator's last digit depends on its batch, so a group that was cut
    short is judged again whole; what servers and engines have in a batch is chance, so what they judged stays.
    """
    group = [(item, result) for item, result in group if result.outcome != "error"]
    missing = [(item, result) for item, result in group if not log.has(item.task, item.item)]
    if not missing:
        return []
    kept = elsewhere(spec.engine, inputs[spec.judge].payload)
    return [pair for pair in group if pair in missing or not kept or llm_judge(pair[0].judge, pair[0].reference).embeds]


def _parts(groups: list[list[Judged]]) -> list[list[Judged]]:
    """The same answers in smaller parts, so that little is lost with a kill."""
    waiting = [pair for group in groups for pair in group]
    return [waiting[start : start + PART] for start in range(0, len(waiting), PART)]


def _asked(item: Item, result: Result, seed: int, card: TaskCard) -> dict[int, Asked]:
    """The samples there are to judge, by number; one that could not be had stays an error."""
    judge = llm_judge(item.judge, item.reference)
    return {
        k: (judge, Case(item.question, sample.output, item.reference, swapped(f"{item.item}/{k}", seed), card.think))
        for k, sample in enumerate(result.tries)
        if sample.stop != "error"
    }


def _encoder(spec: EvalSpec, inputs: dict[str, Artifact]) -> Any:
    if not spec.embedder:
        return None
    from tercet.models.embed import Embedder

    return Embedder.open(inputs[spec.embedder].payload)


def _with_grades(result: Result, grades: Mapping[int, Grade], card: TaskCard) -> Result:
    samples = list(result.tries)
    for number, grade in grades.items():
        cut = samples[number].stop == "length" and grade.outcome == "graded"
        samples[number] = with_grade(samples[number], grade, cut=cut)
    return summed(result, samples, card)
