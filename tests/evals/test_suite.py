"""Suites: which tasks make a row, which rows make an average, and the published numbers as a check."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tercet.evals import suite
from tercet.evals.task import TaskError, items
from tercet.rows import Message, Row, Source

# Published columns: rows in the suite's order; the average comes last.
TULU_8B = (68.2, 29.1, 55.0, 69.0, 62.6, 43.7, 87.6, 83.9, 79.2, 82.4, 34.5, 85.5)
TULU_70B = (83.1, 46.5, 67.6, 85.0, 74.3, 63.0, 93.5, 92.4, 88.0, 83.2, 49.8, 88.3)
TULU_405B = {"MMLU": 87.0, "PopQA": 55.5, "BBH": 88.6, "MATH": 67.3, "GSM8K": 95.5, "HumanEval": 95.9}
TULU_405B |= {"HumanEval+": 92.9, "IFEval": 86.0, "AlpacaEval 2": 51.4, "Safety": 86.7}
SAFETY_8B = (94.7, 93.3, 98.5, 85.5, 62.0, 78.8)
UNSEEN_8B = {"GPQA": 35.7, "MMLU-Pro": 44.3, "AGIEval": 59.3, "DeepMind Math": 35.4}
UNSEEN_8B |= {"BigCodeBench-Hard": 7.4, "IFEval-OOD": 24.3, "HREF": 32.7}


def scored(name: str, rows: dict[str, float], stderr: float | None = 0.01) -> dict[str, Any]:
    """Scores of every task of a suite, each task of a row with the row's number."""
    return {
        task: {"score": rows[row], "stderr": stderr}
        for row, members in suite.SUITES[name].rows.items()
        for task in members
    }


def dev(*values: float) -> dict[str, Any]:
    return scored("dev", dict(zip(suite.SUITES["dev"].rows, values, strict=True)))


@pytest.mark.parametrize(("values", "published"), [(TULU_8B, 65.1), (TULU_70B, 76.2)])
def test_twelve_rows_average_to_the_published_number(values: tuple[float, ...], published: float) -> None:
    found = suite.averages(dev(*values))["dev"]["averages"]
    assert round(found["12 rows"]["score"], 1) == published


def test_ten_rows_average_to_the_published_number_of_the_largest_model() -> None:
    rows = {**TULU_405B, "TruthfulQA": 0.0, "DROP": 1e6}
    found = suite.averages(scored("dev", rows))["dev"]["averages"]
    assert round(found["10 rows"]["score"], 1) == 80.7
    assert round(found["9 rows, no safety"]["score"], 1) == 80.0


def test_safety_is_the_plain_mean_of_six_sets_and_one_row_of_twelve() -> None:
    six = dict(zip(suite.SUITES["safety"].rows, SAFETY_8B, strict=True))
    rest = {name: entry for name, entry in dev(*TULU_8B).items() if name not in suite.SUITES["safety"].tasks}
    found = suite.averages({**rest, **scored("safety", six)})
    assert round(found["safety"]["averages"]["6 rows"]["score"], 1) == 85.5
    row, mean = found["dev"]["rows"]["Safety"], found["safety"]["averages"]["6 rows"]
    assert (row["score"], row["stderr"]) == (mean["score"], mean["stderr"])
    assert row["tasks"] == suite.SUITES["safety"].tasks
    assert round(found["dev"]["averages"]["12 rows"]["score"], 1) == 65.1


def test_unseen_averages_are_the_published_ones() -> None:
    found = suite.averages(scored("unseen", UNSEEN_8B))["unseen"]["averages"]
    assert round(found["7 rows"]["score"], 1) == pytest.approx(34.2, abs=0.1001)  # the printed rows are rounded
    assert round(found["5 rows"]["score"], 1) == 32.4


def test_averages_by_hand_with_their_errors() -> None:
    values = [0.1 * i for i in range(12)]
    found = suite.averages(dev(*values))["dev"]
    assert found["averages"]["12 rows"]["score"] == pytest.approx(0.55)
    row_errors = [0.01] * 11 + [0.01 * math.sqrt(6) / 6]  # safety is a mean of six
    twelve = math.sqrt(sum(error**2 for error in row_errors)) / 12
    assert found["averages"]["12 rows"]["stderr"] == pytest.approx(twelve)
    assert found["averages"]["10 rows"]["score"] == pytest.approx((6.6 - 0.2 - 0.4) / 10)
    assert found["averages"]["9 rows, no safety"]["score"] == pytest.approx((6.6 - 0.2 - 0.4 - 1.1) / 9)
    assert list(found["rows"])[:3] == ["MMLU", "PopQA", "TruthfulQA"]


