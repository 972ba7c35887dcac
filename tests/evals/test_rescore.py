"""Stored answers graded again: the same verifier gives the same grades, and the evaluation stays as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tercet.evals import results as results_module
from tercet.evals import run
from tercet.evals.compare import compare
from tercet.evals.fakes import EchoGenerator
from tercet.evals.rescore import rescore
from tercet.evals.task import TaskError
from tercet.rows import Completion
from tercet.stats import CompareError
from tercet.verify import Grade, VerifierError, verifier


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_same_verifiers_say_the_same(workspace: Any, tmp_path: Path, repeats: int) -> None:
    workspace.write_benchmark()
    workspace.evaluate("gold", repeats=repeats)
    before = files(workspace.root / "gold")
    ticks: list[tuple[int, int]] = []
    scores = rescore(workspace.root / "gold", tmp_path / "again", {}, lambda done, total: ticks.append((done, total)))
    assert files(tmp_path / "again") == before == files(workspace.root / "gold")
    assert scores["words@1"].score == 1
    assert ticks[-1] == (14, 14)


def other(name: str) -> Callable[..., Grade]:
    """A verifier that wants capitals, whatever its name, unless it is the evaluation's own."""
    return (
        verifier(name) if name == "gsm8k@1" else lambda text, reference, **how: Grade(float(text.isupper()), text[:3])
    )


def test_another_verifier_reads_the_stored_answers(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    monkeypatch.setattr(results_module, "verifier", other)
    found = rescore(workspace.root / "gold", tmp_path / "again", {"words@1": "capitals@1"})
    assert found["words@1"].score == 0
    assert found["words@1"].card.verifier == "capitals@1"
    (line,) = compare(workspace.root / "gold", tmp_path / "again")
    assert (line.a, line.b) == (1, 0)


def test_a_verifier_of_a_user_runs_elsewhere_and_what_is_no_grade_ends_it_by_name_and_item(
    workspace: Any, tmp_path: Path
) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    file = tmp_path / "mine.py"
    source = "import os\n\ndef pid(completion, answer):\n    return {'score': 1, 'answer': str(os.getpid())}\n"
    file.write_text(source + "\ndef text(completion, answer):\n    return '1.0'\n", encoding="utf-8")
    rescore(workspace.root / "gold", tmp_path / "again", {"words@1": f"{file}:pid"})
    pids = {json.loads(line)["answer"] for line in (tmp_path / "again" / "results.jsonl").read_text().splitlines()}
    assert str(os.getpid()) not in pids
    message = r"words@1, item '.*': the verifier .*mine\.py:text: what it returned is no grade: .* got '1\.0'"
    with pytest.raises(run.EvalError, match=message):
        rescore(workspace.root / "gold", tmp_path / "third", {"words@1": f"{file}:text"})
    assert not (tmp_path / "third").exists()


def test_a_corrected_verifier_needs_no_model(workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.write_benchmark("words@1", "talk@1")
    workspace.model = EchoGenerator()
    workspace.evaluate("echo")
    monkeypatch.setattr(results_module, "verifier", lambda name: lambda text, reference, **how: Grade(1.0, "corrected"))
    found = rescore(workspace.root / "echo", tmp_path / "again", {})
    assert (found["words@1"].score, found["talk@1"].score) == (1, 8)
    assert workspace.opened == 1


def test_stored_answers_are_read_without_their_thoughts(workspace: Any, tmp_path: Path) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    file = workspace.root / "gold" / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["output"] = f"<think>\nNot 77.\n</think>\n\n{line['output']}"
    lines[0]["output"] = "<think>\nSo it is " + lines[0]["reference"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rescore(workspace.root / "gold", tmp_path / "again", {})["words@1"]
    assert (found.score, found.outcomes["truncated"]) == (pytest.approx(5 / 6), 1)


def test_cut_answers_stay_cut_and_lost_ones_lost(workspace: Any, tmp_path: Path) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("cut", max_new_tokens=2)
    file = workspace.root / "cut" / "results.jsonl"
    found = rescore(workspace.root / "cut", tmp_path / "again", {})
    assert found["words@1"].outcomes["truncated"] == 6
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2] |= {"stop": "error", "outcome": "error", "output": "", "detail": "500"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(run.EvalError, match=r"1 of 6 answers .*'w2': 500"):
        rescore(workspace.root / "cut", tmp_path / "lost", {})
    assert not (tmp_path / "lost").exists()


def test_a_verifier_that_fails_stops_the_rescoring(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    failed = Grade(0.0, outcome="error", detail="no parser")
    monkeypatch.setattr(results_module, "verifier", lambda name: lambda text, reference, **how: failed)
    with pytest.raises(run.EvalError, match=r"6 of 6 answers could not be had or graded.*no parser"):
        rescore(workspace.root / "gold", tmp_path / "again", {})
    assert not (tmp_path / "again").exists()


def test_samples_are_graded_again_one_by_one(workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.write_benchmark("words@1")
    texts = ["THE ANSWER IS A.", "It is 2.", "no idea"]
    workspace.model = EchoGenerator()
    workspace.model.complete = lambda prompts, sampling, done=None: [
        [Completion(text, (1,), (0.0,), "eos") for text in texts] for _ in prompts
    ]
    assert workspace.evaluate("three", repeats=3) == {"words@1": pytest.approx(1 / 18)}
    monkeypatch.setattr(results_module, "verifier", other)
    found = rescore(workspace.root / "three", tmp_path / "again", {"words@1": "capitals@1"})
    first = json.loads((tmp_path / "again" / "results.jsonl").read_text().splitlines()[0])
    assert [one["answer"] for one in first["samples"]] == ["THE", "It ", "no "]
    assert found["words@1"].score == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("verifiers", "error", "message"),
    [
        ({"wrods@1": "gsm8k@1"}, TaskError, r"holds no task wrods@1; it holds words@1, talk@1"),
        ({"words@1": "gsm9k@1"}, VerifierError, "unknown verifier 'gsm9k@1'"),
        ({"words@1": "quality@1"}, VerifierError, "quality@1 asks a model"),
        ({"talk@1": "gsm8k@1"}, TaskError, "talk@1: .*log-probabilities gave the verdicts"),
        ({"words@1": "tulu_if@1"}, VerifierError, "tulu_if@1"),
    ],
)
def test_what_cannot_be_graded_again_is_said_and_nothing_is_written(
    workspace: Any, tmp_path: Path, verifiers: dict[str, str], error: type[Exception], message: str
) -> None:
    workspace.write_benchmark("words@1", "talk@1")
    workspace.evaluate("gold")
    with pytest.raises(error, match=message):
        rescore(workspace.root / "gold", tmp_path / "again", verifiers)
    assert not (tmp_path / "again").exists()


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"holds no results\.jsonl"):
        rescore(tmp_path, tmp_path / "again", {})
