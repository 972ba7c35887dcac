"""MMLU in its four forms: letters by likelihood, two wordings of reasoning, and cloze."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tercet.evals.layout import ask
from tercet.evals.task import Choices, GoldAnswers
from tercet.evals.tasks import shots
from tercet.hub import Record
from tercet.rows import Sampling, Source

LETTERS = "ABCD"
REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"
DATA = (Source("cais/mmlu", subset="all", split="test", revision=REVISION),)
REMINDER = 'Remember to reason concisely and to close with exactly "Therefore, the answer is (A)", (B), (C) or (D).'
DEV = (Source("cais/mmlu", subset="all", split="dev", revision=REVISION),)


def subject_line(record: Record) -> str:
    """The line that opens a multiple-choice prompt in every harness, and the blank line after it."""
    return f"The following are multiple choice questions (with answers) about {_subject(record)}.\n\n"


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


def letter_options(record: Record) -> Choices:
    """The four letters as they follow "Answer:", each with its leading space."""
    return [f" {letter}" for letter in LETTERS], record["answer"]


def _subject(record: Record) -> str:
    return str(record["subject"]).replace("_", " ")


def _options(record: Record, mark: str) -> str:
    lines = [f" {mark.format(letter)} {text}" for letter, text in zip(LETTERS, record["choices"], strict=True)]
    return "\n".join([f"Question: {record['question']}", *lines])


def _block(record: Record) -> str:
    return _options(record, "{}.") + "\nAnswer:"


def shots_of(question: Callable[[Record], str], answer: Callable[[Record], str]) -> shots.Shots:
    """The examples of a record's subject, asked and answered in these words."""
    return lambda record, examples: [(question(row), answer(row)) for row in subject_examples(record, examples)]


def _summarize(record: Record) -> str:
    return (
        f"Here is a multiple-choice question about {_subject(record)}. Summarize your reasoning in a few concise words "
        'and close with "Therefore, the answer is: X", where X is the letter A, B, C or D.\n\n'
    )


def _bracketed(record: Record) -> str:
    return (
        f"Answer this multiple-choice question about {_subject(record)}. Reason concisely, and let your last words be "
        '"Therefore, the answer is (A)" with the letter you choose in the parentheses.\n\n'
    )


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


MC = shots.public(
    name="mmlu:mc",
    skill="knowledge",
    data=DATA,
    examples=DEV,
    prompt=lambda record: ask(_block(record)),
    opening=subject_line,
    shots=shots_of(_block, right_letter),
    fields=shots.columns("question"),
    shown=_shown,
    reference=right_letter,
    metric="choice",
    options=letter_options,
    subset=shots.field("subject"),
    aggregate="macro",
    description="MMLU with five examples of the same subject; the most likely of the letters A to D is the answer.",
    licence="MIT",
)
COT = shots.public(
    name="mmlu:cot",
    skill="knowledge",
    data=DATA,
    prompt=lambda record: ask(_block(record)),
    opening=_summarize,
    fields=shots.columns("question"),
    reference=lambda record: letter_reference(right_letter(record), LETTERS, brackets=False),
    verifier="letter@1",
    measures={"strict": ("strict",)},
    sampling=Sampling(max_new_tokens=512, stop=("Question:",)),
    subset=shots.field("subject"),
    aggregate="macro",
    gold=GoldAnswers(_closing("Therefore, the answer is: {}"), _closing("Therefore, the answer is: {}", 1)),
    description="MMLU without examples: a short summary of the reasoning, then the letter in a closing phrase.",
    variant='"summarize", the published row; mmlu:cot_brackets@1 is the later wording with the letter in parentheses',
    licence="MIT",
)
TASKS = (
    MC,
    COT,
    replace(
        COT,
        name="mmlu:cot_brackets",
        prompt=lambda record: ask(f"{_options(record, '({})')}\n\n{REMINDER}"),
        opening=_bracketed,
        reference=lambda record: letter_reference(right_letter(record), LETTERS, brackets=True),
        sampling=Sampling(max_new_tokens=2048),
        gold=GoldAnswers(_closing("Therefore, the answer is ({})"), _closing("Therefore, the answer is ({})", 1)),
        description="MMLU without examples: concise reasoning, then the letter in parentheses in a closing phrase.",
        variant='"0shot_cot::tulu3", the letter in parentheses; mmlu:cot@1 is the published row',
    ),
    replace(
        MC,
        name="mmlu:rc",
        prompt=lambda record: ask(_cloze(record)),
        opening=None,
        shots=shots_of(_cloze, _right_text),
        reference=_right_text,
        options=_texts,
        layout="plain",
        choose_by="per_char",
        description="MMLU as cloze: the answer text with the highest log-probability per character.",
        variant="the OLMES cloze form, in plain text; options with the same text (9 questions) are one option",
    ),
)
