"""Verifiers on their own reference answers: one that is stated plainly must be graded 1, or nobody is rewarded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from tercet.data.synth import GENERATORS
from tercet.evals import gold
from tercet.evals.suite import tasks
from tercet.evals.task import Generated, TaskError
from tercet.outside import read_json
from tercet.preflight.evaluation import is_here
from tercet.preflight.facts import Facts
from tercet.preflight.samples import sample
from tercet.recipe import BenchmarkSpec, OnPolicyPairsSpec, RLSpec
from tercet.records import OK, STOPS, UNTRIED, WARNING, CheckResult
from tercet.rows import Row
from tercet.verify import Verifier, VerifierError, check_reference, verifier
from tercet.verify.user_code import is_user_code, located

GRADED, ITEMS = 20, 3  # rows of one verifier, items of one task
SECONDS = 8.0  # after which no further row or task is graded
ADVICE = "mend the reference answers of these rows, or choose another verifier"


def graded(facts: Facts, missing: Sequence[str]) -> Iterator[CheckResult]:
    """A line for each verifier of the prompts that stages reward, and one for each benchmark."""
    prompts: dict[str, str] = {}
    for name in missing:
        spec = facts.recipe.spec(name)
        if isinstance(spec, RLSpec | OnPolicyPairsSpec):
            prompts.setdefault(spec.prompts, str(getattr(spec, "sandbox", "auto")))
    for name, sandbox in prompts.items():
        found = sample(facts, name)
        by_name: dict[str, list[Row]] = {}
        for row in found.rows:
            if isinstance(row, Row) and row.verifier:
                by_name.setdefault(row.verifier, []).append(row)
        if not by_name:
            yield CheckResult("verifiers", UNTRIED, f"no prompt is at hand yet: {', '.join(found.away)}", stage=name)
        for own, rows in by_name.items():
            yield _of_rows(facts, name, own, rows[:GRADED], sandbox)
    for name in missing:
        spec = facts.recipe.spec(name)
        if isinstance(spec, BenchmarkSpec):
            yield from _of_tasks(facts, name, spec)


def _of_rows(facts: Facts, stage: str, name: str, rows: Sequence[Row], sandbox: str) -> CheckResult:
    """The answers of some rows, graded by their own verifier."""
    begun, tried, refused = time.monotonic(), 0, []
    try:
        verify = verifier(located(name, facts.recipe.folder) if is_user_code(name) else name)
        if verify.asks_model:
            return CheckResult("verifiers", UNTRIED, f"{name} asks a model", stage=stage)
        for row in rows:
            if time.monotonic() - begun > SECONDS:
                break
            if not verify.package:
                check_reference(name, row.reference)
            if answers := list(answers_of(verify, row)):
                tried += 1
                said = [verify(one, row.reference, sandbox, prompt=row.prompt, source=row.source) for one in answers]
                if max(grade.score for grade in said) < 1:
                    worst = said[-1]
                    detail = f" ({worst.detail:.60})" if worst.detail else ""
                    refused.append(f"row {row.id!r}, {row.reference!r:.60}: {worst.score:g}, {worst.outcome}{detail}")
    except VerifierError as error:
        return CheckResult("verifiers", STOPS, str(error), ADVICE, stage)
    if not tried:
        what = f"{name}: {len(rows)} references can be read; they say what is asked, and hold no answer to grade"
        return CheckResult("verifiers", OK, what, stage=stage)
    if not refused:
        return CheckResult("verifiers", OK, f"{name} grades {tried} of {tried} own answers as right", stage=stage)
    what = f"{name} grades {tried - len(refused)} of {tried} own answers as right: {refused[0]}"
    certain = len(refused) == tried and verify.plainly  # what a user's function wants of a text is its own
    return CheckResult("verifiers", STOPS if certain else WARNING, what, ADVICE, stage)


def answers_of(verify: Verifier, row: Row) -> Iterator[str]:
    """Completions that must be right: the row's own answer, and its reference answer as the verifier reads it."""
    if row.answer:
        yield row.answer
    form = "{}" if verify.package else verify.plainly
    if form and (text := answer_in(row.reference)):
        yield form.replace("{}", text)


def answer_in(reference: str) -> str:
    """The answer that a reference holds: itself; of JSON, what stands under "answer", or the first alternative."""
    try:
        value: Any = read_json(reference)
    except ValueError:
        return reference
    if isinstance(value, dict):
        value = value.get("answer", "")
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return reference if isinstance(value, bool | int | float) else str(value or "")


def _of_tasks(facts: Facts, stage: str, spec: BenchmarkSpec) -> Iterator[CheckResult]:
    """The tasks of a benchmark whose items are here: own answers right, spoiled ones wrong."""
    begun, right, odd, left = time.monotonic(), 0, [], []
    for task in tasks(spec.tasks, facts.recipe.folder):
        made = isinstance(task.data, Generated) and task.data.generator in GENERATORS
        if time.monotonic() - begun > SECONDS or not (made or is_here(task, facts)):
            left.append(task.id)
            continue
        try:
            found = gold.check(task, facts.mirror, ITEMS, lambda own: list(islice(_items(own), ITEMS)))
        except (ValueError, TaskError) as error:
            yield CheckResult("verifiers", WARNING, f"{task.id}: {error}", stage=stage)
            continue
        right += bool(found.n) and not found.missed
        odd += [f"{task.id}, {item}: {why}" for item, why in found.missed]
    if odd:
        yield CheckResult("verifiers", WARNING, f"{len(odd)} own answers are graded wrongly: {odd[0]}", ADVICE, stage)
    if right:
        yield CheckResult(
            "verifiers", OK, f"{right} tasks grade their own answers right, spoiled ones wrong", stage=stage
        )
    if left:
        what = f"items are not at hand: {', '.join(left[:6])}{' …' if left[6:] else ''}"
        yield CheckResult("verifiers", UNTRIED, what, stage=stage)


def _items(own: Generated) -> Sequence[Any]:
    return GENERATORS[own.generator](ITEMS, "test", 17)
