"""`talk@1`: short chat and knowledge turns; `facts@1`: questions with one short right answer.

They are ordinary chat beside the rows of skills. Train and benchmark have different topics. A fact carries three wrong
answers in `reference` (a JSON list), so that a benchmark can offer a choice.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic.dataclasses import dataclass

from tercet.data import tables
from tercet.rows import Message, Messages, Row, RowError

Split = Literal["train", "test"]
SHORT = "Answer in a few words."


@dataclass(frozen=True, config=tables.STRICT)
class Topic:
    """A topic of talk: phrasings of the question, a short, true answer, and perhaps a second exchange."""

    name: str
    asks: tuple[str, ...]
    answer: str
    then: tuple[str, str] | None = None


@dataclass(frozen=True, config=tables.STRICT)
class ChatFact:
    """A fact: phrasings of the question, the short right answer and plausible wrong ones."""

    name: str
    asks: tuple[str, ...]
    answer: str
    wrong: tuple[str, str, str]


Entry = TypeVar("Entry", Topic, ChatFact)


def topics(split: str) -> tuple[Topic, ...]:
    """The topics of a split."""
    return tables.entries(f"talk_{split}.jsonl", Topic)


def facts(split: str) -> tuple[ChatFact, ...]:
    """The facts of a split."""
    return tables.entries(f"facts_{split}.jsonl", ChatFact)


def generate(num_rows: int, split: Split, seed: int) -> list[Row]:
    """Make `num_rows` distinct conversations of one or two exchanges, spread evenly over the topics of the split."""
    dealt = _deal("talk@1", topics(split), num_rows, random.Random(f"talk@1/{tables.SEEDS[split]}/{seed}"))
    return [
        Row(f"talk-{tables.SEEDS[split]}-{i}", _talk(topic, ask), "talk@1", "talk", template=topic.name)
        for i, (topic, ask) in enumerate(dealt)
    ]


def generate_facts(num_rows: int, split: Split, seed: int) -> list[Row]:
    """Make `num_rows` distinct knowledge questions; the answer is right, and `reference` lists three wrong ones."""
    dealt = _deal("facts@1", facts(split), num_rows, random.Random(f"facts@1/{tables.SEEDS[split]}/{seed}"))
    return [
        Row(
            *(f"facts-{tables.SEEDS[split]}-{i}", _exchange(f"{ask} {SHORT}", fact.answer), "facts@1", "facts"),
            reference=json.dumps(fact.wrong, ensure_ascii=False),
            template=fact.name,
        )
        for i, (fact, ask) in enumerate(dealt)
    ]


def _talk(topic: Topic, ask: str) -> Messages:
    return _exchange(ask, topic.answer) + (_exchange(*topic.then) if topic.then else ())


def _exchange(question: str, answer: str) -> Messages:
    return Message("user", question), Message("assistant", answer)


def _deal(name: str, entries: Sequence[Entry], num_rows: int, rng: random.Random) -> list[tuple[Entry, str]]:
    """Pairs of entry and phrasing: every entry once in random order, then every entry with its next phrasing."""
    phrasings = [(entry, rng.sample(entry.asks, len(entry.asks))) for entry in entries]
    dealt: list[tuple[Entry, str]] = []
    for turn in range(max(len(asks) for _, asks in phrasings)):
        deal = [(entry, asks[turn]) for entry, asks in phrasings if turn < len(asks)]
        dealt += rng.sample(deal, len(deal))
    if len(dealt) < num_rows:
        raise RowError(f"{name} was asked for {num_rows} rows and can make {len(dealt)}; ask for fewer")
    return dealt[:num_rows]
