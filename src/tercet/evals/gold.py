"""The check of verifiers without a model: a row's own answer must be graded right, and a spoiled one wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tercet import hub
from tercet.evals.task import Generated, Task, TaskError, items, public_records
from tercet.verify import Grade, verifier

WORKERS = 4  # verifiers that wait for other processes run several at once


@dataclass(frozen=True)
class GoldCheck:
    """The grades of one task's own answers. `missed` names the items that were graded wrongly, and how."""

    task: str
    verifier: str
    n: int
    accepted: int
    refused: int
    missed: tuple[tuple[str, str], ...]
    note: str = ""

    @property
    def agreement(self) -> float:
        """Share of the verifier's grades that were right."""
        return (self.accepted + self.refused) / (2 * self.n) if self.n else 1.0


def check(
    task: Task,
    mirror: Mapping[str, str],
    limit: int | None = None,
    made: Callable[[Generated], Sequence[Any]] | None = None,
) -> GoldCheck:
    """Grade the right and the spoiled answer of every item of a task (the first `limit`)."""
    if isinstance(task.data, Generated) and made is not None:
        records = list(made(task.data))[:limit]
    else:
        records = public_records(task, mirror)[:limit]
    if not records:
        raise TaskError(f"{task.id}: found no items to check its verifier with; is its file in the mirror whole?")
    if task.gold is None or task.judge or not task.verifier:
        why = "an LLM judge grades it" if task.judge else "not checked: the task declares no gold answers"
        why = why if task.verifier else "scored by log-probabilities: the reference answer is among the options"
        return GoldCheck(task.id, task.verifier, 0, 0, 0, (), why)
    asked = items(task, records, hub.records(task.examples, mirror))
    verify, gold = verifier(task.verifier), task.gold

    def both(i: int) -> tuple[Grade, Grade]:
        return verify(gold.right(records[i]), asked[i].reference), verify(gold.wrong(records[i]), asked[i].reference)

    with ThreadPoolExecutor(WORKERS) as pool:
        grades = list(pool.map(both, range(len(asked))))
    missed = [
        (item.item, f"{'right' if which == 0 else 'spoiled'} answer: {_said(pair[which])}")
        for item, pair in zip(asked, grades, strict=True)
        for which in (0, 1)
        if (pair[which].score >= 1) != (which == 0) or pair[which].outcome == "error"
    ]
    accepted = sum(right.score >= 1 for right, _ in grades)
    refused = sum(wrong.score < 1 and wrong.outcome != "error" for _, wrong in grades)
    return GoldCheck(task.id, task.verifier, len(asked), accepted, refused, tuple(missed))


def _said(grade: Grade) -> str:
    return f"score {grade.score:g}, {grade.outcome}, answer {grade.answer!r:.60} {grade.detail:.120}".rstrip()
