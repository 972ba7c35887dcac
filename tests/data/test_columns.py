"""Columns that a recipe names become prompts, turns and reference answers, or the columns there are are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tercet.data.reading import Reading
from tercet.data.sources import load
from tercet.recipe import PairMixSpec, SourceSpec
from tercet.rows import Message, Row, RowError
from tercet.verify import verifier

QUESTION = {"q": "Ann has 3 pens and buys 4. How many?", "gold": 7, "level": "easy", "more": {"key": [7, 8]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def read(path: Path, *raws: Any, **options: Any) -> tuple[list[Row], Reading]:
    path.write_text("".join(json.dumps(raw) + "\n" for raw in raws))
    reading = Reading()
    return list(load(SourceSpec(path=str(path), **options), {}, {}, reading)), reading


def test_a_question_and_its_answer_are_a_prompt_that_can_be_graded(path: Path) -> None:
    (row,), reading = read(path, QUESTION, verifier="gsm8k@2", prompt="q", answer="gold")
    assert row.messages == (Message("user", QUESTION["q"]),)
    assert (row.verifier, row.reference, row.skill) == ("gsm8k@2", "7", "words")
    assert verifier(row.verifier)("It is 7.", row.reference).score == 1.0
    assert not reading.left


def test_without_a_verifier_the_answer_is_a_turn(path: Path) -> None:
    (row,), _ = read(path, QUESTION, prompt="q", answer="gold")
    assert (row.user_turns, row.answer, row.verifier) == ([QUESTION["q"]], "7", "")


def test_a_verifier_is_given_more_columns_beside_the_answer(path: Path) -> None:
    names = {"verifier": "string@1", "prompt": "q", "answer": "gold", "info": ["level", "more.key"]}
    (row,), _ = read(path, QUESTION, **names)
    assert json.loads(row.reference) == {"answer": "7", "info": {"level": "easy", "more.key": [7, 8]}}


def test_a_prompt_may_be_messages_and_an_answer_lie_deeper(path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    (row,), _ = read(
        path, {"chat": turns, "more": {"gold": ["4"]}}, verifier="string@1", prompt="chat", answer="more.gold"
    )
    assert [turn.role for turn in row.messages] == ["system", "user"]
    assert row.reference == '["4"]'


@pytest.mark.parametrize(
    ("raw", "reference"),
    [
        ({"question": "2 + 2?", "answer": "Two and two make four.\n#### 1,004"}, "1004"),
        ({"question": "2 + 2?", "answer": "4"}, "4"),
        ({"prompt": "2 + 2?", "completion": "4"}, "4"),
        ({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}, "4"),
    ],
)
def test_the_answer_of_a_known_layout_is_the_reference(path: Path, raw: dict[str, Any], reference: str) -> None:
    (row,), _ = read(path, raw, adapter="auto", verifier="gsm8k@1")
    assert (row.user_turns, row.verifier, row.reference) == (["2 + 2?"], "gsm8k@1", reference)


def test_the_recipe_names_the_column_of_the_reference_of_a_known_layout(path: Path) -> None:
    raw = {"question": "2 + 2?", "answer": "It is four.", "number": 4}
    (row,), reading = read(path, raw, adapter="auto", verifier="gsm8k@1", answer="number")
    assert (row.user_turns, row.reference) == (["2 + 2?"], "4")
    assert not reading.left


@pytest.mark.parametrize(
    ("names", "key"),
    [({"prompt": "question", "answer": "gold"}, "prompt"), ({"prompt": "q", "answer": "more.right"}, "answer")],
)
def test_a_missing_column_is_named_with_those_there_are_at_the_first_row(
    path: Path, names: dict[str, str], key: str
) -> None:
    said = f"row 1: no column '{names[key]}', which the source names as `{key}`; there are: gold, level, more, q$"
    with pytest.raises(RowError, match=said):
        read(path, QUESTION, QUESTION, verifier="string@1", **names)


def test_a_column_that_only_some_rows_lack_makes_them_bad(path: Path) -> None:
    rows = [QUESTION, {"q": "Why?"}, {**QUESTION, "gold": None}, {**QUESTION, "q": 3}]
    found, reading = read(path, *[QUESTION] * 297, *rows[1:], verifier="gsm8k@1", prompt="q", answer="gold")
    assert (len(found), reading.bad.total(), reading.read) == (297, 3, 300)
    assert set(reading.bad) == {
        "no column '…', which the source names as `answer`",
        "has no answer under '…'",
        "expected a text or a list of messages as prompt",
    }


def test_a_reference_that_the_verifier_cannot_read_is_a_bad_row(path: Path) -> None:
    with pytest.raises(RowError, match=r"rows\.jsonl, row 1: "):
        read(path, {"q": "Write.", "gold": "no JSON"}, verifier="tulu_if@1", prompt="q", answer="gold")
    with pytest.raises(RowError, match=r"row 1: has no reference answer for gsm8k@1; name the column .* with `answer`"):
        read(path, QUESTION, verifier="gsm8k@1", prompt="q")


def test_an_unknown_verifier_stops_before_any_row(path: Path) -> None:
    with pytest.raises(RowError, match="unknown verifier 'gsm9k@1'"):
        read(path, QUESTION, verifier="gsm9k@1", prompt="q", answer="gold")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"answer": "gold"}, "`answer` goes with `verifier`"),
        ({"info": ["level"]}, "name one with `verifier`"),
        ({"prompt": "q", "adapter": "alpaca"}, "give one of both"),
        ({"max_bad": 1.5}, "less than or equal to 1"),
    ],
)
def test_columns_without_use_are_refused_when_the_recipe_is_read(names: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceSpec(path="rows.jsonl", **names)


def test_pairs_have_no_verifier() -> None:
    with pytest.raises(ValidationError, match="`verifier` of a source makes rows, and this stage makes pairs"):
        PairMixSpec(sources=[{"path": "a.jsonl", "adapter": "auto", "verifier": "gsm8k@1"}])


def test_keys_of_recipes_that_use_none_of_it_stay() -> None:
    plain = SourceSpec(path="rows.jsonl").model_dump()
    assert not {"max_bad", "strict", "verifier", "prompt", "answer", "info"} & plain.keys()
    assert SourceSpec(path="rows.jsonl", max_bad=0.0).model_dump()["max_bad"] == 0.0
