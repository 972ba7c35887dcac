"""Worked examples for few-shot prompts, read from the public files that hold them; none of their text is kept here.

The examples of a task are either rows of a table, or the one text of a source file: a Python module with a list of
records, a harness's YAML with Q/A lines, or one of the BIG-Bench Hard prompt files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache

from tercet.evals.layout import Shot, ask
from tercet.evals.task import TaskError
from tercet.hub import PART, Record, rows_with
from tercet.rows import Messages

STEPS = "A: Let's think step by step."  # the opening of every BIG-Bench Hard answer
SEED = 1234  # the few-shot seed of the published runs

Shots = Callable[[Record, Sequence[Record]], list[Shot]]
Shown = Callable[[Sequence[Record]], list[tuple[str, ...]]]


def field(name: str) -> Callable[[Record], str]:
    """A record's text in this column."""
    return lambda record: str(record[name])


def turn(name: str) -> Callable[[Record], Messages]:
    """A record's column as the question, as it stands."""
    return lambda record: ask(record[name])


def columns(*names: str) -> Callable[[Record], tuple[str, ...]]:
    """A record's texts in these columns."""
    return lambda record: tuple(str(record[name]) for name in names)


def questions_and_answers(examples: Sequence[Record]) -> list[Shot]:
    """Question and answer pairs: a table's columns of these names, or the Q:/A: lines of a text."""
    if len(examples) != 1 or not set(examples[0]) <= {"text", PART}:
        return pairs_in("question", "answer")(examples)
    pairs = re.findall(r"^\s*Q: (.+?)(?:\\n)*\\?\n\s*A: (.+?)(?:\\n)*\\?$", examples[0]["text"], re.MULTILINE)
    if not pairs:
        raise TaskError(f"the few-shot examples were expected to have Q: and A: lines; got {examples[0]['text']!r:.80}")
    return pairs


def pairs_in(question: str, answer: str) -> Callable[[Sequence[Record]], list[Shot]]:
    """Question and answer pairs from two columns, also of a list of records in a Python file."""
    return lambda examples: [(row[question], row[answer]) for row in rows_with(examples, question, answer)]


def worked(form: str, most: int, pairs: Callable[[Sequence[Record]], list[Shot]]) -> tuple[Shots, Shown]:
    """The first `most` pairs as shots, each question in its `form`; and those questions alone."""
    return (
        lambda record, examples: [(form.format(question), answer) for question, answer in pairs(examples)[:most]],
        lambda examples: [(question,) for question, _ in pairs(examples)[:most]],
    )


# Eight worked solutions (Wei et al.), each closing with "So the answer is N."
gsm8k, gsm8k_shown = worked("Question: {}\nAnswer:", 8, pairs_in("question", "answer"))
# Four worked problems of Minerva, each closing with the phrase that states the final answer.
minerva, minerva_shown = worked("Problem:\n{}\n\nSolution:", 4, pairs_in("problem", "solution"))
# The first 15 of the 16 fixed questions, one for each relation.
popqa, popqa_shown = worked("Q: {} A:", 15, questions_and_answers)
# The six fixed questions that stand before every TruthfulQA question.
primer, primer_shown = worked("Q: {}\nA:", 6, questions_and_answers)


def bbh(record: Record, examples: Sequence[Record]) -> list[Shot]:
    """The three worked examples of the record's task; the task's description stands before the first of them."""
    for example in examples:
        if example.get(PART) == record[PART]:
            description, shots = _bbh_prompt(example["text"])
            asked = [(f"Q: {question}\n{STEPS}", answer) for question, answer in shots]
            return [(f"{description}\n\n{asked[0][0]}", asked[0][1]), *asked[1:]]
    raise TaskError(f"no prompt file for the BIG-Bench Hard task {record[PART]!r}; got {len(examples)} files")


def bbh_shown(examples: Sequence[Record]) -> list[tuple[str, ...]]:
    """The inputs of all worked examples."""
    return [(question,) for example in examples for question, _ in _bbh_prompt(example["text"])[1]]


def drop(record: Record, examples: Sequence[Record]) -> list[Shot]:
    """Three rows drawn from the train split by the few-shot seed, the same for every question."""
    return [(drop_block(row), ", ".join(drop_answers(row)[0])) for row in _drop_drawn(examples)]


def drop_shown(examples: Sequence[Record]) -> list[tuple[str, ...]]:
    """Passages and questions of these three."""
    return list(map(columns("passage", "question"), _drop_drawn(examples)))


def drop_block(record: Record) -> str:
    """Passage and question, up to the word the answer follows."""
    return f"Passage: {record['passage']}\nQuestion: {record['question']}\nAnswer:"


def drop_answers(record: Record) -> list[list[str]]:
    """The different gold answers of a DROP row as lists of spans; a number or a date ("day month year") is one span."""
    more = record["validated_answers"]
    rest = [
        dict(zip(("number", "date", "spans"), parts, strict=True))
        for parts in zip(more["number"], more["date"], more["spans"], strict=True)
    ]
    spans = [_drop_spans(answer) for answer in (record["answer"], *rest)]
    return [list(answer) for answer in dict.fromkeys(map(tuple, spans)) if answer]


def _drop_drawn(examples: Sequence[Record]) -> list[Record]:
    return random.Random(SEED).sample(examples, 3)


def _drop_spans(answer: Record) -> list[str]:
    if answer["number"]:
        return [str(answer["number"])]
    if answer["spans"]:
        return list(answer["spans"])
    date = " ".join(answer["date"][part] for part in ("day", "month", "year")).strip()
    return [" ".join(date.split())] if date else []


@cache
def _bbh_prompt(text: str) -> tuple[str, tuple[Shot, ...]]:
    """Description and shots of one prompt file: a canary, a line of dashes, the description, and Q:/A: examples."""
    description, *parts = text.split("-----\n", 1)[-1].strip().split("\n\nQ: ")
    shots = [part.split(f"\n{STEPS}", 1) for part in parts]
    if not shots or any(len(shot) != 2 for shot in shots):
        raise TaskError(f"expected a description and examples that answer with {STEPS!r}; got {text!r:.80}")
    return description, tuple((question, answer.strip()) for question, answer in shots)