def test_the_average_of_a_score_without_an_error_has_none() -> None:
    scores = dev(*TULU_8B)
    scores["drop@1"]["stderr"] = None
    found = suite.averages(scores)["dev"]
    assert found["averages"]["12 rows"]["stderr"] is None
    assert found["rows"]["MMLU"]["stderr"] is not None


@pytest.mark.parametrize("missing", ["drop@1", "xstest@1", "alpacaeval@1"])
def test_an_incomplete_suite_has_no_average(missing: str) -> None:
    scores = dev(*TULU_8B)
    del scores[missing]
    assert "dev" not in suite.averages(scores)


def test_other_forms_of_a_task_do_not_complete_a_suite() -> None:
    scores = dev(*TULU_8B)
    scores["mmlu:mc@1"] = scores.pop("mmlu:cot@1")
    assert list(suite.averages(scores)) == ["safety"]
    assert suite.averages(scored("quick", dict.fromkeys(suite.SUITES["quick"].rows, 1.0))) == {}


def test_what_is_asked_beside_a_suite_does_not_count() -> None:
    assert "mmlu:mc@1" in suite.SUITES["dev"].tasks
    scores = dev(*TULU_8B) | {"mmlu:mc@1": {"score": -1e6, "stderr": 1e6}}
    assert suite.averages(scores) == suite.averages(dev(*TULU_8B))


def test_every_row_left_out_is_a_row() -> None:
    for one in suite.SUITES.values():
        assert all(row in one.rows for left in one.without.values() for row in left)
        for label, left in one.without.items():
            assert int(label.split()[0]) == len(one.rows) - len(left)
        assert len(set(one.tasks)) == len(one.tasks)


def test_the_unseen_suite_is_locked_in_every_form() -> None:
    assert suite.locked(["unseen"]) == suite.SUITES["unseen"].tasks
    assert suite.locked(["quick", "dev", "safety", "lm"]) == []
    assert suite.locked(["words@1", "gpqa:bpb@1", "agieval@1"]) == ["gpqa:bpb@1", "agieval@1"]
    assert all(suite.locked([name]) for name in suite.LOCKED)


@pytest.mark.parametrize("name", ["gsm8k:bpb@2", "truthfulqa:bpb@1", "mmlu:mc:bpb@1", "words:bpb@1"])
def test_every_kind_of_task_has_bits_per_byte_of_its_right_answer(name: str) -> None:
    found = suite.task(name)
    assert (found.id, found.metric, found.verifier, found.judge, found.options) == (name, "bpb", "", "", None)
    assert found.data == suite.task(name.replace(":bpb", "")).data


def test_bits_per_byte_of_made_rows_ask_for_the_right_answers_text() -> None:
    rows = [Row("f0", (Message("user", "Capital?"), Message("assistant", "Rome")), "facts@1", reference='["Oslo"]')]
    (facts,) = items(suite.task("facts:bpb@1"), rows)
    assert (facts.options, facts.gold, facts.reference) == (("Rome",), 0, "Rome")


@pytest.mark.parametrize("name", ["gsm8k:bpb@1", "gsm8k:bpb", ":bpb@1", "nope:bpb@1", "gsm8k@1", ""])
def test_names_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(TaskError, match="no benchmark task is called"):
        suite.task(name)


def test_sources_name_items_and_examples_once() -> None:
    found = suite.sources(["gsm8k@2", "gsm8k:bpb@2", "quick"])
    assert len(found) == len(set(found)) >= 2
    assert all(isinstance(source, Source) for source in found)
    assert "openai/gsm8k" in {source.path for source in found}
    assert suite.sources(["quick"]) == []
    assert {source.split for source in suite.sources(["mmlu:mc@1"])} >= {"test", "dev"}


def test_every_suite_can_be_named_with_its_sources_and_needs() -> None:
    for name, one in suite.SUITES.items():
        assert [task.id for task in suite.tasks([name])] == one.tasks
        assert bool(suite.sources([name])) != bool(suite.needs([name]))
