"""The records of an evaluation: what is read from a file is written as the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tercet.evals.compare import compare
from tercet.evals.results import write_scores
from tercet.evals.suite import SUITES
from tercet.evals.task import read_benchmark
from tercet.records import Result, Score, TaskCard, dump, read_results, read_scores


@pytest.mark.parametrize("repeats", [1, 3])
def test_results_and_scores_are_written_as_they_were_read(workspace: Any, repeats: int) -> None:
    workspace.write_benchmark()
    workspace.evaluate("gold", repeats=repeats)
    file = workspace.root / "gold" / "results.jsonl"
    assert "".join(map(dump, read_results(file))) == file.read_text()
    scores = {task: score.to_json() for task, score in read_scores(workspace.root / "gold").items()}
    assert json.dumps(scores, indent=2) + "\n" == (workspace.root / "gold" / "scores.json").read_text()


def test_a_card_holds_what_an_eval_stage_decides_only_afterwards(workspace: Any) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    (card,), _ = read_benchmark(workspace.root / "benchmark")
    assert "dtype" not in card.to_json()
    assert TaskCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    later = read_scores(workspace.root / "gold")["words@1"].card
    assert (later.repeats, later.engine, later.sandbox) == (1, "local", None)


def test_a_complete_suite_has_its_averages_in_a_file_and_in_a_comparison(tmp_path: Path) -> None:
    cards = [TaskCard(name) for name in SUITES["safety"].tasks]
    for name, right in (("a", (0.0, 1.0)), ("b", (1.0, 1.0))):
        (tmp_path / name).mkdir()
        lines = [
            Result(task=one.name, item=str(i), score=x, outcome="graded") for one in cards for i, x in enumerate(right)
        ]
        write_scores(tmp_path / name, cards, lines)
    whole = json.loads((tmp_path / "a" / "averages.json").read_text())["safety"]["averages"]["6 rows"]
    line = compare(tmp_path / "a", tmp_path / "b")[-1]
    assert (whole["score"], line.task, line.n) == (0.5, "safety, 6 rows", 12)
    assert (line.a, line.b, line.difference) == pytest.approx((0.5, 1.0, 0.5))
    assert line.stderr == pytest.approx(((3 / 4 - 1 / 16) / 4 / 6) ** 0.5)  # of two items one gained, six times


def test_a_result_that_failed_says_so_and_no_more() -> None:
    failed = Result(task="facts@1", item="0", metric="choice", stop="error", outcome="error", detail="500")
    assert list(failed.to_json())[-6:] == ["output", "stop", "answer", "score", "outcome", "detail"]


def test_one_sample_speaks_for_itself() -> None:
    alone = Result(task="words@1", item="0", output="72")
    assert alone.tries == [alone]


def test_a_score_leaves_out_what_its_metric_does_not_have() -> None:
    assert not {"corpus", "measures", "subsets"} & Score("accuracy", 0.5, 2).to_json().keys()
    assert Score("bpb", 0.9, 2, corpus=0.9).to_json()["corpus"] == 0.9
