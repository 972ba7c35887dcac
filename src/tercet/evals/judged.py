"""The second half of an exam whose judge is a model: put every answer to it, and read its word (hop 11).

Judgements are kept in a segment of their own, so that a killed exam is neither answered nor judged twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.evals.results import USAGE, Segment, accounted, summed, with_grade
from tercet.evals.task import Item, TaskError
from tercet.recipe import Eval
from tercet.records import Result, Sample, TaskCard
from tercet.rows import Generator, Sampling
from tercet.store import endpoint
from tercet.verify.grade import Grade
from tercet.verify.judges import Judge, closer, model_judge, swapped

if TYPE_CHECKING:
    from tercet.store import Artifact, Context

GROUP = 128  # answers judged at once
VERDICT = Sampling(max_new_tokens=64, fit=True)
HREF = "href@1"  # its method differs from item to item
EMBEDDING = "embedding"
Judged = tuple[Item, Result]


@dataclass
class Answer:
    """One sample of one item, and the grade it gets."""

    item: Item
    sample: int
    output: str
    grade: Grade | None = None


def check(spec: Eval, cards: Sequence[TaskCard]) -> None:
    """Refuse, before anything is asked, an exam whose judge is unknown or missing."""
    judged = [card for card in cards if card.judge]
    for card in judged:
        if card.judge != HREF:
            model_judge(card.judge)
    if judged and not spec.judge:
        names = ", ".join(f"{card.name} ({card.judge})" for card in judged)
        raise TaskError(
            f"{names}: a model judges these tasks; name one with `judge = ...` (a stage of kind `model`, or an "
            "endpoint), on the command line --judge"
        )
    if any(card.judge == HREF for card in judged) and not spec.embedder:
        raise TaskError(
            "href@1 compares embeddings in some categories; name an encoder with `embedder = ...` (a stage of kind "
            "`model` with encoder = true), on the command line --embedder"
        )


def run(
    spec: Eval,
    cards: Sequence[TaskCard],
    exam: Sequence[Item],
    results: Sequence[Result],
    inputs: dict[str, Artifact],
    ctx: Context,
) -> list[Result]:
    """The results with every answer of a model-judged task graded; the others as they are."""
    by_name = {card.name: card for card in cards}
    with Segment(ctx.work / "judged.jsonl") as segment:
        waiting = [pair for pair in zip(exam, results, strict=True) if pair[0].judge]
        groups = [waiting[start : start + GROUP] for start in range(0, len(waiting), GROUP)]
        left = [part for group in groups if (part := _unjudged(group, segment, spec, inputs))]
        if left:
            judges = _open(spec, inputs, ctx)
            with accounted(judges.reader, ctx.work / USAGE, "judge_"):
                _judge(judges, left, segment, by_name, ctx)
        return [segment.results.get((item.task, item.item), r) for item, r in zip(exam, results, strict=True)]


def _judge(
    judges: Judges, groups: list[list[Judged]], segment: Segment, cards: Mapping[str, TaskCard], ctx: Context
) -> None:
    """Put every answer to the judges, and keep each group's verdicts as they come."""
    done, total = 0, sum(map(len, groups))
    for part in groups:
        answers = [Answer(item, k, s.output) for item, result in part for k, s in _answered(result)]
        _grade(judges, answers, ctx.seed)
        for item, result in part:
            grades = {one.sample: one.grade for one in answers if one.item is item}
            segment.append(_with_grades(result, grades, cards[item.task]))
        segment.sync()
        done += len(part)
        ctx.track.progress(done, total, note="judging")


def _unjudged(group: Sequence[Judged], segment: Segment, spec: Eval, inputs: dict[str, Artifact]) -> list[Judged]:
    """What is left to judge of a group: a word of a server stands alone, the others depend on the batch they were in
    (in the last digit), so that a group that was cut short is judged again."""
    group = [(item, result) for item, result in group if result.outcome != "error"]
    missing = [(item, result) for item, result in group if not segment.has(item.task, item.item)]
    if not missing:
        return []
    server = endpoint(inputs[spec.judge].payload) is not None
    return [pair for pair in group if pair in missing or not server or _judge_of(pair[0]) == EMBEDDING]


def _answered(result: Result) -> list[tuple[int, Sample]]:
    """The samples there are to judge, by number; one that could not be had stays an error."""
    return [(k, sample) for k, sample in enumerate(result.tries) if sample.stop != "error"]


@dataclass
class Judges:
    """The models that judge: one that reads, and an encoder where embeddings are compared."""

    reader: Generator
    embedder: Any = None


def _open(spec: Eval, inputs: dict[str, Artifact], ctx: Context) -> Judges:
    embedder = None
    if spec.embedder:
        from tercet.models.embed import Embedder

        embedder = Embedder.open(inputs[spec.embedder].payload)
    return Judges(ctx.open_model(inputs[spec.judge].payload, spec.precision, spec.engine), embedder)


def _grade(judges: Judges, answers: list[Answer], seed: int) -> None:
    """Fill in the grade of every answer."""
    for name, group in _by_judge(answers):
        if name == EMBEDDING:
            _compare_embeddings(judges, group)
        else:
            _ask(judges.reader, model_judge(name), group, seed)


def _by_judge(answers: list[Answer]) -> Iterator[tuple[str, list[Answer]]]:
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(_judge_of(answer.item), []).append(answer)
    yield from groups.items()


def _judge_of(item: Item) -> str:
    """The judge of an item; HREF's differs from item to item."""
    if item.judge != HREF:
        return item.judge
    method = str(json.loads(item.truth)["method"])
    return method if method == EMBEDDING else f"href_{method}@1"


def _ask(reader: Generator, judge: Judge, answers: list[Answer], seed: int) -> None:
    open_ones = []
    for answer in answers:
        answer.grade = judge.settled(answer.output, answer.item.truth)
        if answer.grade is None:
            open_ones.append(answer)
    if not open_ones:
        return
    swaps = [swapped(f"{one.item.item}/{one.sample}", seed) for one in open_ones]
    prompts = [
        judge.prompt(one.item.question, one.output, one.item.truth, swap)
        for one, swap in zip(open_ones, swaps, strict=True)
    ]
    if judge.kind == "choice":
        found = reader.likelihood(prompts, [judge.options] * len(prompts))
        words: list[tuple[Any, str]] = [
            ([o.logp for o in ones], next((o.error for o in ones if o.error), "")) for ones in found
        ]
    else:
        words = [(one.text, one.error) for (one,) in reader.complete(prompts, VERDICT)]
    for answer, swap, (word, error) in zip(open_ones, swaps, words, strict=True):
        failed = Grade(0.0, outcome="error", detail=f"the judge could not be asked: {error}")
        answer.grade = failed if error else judge.read(word, answer.item.truth, swap)


def _compare_embeddings(judges: Judges, answers: list[Answer]) -> None:
    truths = [json.loads(one.item.truth) for one in answers]
    references = [truth["reference"] for truth in truths]
    own = judges.embedder.similarity([one.output for one in answers], references)
    other = judges.embedder.similarity([truth["baseline"] for truth in truths], references)
    for answer, a, b in zip(answers, own, other, strict=True):
        answer.grade = closer(a, b)


def _with_grades(result: Result, grades: Mapping[int, Grade | None], card: TaskCard) -> Result:
    samples = []
    for number, sample in enumerate(result.tries):
        grade = grades.get(number)
        if grade is None:  # the answer could not be had
            samples.append(sample)
            continue
        samples.append(with_grade(sample, grade, cut=sample.stop == "length" and grade.outcome == "graded"))
    return summed(result, samples, card)
