"""A user's own benchmark: any rows that carry a verifier and a reference answer are a task.

Rows with several verifiers are several tasks, `mine:gsm8k@1` and `mine:ifeval@1`, since a score has one meaning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tercet.environments.names import code_of
from tercet.evals.layout import Shot
from tercet.evals.task import Task, TaskError
from tercet.recipe import BenchmarkSpec, SourceSpec
from tercet.rows import Messages, Row, Sampling
from tercet.store import Artifact, Context
from tercet.verify.signatures import unpacked

Inputs = dict[str, Artifact]


class TaskInput(NamedTuple):
    """A task with its records and worked examples; of a user's own also where its rows come from, for the card."""

    task: Task
    records: Sequence[Any]
    examples: Sequence[Any]
    about: dict[str, Any] | None = None


def own_tasks(spec: BenchmarkSpec, inputs: Inputs, ctx: Context) -> list[TaskInput]:
    """The tasks that the rows of a benchmark stage make, one for each verifier; none where it names no rows."""
    if spec.questions is None:
        return []
    rows, about = _read(spec.questions, inputs, ctx)
    examples = _read(spec.examples, inputs, ctx)[0] if spec.examples else []
    named, _, version = (spec.task or f"{ctx.name}@1").rpartition("@")
    parts = _by_verifier(rows, spec)
    found = []
    for grader, own in parts.items():
        shots = (examples or own)[: spec.shots]
        if len(shots) < spec.shots:
            raise TaskError(f"{ctx.name}: shots = {spec.shots}, but there are {len(shots)} rows to take them from")
        left = own if examples else own[spec.shots :]
        name = named if len(parts) == 1 else f"{named}:{grader.rpartition(':')[2].partition('@')[0]}"
        found.append(TaskInput(_task(spec, (name, int(version)), grader, left), left, shots, about))
    return found


def _read(source: SourceSpec, inputs: Inputs, ctx: Context) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a stage or a file, and for the card where they come from and what was left out."""
    rows, reading = ctx.load_rows(source.model_copy(update={"require_answer": False}), inputs)
    if not rows:
        raise TaskError(f"{source.stage or source.path}: holds no rows; a task needs some")
    if not source.stage:
        return rows, {"path": Path(source.path).name} | {key: value for key, value in reading.items() if value}
    file = inputs[source.stage].payload / "summary.json"
    sheet = json.loads(file.read_text(encoding="utf-8")).get("sheet", []) if file.is_file() else []
    parts = {line["part"]: line["licence"] for line in sheet} or {row.source: "not known here" for row in rows}
    return rows, {"stage": source.stage, "parts": parts}


def _by_verifier(rows: Iterable[Row], spec: BenchmarkSpec) -> dict[str, list[Row]]:
    """The rows of each verifier, in their order; all together where none is asked, or an environment plays them."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if spec.metric == "accuracy" and not (row.verifier or spec.environment):
            raise TaskError(
                f"row {row.id!r} of {row.source or 'an unnamed source'} names no verifier, so no answer can be graded; "
                'name one in the source (`verifier = "gsm8k@2"`, or your own, `"my_reward.py:score"`) or in each row'
            )
        graded = spec.metric == "accuracy" and not spec.environment
        found.setdefault(row.verifier if graded else "", []).append(row)
    return found


def _task(spec: BenchmarkSpec, name: tuple[str, int], grader: str, rows: Sequence[Row]) -> Task:
    skills = {row.skill for row in rows}
    return Task(
        name=name[0],
        version=name[1],
        skill=skills.pop() if len(skills) == 1 else "",
        data=(),
        prompt=partial(_asked, spec.prompt_text),
        reference=_right if spec.metric == "bpb" else lambda row: row.reference,
        metric=spec.metric,
        verifier=grader,
        shots=partial(_shots, spec.prompt_text),
        shown=lambda examples: [tuple(row.user_turns) for row in examples],
        fields=lambda row: tuple(row.user_turns),
        sampling=Sampling(spec.max_new_tokens, spec.temperature, n=spec.num_generations),
        subset=lambda row: row.source,
        pass_k=spec.pass_k,
        description=f"{len(rows)} rows of the user's own.",
        environment=_environment(spec),
        code=code_of(spec, Path()) or None if spec.environment else None,
    )


def _environment(spec: BenchmarkSpec) -> dict[str, Any] | None:
    """What a card says of the environment that plays the rows."""
    if not spec.environment:
        return None
    told = {"name": spec.environment, "args": spec.environment_args}
    return told | {"turns": spec.max_turns, "seconds": spec.environment_seconds}


def _asked(text: str, row: Row) -> Messages:
    """The prompt of a row, with the text around its last turn."""
    *before, last = row.prompt
    return (*before, replace(last, content=text.replace("{prompt}", last.content)))


def _shots(text: str, _row: Row, examples: Sequence[Row]) -> list[Shot]:
    return [
        ("\n\n".join(turn.content for turn in _asked(text, row) if turn.role == "user"), _right(row))
        for row in examples
    ]


def _right(row: Row) -> str:
    """The answer of a row as text: its last turn, else its reference answer where that is plain text."""
    answer = row.answer if row.answer is not None else str(unpacked(row.reference)[0])
    if row.answer is None and answer.startswith(("{", "[")):
        raise TaskError(
            f"row {row.id!r} has no answer to show or to score: its reference answer is JSON for {row.verifier}; add a "
            "final assistant turn, or take other rows"
        )
    return answer
