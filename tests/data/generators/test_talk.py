"""Talk and facts: distinct, short, and about other things in the benchmark than in training."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tercet.data.generators.talk import ChatFact, Split, Topic, facts, generate, generate_facts, topics
from tercet.rows import Row

TALK: dict[str, tuple[Topic, ...]] = {split: topics(split) for split in ("train", "test")}
FACTS: dict[str, tuple[ChatFact, ...]] = {split: facts(split) for split in ("train", "test")}

CAPACITY = {
    (generate, "train"): 250,
    (generate, "test"): 60,
    (generate_facts, "train"): 120,
    (generate_facts, "test"): 60,
}
each_generator = pytest.mark.parametrize(("make", "split"), CAPACITY)


@each_generator
def test_enough_distinct_rows_exist(make: Callable[..., list[Row]], split: str) -> None:
    rows = make(CAPACITY[make, split], split, 1)
    assert len({row.messages for row in rows}) == len({row.id for row in rows}) == CAPACITY[make, split]
    assert {row.verifier for row in rows} == {""}


@each_generator
def test_the_same_seed_gives_the_same_rows_and_another_seed_gives_others(
    make: Callable[..., list[Row]], split: str
) -> None:
    assert make(50, split, 4) == make(50, split, 4) == make(60, split, 4)[:50]
    assert make(50, split, 4) != make(50, split, 5)


@each_generator
def test_asking_for_too_many_rows_says_how_many_there_are(make: Callable[..., list[Row]], split: str) -> None:
    with pytest.raises(ValueError, match=r"@1 was asked for 5000 rows and can make \d+"):
        make(5000, split, 1)


@pytest.mark.parametrize("table", [TALK, FACTS], ids=["talk", "facts"])
def test_topics_are_distinct_and_no_question_or_answer_is_in_both_splits(table: dict) -> None:
    names = [entry.name for split in table.values() for entry in split]
    asks = [ask.lower() for split in table.values() for entry in split for ask in entry.asks]
    assert len(names) == len(set(names))
    assert len(asks) == len(set(asks))
    if table is TALK:
        answers = [entry.answer for split in table.values() for entry in split]
        assert len(answers) == len(set(answers))


def test_no_fact_of_the_benchmark_is_asked_in_the_talk_of_training() -> None:
    benchmark = {ask for fact in FACTS["test"] for ask in fact.asks}
    assert not benchmark & {ask for topic in TALK["train"] for ask in topic.asks}


def test_talk_covers_the_promised_number_of_topics() -> None:
    assert len(TALK["train"]) >= 120
    assert len(TALK["test"]) >= 60
    assert all(len(topic.asks) == 2 for topic in TALK["train"])


def test_answers_are_one_to_three_sentences_and_questions_one_or_two() -> None:
    for topic in TALK["train"] + TALK["test"]:
        for answer in (topic.answer, *(topic.then[1:] if topic.then else ())):
            assert 5 <= len(answer.split()) <= 55, topic.name
            assert 1 <= sum(answer.count(mark) for mark in (". ", "! ", "? ")) + 1 <= 4, topic.name
            assert answer[-1] in ".!?"
            assert answer.isascii(), topic.name


def test_a_few_conversations_have_two_exchanges_that_alternate() -> None:
    rows = generate(130, "train", 2)
    long = [row for row in rows if len(row.messages) == 4]
    assert 4 <= len(long) <= 20
    assert all([m.role for m in row.messages] == ["user", "assistant"] * 2 for row in long)


@pytest.mark.parametrize("split", ["train", "test"])
def test_facts_have_a_short_answer_and_three_other_wrong_ones(split: Split) -> None:
    for row in generate_facts(60, split, 1):
        wrong = json.loads(row.reference)
        assert len({row.answer, *wrong}) == 4
        assert all(1 <= len(option.split()) <= 6 for option in (row.answer or "", *wrong))
        assert row.messages[0].content.endswith("? Answer in a few words.") or split == "train"
