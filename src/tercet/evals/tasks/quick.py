"""The quick suite: four small tasks whose rows our own generators write; a laptop evaluates them in a minute."""

from __future__ import annotations

import json
import random
from functools import partial

from tercet.evals.task import Choices, Generated, GoldAnswers, Task, TaskError
from tercet.rows import Row, Sampling


def _answer(row: Row) -> str:
    if row.answer is None:
        raise TaskError(f"{row.source}, row {row.id!r}: expected a final assistant turn that holds the right answer")
    return row.answer


def _right_among_wrong(row: Row) -> Choices:
    """The answer among the wrong ones of `row.reference` (a JSON list), in an order drawn from the row's id alone."""
    try:
        wrong = json.loads(row.reference)
    except json.JSONDecodeError:
        wrong = None
    if not isinstance(wrong, list) or not wrong or not all(isinstance(text, str) for text in wrong):
        raise TaskError(
            f"{row.source}, row {row.id!r}: expected a JSON list of wrong answers as reference answer, got "
            f"{row.reference!r:.80}"
        )
    options = [_answer(row), *wrong]
    random.Random(f"facts@1/{row.id}").shuffle(options)
    return options, options.index(_answer(row))


made = partial(Task, version=1, prompt=lambda row: row.prompt)  # a task on rows of our own generators
TASKS = (
    made(
        name="words",
        skill="word problems",
        data=Generated("words@1", rows=120),
        reference=lambda row: row.reference,
        verifier="gsm8k@1",
        sampling=Sampling(max_new_tokens=160),
        gold=GoldAnswers(
            lambda row: f"So the answer is {row.reference}.", lambda row: f"So the answer is {row.reference}1."
        ),
        description="Word problems from templates that no training row uses; the last number written must be right.",
    ),
    made(
        name="constraints",
        skill="constraints",
        data=Generated("constraints@1", rows=120),
        reference=lambda row: row.reference,
        verifier="tulu_if@1",
        sampling=Sampling(max_new_tokens=160),
        gold=GoldAnswers(_answer, lambda row: ""),
        description="Instructions with one to three checkable constraints on unseen topics; all of them must hold.",
    ),
    made(
        name="talk",
        skill="chat",
        data=Generated("talk@1", rows=60),
        reference=_answer,
        metric="bpb",
        description="Bits per byte of ordinary answers; it rises when training makes the model forget how to talk.",
    ),
    made(
        name="facts",
        skill="knowledge",
        data=Generated("facts@1", rows=60),
        reference=_answer,
        metric="choice",
        options=_right_among_wrong,
        description="Short facts: the right answer must be more likely than three wrong ones as the assistant's turn.",
    ),
)
