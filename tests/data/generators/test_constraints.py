"""The instruction rows: every answer passes its verifier, splits share no topic, and a constraint can be dropped."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

from tercet.data import tables
from tercet.data.generators.constraints import KINDS, LAYOUTS, drop_one, generate
from tercet.data.generators.phrases import phrases, topics
from tercet.rows import Row, read_rows, write_table
from tercet.verify import verifier

Split = Literal["train", "test"]
TRAIN, BENCHMARK = topics("train"), topics("test")
SPLITS: tuple[Split, ...] = ("train", "test")


@cache
def rows_of(split: Split) -> list[Row]:
    return generate(500, split, 17)


def constraints_of(row: Row) -> list[dict[str, str]]:
    return json.loads(row.reference)


def grams(text: str) -> list[tuple[str, ...]]:
    words = text.lower().translate(str.maketrans('.?!:;,()"-\n', " " * 11)).split()
    return [tuple(words[i : i + 8]) for i in range(len(words) - 7)]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_passes_its_verifier(split: Split) -> None:
    for row in rows_of(split):
        assert row.answer is not None
        assert verifier(row.verifier)(row.answer, row.reference).score == 1, row


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_gives_the_same_rows_and_another_seed_others(split: Split) -> None:
    assert generate(40, split, 5) == generate(40, split, 5)
    assert generate(40, split, 5) == generate(60, split, 5)[:40]
    assert generate(40, split, 5) != generate(40, split, 6)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_distinct_and_labelled(split: Split) -> None:
    rows = rows_of(split)
    assert [row.id for row in rows] == [f"constraints-{tables.SEEDS[split]}-{n}" for n in range(500)]
    assert len({row.user_turns[0] for row in rows}) == 500
    assert {(row.source, row.skill, row.verifier) for row in rows} == {("constraints@1", "constraints", "tulu_if@1")}
    assert all([turn.role for turn in row.messages] == ["user", "assistant"] for row in rows)


def test_the_splits_share_no_topic_and_no_fact() -> None:
    assert not TRAIN.keys() & BENCHMARK.keys()
    assert not {fact for facts in TRAIN.values() for fact in facts} & {
        fact for facts in BENCHMARK.values() for fact in facts
    }
    assert {row.template for row in rows_of("train")} <= TRAIN.keys()
    assert {row.template for row in rows_of("test")} <= BENCHMARK.keys()
    assert len(TRAIN) >= 60
    assert len(BENCHMARK) >= 30


def test_hardly_a_training_prompt_copies_a_benchmark_prompt() -> None:
    train = [set(grams(row.user_turns[0])) for row in rows_of("train")]
    copied = set()
    for row in rows_of("test")[:150]:
        own = grams(row.user_turns[0])
        for number, other in enumerate(train):
            places = {i + k for i, gram in enumerate(own) if gram in other for k in range(8)}
            if len(places) > 0.5 * (len(own) + 7):
                copied.add(number)
    assert len(copied) <= 0.02 * len(train)


@pytest.mark.parametrize("split", SPLITS)
def test_each_row_has_one_to_three_of_many_kinds(split: Split) -> None:
    counts = [len(constraints_of(row)) for row in rows_of(split)]
    assert set(counts) == {1, 2, 3}
    found = {constraint["func_name"] for row in rows_of(split) for constraint in constraints_of(row)}
    assert found == {kind.func_name for kind in KINDS.values()}
    assert len(found) >= 12


def test_each_kind_has_three_wordings_in_training_and_one_kept_for_the_benchmark() -> None:
    assert phrases().wordings.keys() == KINDS.keys()
    for wordings in phrases().wordings.values():
        assert len(set(wordings.of("train"))) >= 3
        assert wordings.test
        assert not set(wordings.train) & set(wordings.test)


def test_clashes_and_layouts_name_kinds() -> None:
    assert KINDS.keys() >= LAYOUTS
    assert all(set(kind.clashes.split()) <= KINDS.keys() for kind in KINDS.values())


def test_answers_are_short_enough_for_a_small_model() -> None:
    lengths = sorted(len(row.answer.split()) for row in rows_of("train") if row.answer)
    assert 25 <= lengths[250] <= 45
    assert lengths[-1] <= 70


@pytest.mark.parametrize("facts", [*TRAIN.values(), *BENCHMARK.values()], ids=[*TRAIN, *BENCHMARK])
def test_facts_are_plain_sentences(facts: tuple[str, ...]) -> None:
    assert len(facts) == len(set(facts)) == 5
    for fact in facts:
        assert fact.isascii()
        assert fact[0].isupper()
        assert fact.endswith(".")
        assert not set(fact[:-1]) & set('.,?!"[]*<>')


@pytest.mark.parametrize("split", SPLITS)
def test_drop_one_removes_exactly_one_sentence(split: Split, tmp_path: Path) -> None:
    write_table(tmp_path / "rows.parquet", rows_of(split))
    for row in read_rows(tmp_path / "rows.parquet"):
        constraints = constraints_of(row)
        for index, dropped in enumerate(constraints):
            weaker = drop_one(row, index)
            assert weaker is not None
            assert weaker.answer is None
            left = [constraint for constraint in constraints if constraint is not dropped]
            assert (json.loads(weaker.reference) if left else weaker.reference) == (left or "")
            before, after = row.user_turns[0].split(dropped["text"])
            assert weaker.user_turns[0].split() == (before + after).split()
            assert weaker.user_turns[0] == weaker.user_turns[0].strip()
            assert all(weaker.user_turns[0].count(constraint["text"]) == 1 for constraint in left)


def test_drop_one_of_what_is_not_there_is_none() -> None:
    row = rows_of("train")[0]
    assert drop_one(row, len(constraints_of(row))) is None
    assert drop_one(row, -1) is None
    assert drop_one(Row("x", row.messages, verifier="gsm8k@1", reference="5"), 0) is None
    assert (
        drop_one(Row("x", row.messages, verifier="tulu_if@1", reference='[{"func_name": "validate_title"}]'), 0) is None
    )


def test_a_constraint_can_be_checked_alone() -> None:
    for row in rows_of("test")[:50]:
        for constraint in constraints_of(row):
            assert verifier("tulu_if@1")(row.answer or "", json.dumps(constraint)).score == 1
