"""The check of the verifiers: a good one agrees with its own reference answers, a bad one is caught, bad data named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tercet.evals import gold as gold_module
from tercet.evals import suite
from tercet.evals.gold import check
from tercet.evals.layout import ask
from tercet.evals.task import Generated, GoldAnswers, Task, TaskError
from tercet.rows import Message, Row, RowError, Sampling, Source
from tercet.verify import Grade, VerifierError

SUMS = Task(
    name="sums",
    version=1,
    skill="sums",
    data=(Source("someone/sums", split="test"),),
    prompt=lambda record: ask(record["question"]),
    reference=lambda record: str(record["answer"]),
    verifier="gsm8k@1",
    split="test",
    sampling=Sampling(),
    gold=GoldAnswers(lambda record: f"It is {record['answer']}.", lambda record: f"It is {record['answer']}1."),
)


def rows_of(folder: Path, *rows: Any) -> dict[str, str]:
    file = folder / "sums.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"someone/sums": str(file)}


@pytest.fixture
def mirror(tmp_path: Path) -> dict[str, str]:
    return rows_of(tmp_path, *({"question": f"{i} + {i} = ü?", "answer": 2 * i} for i in range(7)))


def test_a_good_verifier_accepts_every_reference_and_refuses_every_spoiled_one(mirror: dict[str, str]) -> None:
    found = check(SUMS, mirror)
    assert (found.task, found.verifier, found.n, found.accepted, found.refused) == ("sums@1", "gsm8k@1", 7, 7, 7)
    assert (found.agreement, found.missed, found.note) == (1, (), "")


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_first_items_may_be_enough(mirror: dict[str, str], limit: int) -> None:
    assert check(SUMS, mirror, limit).n == min(limit, 7)


@pytest.mark.parametrize(
    ("grade", "counts", "missed"),
    [
        (Grade(1.0, "x"), (7, 0), "spoiled answer: score 1, graded, answer 'x'"),
        (Grade(0.0, "x"), (0, 7), "right answer: score 0, graded, answer 'x'"),
        (Grade(0.5, ""), (0, 7), "right answer: score 0.5"),
        (Grade(0.0, "", "error", "no sandbox"), (0, 0), "error, answer '' no sandbox"),
    ],
)
def test_a_bad_verifier_is_caught(
    mirror: dict[str, str], monkeypatch: pytest.MonkeyPatch, grade: Grade, counts: tuple[int, int], missed: str
) -> None:
    monkeypatch.setattr(gold_module, "verifier", lambda name: lambda completion, reference: grade)
    found = check(SUMS, mirror)
    assert (found.accepted, found.refused) == counts
    assert missed in found.missed[0][1]
    assert found.missed[0][0] == "test-0"
    assert found.agreement == sum(counts) / 14


def test_one_wrong_verdict_names_its_item(mirror: dict[str, str]) -> None:
    lazy = replace(SUMS, gold=GoldAnswers(SUMS.gold.right, lambda r: "It is 8." if r["answer"] == 8 else "no idea"))
    found = check(lazy, mirror)
    assert [item for item, _ in found.missed] == ["test-4"]
    assert found.agreement == 13 / 14


def test_references_of_generated_tasks_come_from_the_generator() -> None:
    made = [
        Row(f"r{i}", (Message("user", f"{i}?"), Message("assistant", f"It is {i}.")), reference=str(i)) for i in (1, 2)
    ]
    asked: list[Generated] = []

    def generate(data: Generated) -> list[Row]:
        asked.append(data)
        return made

    task = replace(
        SUMS,
        data=Generated("words@1", 2),
        prompt=lambda row: row.prompt,
        reference=lambda row: row.reference,
        gold=GoldAnswers(lambda row: row.answer, lambda row: "It is 3."),
    )
    assert check(task, {}, made=generate).agreement == 1
    assert asked == [Generated("words@1", 2)]
    with pytest.raises(TaskError, match="sums@1: its items come from the generator words@1"):
        check(task, {})


def test_tasks_without_a_checkable_verifier_say_why(tmp_path: Path, mirror: dict[str, str]) -> None:
    modelled = replace(SUMS, verifier="wildguard@1", gold=None)
    assert check(modelled, mirror).note == "an LLM judge grades it"
    unchecked = check(replace(SUMS, gold=None), mirror)
    assert (unchecked.n, unchecked.note) == (0, "not checked: the task declares no gold answers")
    chosen = replace(SUMS, verifier="", metric="choice", options=lambda record: (["a", "b"], 0), gold=None)
    assert "log-probabilities" in check(chosen, mirror).note


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], TaskError, "sums@1: found no items"),
        ([{"question": "x", "anwser": 3}], TaskError, r"sums@1, record 0: is not in the expected layout .*anwser"),
        ([{"question": "x", "answer": ""}], TaskError, "item 'test-0': has no reference answer"),
    ],
)
def test_bad_data_are_named(tmp_path: Path, rows: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(SUMS, rows_of(tmp_path, *rows))


def test_a_reference_that_the_verifier_cannot_read_is_named(mirror: dict[str, str]) -> None:
    with pytest.raises(VerifierError, match=r"drop@1 .*'0'"):
        check(replace(SUMS, verifier="drop@1"), mirror)


def test_a_mirror_that_names_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"absent\.jsonl: no such file"):
        check(SUMS, {"someone/sums": str(tmp_path / "absent.jsonl")})


def test_a_damaged_file_is_said_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"question": "x", "answer": 3}\n{"question": ')
    with pytest.raises(RowError, match=r"sums\.jsonl, line 2: not valid JSON"):
        check(SUMS, {"someone/sums": str(tmp_path / "sums.jsonl")})


@pytest.mark.parametrize("name", [task.id for task in suite.TASKS.values() if task.gold and task.verifier])
def test_every_gold_answer_comes_from_a_task_that_can_use_it(name: str) -> None:
    task = suite.task(name)
    assert task.gold.right is not task.gold.wrong
    assert suite.tasks([name]) == [task]
