"""The texts of the instruction rows: everyday topics with a few plain facts, and the phrases of `phrases.toml`.

Train and benchmark topics are disjoint. Facts avoid commas, quotes and pronouns that point to another fact, so that any
selection of them, in order, reads well; the first one names the subject. A proper name that begins a fact must be
part of the topic's name, because facts are also used in mid-sentence.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from tercet.data import tables

Texts = tuple[str, ...]
Splits = dict[str, Texts]


@dataclass(frozen=True, config=tables.STRICT)
class TopicFacts:
    """A topic with its facts."""

    topic: str
    facts: Texts


@dataclass(frozen=True, config=tables.STRICT)
class Wordings:
    """How one kind of constraint is put, in both splits and in one alone."""

    both: Texts
    train: Texts
    test: Texts

    def of(self, split: str) -> Texts:
        """The wordings of one split."""
        return self.both + (self.train if split == "train" else self.test)


@dataclass(frozen=True, config=tables.STRICT)
class Phrases:
    """The parts of requests and answers beside the facts; the table says what each is for."""

    requests: Splits
    letters: Splits
    statements: Splits
    people: Splits
    end_phrases: Splits
    splitters: Splits
    wordings: dict[str, Wordings]
    choices: tuple[tuple[str, str], ...]
    greetings: Texts
    closings: Texts
    links: Texts
    titles: Texts
    openers: dict[str, str]
    postscripts: Texts
    blanks: tuple[Texts, ...]
    numbers: Texts
    pronouns: Texts
    stop_words: Texts


def phrases() -> Phrases:
    """The phrases of `phrases.toml`."""
    return tables.document("phrases.toml", Phrases)


def topics(split: str) -> dict[str, Texts]:
    """The topics of a split, each with its facts."""
    return {entry.topic: entry.facts for entry in tables.entries(f"topics_{split}.jsonl", TopicFacts)}
