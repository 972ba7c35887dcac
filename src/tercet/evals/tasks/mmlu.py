"""MMLU in its four forms: letters by likelihood, two wordings of reasoning, and cloze."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tercet.evals.layout import ask
from tercet.evals.task import Choices, GoldAnswers
from tercet.evals.tasks import shots
from tercet.evals.tasks.declared import Functions
from tercet.hub import Record

LETTERS = "ABCD"
REMINDER = 'Remember to reason concisely and to close with exactly "Therefore, the answer is (A)", (B), (C) or (D).'
# What opens a prompt: the line of every harness, the published request to summarise, and the later wording.
HEADING = "The following are multiple choice questions (with answers) about {}.\n\n"
SUMMARIZE = (
    "Here is a multiple-choice question about {}. Summarize your reasoning in a few concise words "
    'and close with "Therefore, the answer is: X", where X is the letter A, B, C or D.\n\n'
)
BRACKETED = (
    "Answer this multiple-choice question about {}. Reason concisely, and let your last words be "
    '"Therefore, the answer is (A)" with the letter you choose in the parentheses.\n\n'
)


def _opening(form: str) -> Callable[[Record], str]:
    """The words before the first question, with the record's subject in them."""
    return lambda record: form.format(str(record["subject"]).replace("_", " "))


def subject_examples(record: Record, examples: Sequence[Record]) -> list[Record]:
    """The first five dev rows of the record's subject, in file order."""
    return [row for row in examples if row["subject"] == record["subject"]][:5]


def _shown(examples: Sequence[Record]) -> list[tuple[str, ...]]:
    """The questions of the first five rows of every subject."""
    firsts = {row["subject"]: row for row in examples}.values()
    return [(str(row["question"]),) for first in firsts for row in subject_examples(first, examples)]


def right_letter(record: Record) -> str:
    """The letter of the right option."""
    return LETTERS[record["answer"]]


def _letter_options(record: Record) -> Choices:
    """The four letters as they follow "Answer:", each with its leading space."""
    return [f" {letter}" for letter in LETTERS], record["answer"]


def _options(record: Record, mark: str) -> str:
    lines = [f" {mark.format(letter)} {text}" for letter, text in zip(LETTERS, record["choices"], strict=True)]
    return "\n".join([f"Question: {record['question']}", *lines])


def _block(record: Record) -> str:
    return _options(record, "{}.") + "\nAnswer:"


def shots_of(question: Callable[[Record], str], answer: Callable[[Record], str]) -> shots.Shots:
    """The examples of a record's subject, asked and answered in these words."""
    return lambda record, examples: [(question(row), answer(row)) for row in subject_examples(record, examples)]


def letter_reference(answer: str, letters: str, *, brackets: bool) -> str:
    """What `letter@1` reads; with `brackets` the letter has to stand in parentheses."""
    return json.dumps({"answer": answer, "letters": letters, "brackets": brackets})


def _closing(form: str, shift: int = 0) -> Any:
    return lambda record: form.format(LETTERS[(record["answer"] + shift) % 4])


def _cloze(record: Record) -> str:
    return f"Question: {record['question']}\nAnswer:"


def _right_text(record: Record) -> str:
    return str(record["choices"][record["answer"]]).strip()


def _texts(record: Record) -> Choices:
    texts = list(dict.fromkeys(text.strip() for text in record["choices"]))
    return [f" {text}" for text in texts], texts.index(_right_text(record))


FUNCTIONS: dict[str, Functions] = {
    "mmlu:mc": {
        "prompt": lambda record: ask(_block(record)),
        "opening": _opening(HEADING),
        "shots": shots_of(_block, right_letter),
        "fields": shots.columns("question"),
        "beside": lambda record: tuple(record["choices"]),
        "shown": _shown,
        "reference": right_letter,
        "options": _letter_options,
        "subset": shots.field("subject"),
    },
    "mmlu:cot": {
        "prompt": lambda record: ask(_block(record)),
        "opening": _opening(SUMMARIZE),
        "fields": shots.columns("question"),
        "beside": lambda record: tuple(record["choices"]),
        "reference": lambda record: letter_reference(right_letter(record), LETTERS, brackets=False),
        "subset": shots.field("subject"),
        "gold": GoldAnswers(_closing("Therefore, the answer is: {}"), _closing("Therefore, the answer is: {}", 1)),
    },
    "mmlu:cot_brackets": {
        "prompt": lambda record: ask(f"{_options(record, '({})')}\n\n{REMINDER}"),
        "opening": _opening(BRACKETED),
        "reference": lambda record: letter_reference(right_letter(record), LETTERS, brackets=True),
        "gold": GoldAnswers(_closing("Therefore, the answer is ({})"), _closing("Therefore, the answer is ({})", 1)),
    },
    "mmlu:rc": {
        "prompt": lambda record: ask(_cloze(record)),
        "opening": None,
        "shots": shots_of(_cloze, _right_text),
        "reference": _right_text,
        "options": _texts,
    },
}
