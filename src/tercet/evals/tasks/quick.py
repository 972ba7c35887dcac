"""The quick suite: four small tasks whose rows our own generators write; a laptop evaluates them in a minute."""

from __future__ import annotations

import json
import random

from tercet.evals.task import Choices, GoldAnswers, TaskError
from tercet.evals.tasks.declared import Functions, declared
from tercet.rows import Messages, Row


def _prompt(row: Row) -> Messages:
    return row.prompt


def _answer(row: Row) -> str:
    if row.answer is None:
        raise TaskError(f"{row.source}, row {row.id!r}: expected a final assistant turn that holds the right answer")
    return row.answer


def _reference(row: Row) -> str:
    return row.reference


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


_NUMBER = GoldAnswers(
    lambda row: f"So the answer is {row.reference}.", lambda row: f"So the answer is {row.reference}1."
)
FUNCTIONS: dict[str, Functions] = {
    "words": {"prompt": _prompt, "reference": _reference, "gold": _NUMBER},
    "constraints": {"prompt": _prompt, "reference": _reference, "gold": GoldAnswers(_answer, lambda row: "")},
    "talk": {"prompt": _prompt, "reference": _answer},
    "facts": {"prompt": _prompt, "reference": _answer, "options": _right_among_wrong},
}
TASKS = declared(FUNCTIONS)
