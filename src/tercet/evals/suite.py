"""The exams we give: task declarations and the suites that group them.

Each task is about ten lines, because prompts, truths and options are small functions of one record. A changed task is
a new version; recipes name the version.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

from tercet.evals.task import Choices, Generated, Task, TaskError
from tercet.rows import Message, Messages, Row, Sampling, Source


def _prompt(row: Row) -> Messages:
    return row.prompt


def _truth(row: Row) -> str:
    return row.truth


def _answer(row: Row) -> str:
    if row.answer is None:
        raise TaskError(f"{row.source}, row {row.id!r}: expected a final assistant turn that holds the right answer")
    return row.answer


def _right_among_wrong(row: Row) -> Choices:
    """The answer among the wrong answers of `row.truth` (a JSON list), in an order drawn from the row's id alone."""
    try:
        wrong = json.loads(row.truth)
    except json.JSONDecodeError:
        wrong = None
    if not isinstance(wrong, list) or not wrong or not all(isinstance(text, str) for text in wrong):
        raise TaskError(
            f"{row.source}, row {row.id!r}: expected truth to be a JSON list of wrong answers, got {row.truth!r:.80}"
        )
    options = [_answer(row), *wrong]
    random.Random(f"facts@1/{row.id}").shuffle(options)
    return options, options.index(_answer(row))


def _question(record: dict[str, Any]) -> Messages:
    return (Message("user", record["question"]),)


def _after_hashes(record: dict[str, Any]) -> str:
    return record["answer"].split("####")[-1].strip()


_TASKS = (
    Task(
        name="words",
        version=1,
        skill="word problems",
        data=Generated("words@1", rows=120),
        prompt=_prompt,
        truth=_truth,
        verifier="gsm8k@1",
        sampling=Sampling(max_new_tokens=160),
        description="Word problems from templates that no training row uses; the last number written must be right.",
    ),
    Task(
        name="constraints",
        version=1,
        skill="constraints",
        data=Generated("constraints@1", rows=120),
        prompt=_prompt,
        truth=_truth,
        verifier="tulu_if@1",
        sampling=Sampling(max_new_tokens=160),
        description="Instructions with one to three checkable constraints on unseen topics; all of them must hold.",
    ),
    Task(
        name="talk",
        version=1,
        skill="chat",
        data=Generated("talk@1", rows=60),
        prompt=_prompt,
        truth=_answer,
        metric="bpb",
        description="Bits per byte of ordinary answers; it rises when training makes the model forget how to talk.",
    ),
    Task(
        name="facts",
        version=1,
        skill="knowledge",
        data=Generated("facts@1", rows=60),
        prompt=_prompt,
        truth=_answer,
        metric="choice",
        options=_right_among_wrong,
        description="Short facts: the right answer must be more likely than three wrong ones as the assistant's turn.",
    ),
    Task(
        name="gsm8k",
        version=1,
        skill="word problems",
        data=Source("openai/gsm8k", subset="main", split="test", revision="e53f048856ff4f594e959d75785d2c2d37b678ee"),
        prompt=_question,
        truth=_after_hashes,
        verifier="gsm8k@1",
        split="test",
        sampling=Sampling(max_new_tokens=512),
        description="GSM8K test questions asked without examples; the last number written must be right.",
    ),
)

TASKS = {task.id: task for task in _TASKS}
SUITES = {"quick": ("words@1", "constraints@1", "talk@1", "facts@1")}


def task(name: str) -> Task:
    """The task with this name, e.g. `words@1`."""
    if name not in TASKS:
        raise TaskError(
            f"no exam task is called {name!r}; known tasks: {', '.join(TASKS)}; suites: {', '.join(SUITES)}"
        )
    return TASKS[name]


def tasks(names: Iterable[str]) -> list[Task]:
    """The tasks of a list of task and suite names, in order, each once."""
    wanted = [member for name in names for member in SUITES.get(name, (name,))]
    return [task(name) for name in dict.fromkeys(wanted)]


def needs(names: Iterable[str]) -> list[tuple[str, int]]:
    """Generators, with row counts, whose exam rows these tasks are made of: `[("words@1", 120)]`."""
    rows: dict[str, int] = {}
    for wanted in tasks(names):
        if isinstance(wanted.data, Generated):
            rows[wanted.data.generator] = max(rows.get(wanted.data.generator, 0), wanted.data.rows)
    return list(rows.items())
