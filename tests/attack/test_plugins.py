"""Verifiers and tasks of a user that return what is no grade, or do what nobody asked for.

The promises: the code runs in a worker with its limits, in `grade` and `rescore` as in training; only plain values come
back; what is no grade is refused with the verifier's name and the row, and never counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tercet.cli.main import main
from tercet.evals.task import Task, TaskError, items
from tercet.rows import Message, Sampling
from tercet.sandbox.workers import WorkerError, call
from tercet.verify import VerifierError, check_reference, plugins, verifier
from tercet.verify.llm_judges import Case
from tercet.verify.rubrics import QUALITY, RUBRIC

HEAD = """
import os, sys, time
import numpy as np
from fractions import Fraction
from tercet.verify import Grade

open({sign!r}, "a").write(str(os.getpid()) + "\\n")

class Reduced:
    def __reduce__(self):
        return os.system, ("touch {canary}",)

class Text(str):
    def __reduce__(self):
        return os.system, ("touch {canary}",)

class Wild(float):
    def __float__(self):
        raise ValueError("no")
    def __repr__(self):
        raise SystemExit(3)

class Liar:
    __class__ = property(lambda self: float)
    def __float__(self):
        return 1.0

class Two(Grade):
    @property
    def extra(self):
        return 1

class Raises(Exception):
    def __str__(self):
        raise RuntimeError("twice")

def score(completion, answer):
    return {value}

def trl(completions, answer):
    return {value}
"""
REFUSED: dict[str, str] = {
    "a text": "'1.0'",
    "nothing": "None",
    "not a number": "float('nan')",
    "without end": "float('inf')",
    "below everything": "-np.inf",
    "a complex number": "1j",
    "a number of 400 digits": "10**400",
    "a number of 10,000 digits": "10**10000",
    "a dict without a score": "{'points': 1}",
    "a dict whose score is a text": "{'score': '1'}",
    "a list": "[1.0]",
    "a tuple": "(1.0, 0.0)",
    "a set": "{1.0}",
    "bytes": "b'1'",
    "a function": "score",
    "an array": "np.ones(3)",
    "a float that cannot be one": "Wild(1.0)",
    "a float that says it is one": "Liar()",
    "an object that runs code when it is read": "Reduced()",
    "a grade that is not a number": "Grade(float('nan'))",
    "a grade that is a text": "Grade('1')",
    "a grade with an answer that runs code": "Grade(1.0, answer=Reduced())",
    "a grade with a list for its detail": "Grade(1.0, detail=['x'])",
    "a grade with an outcome of its own": "Grade(1.0, outcome='perfect')",
    "a grade with numbers that are texts": "Grade(1.0, numbers={'a': 'b'})",
    "a grade with a number that is not one": "Grade(1.0, numbers={'a': float('nan')})",
    "a grade with numbers without names": "Grade(1.0, numbers={1: 1.0})",
}
ACCIDENTS: dict[str, tuple[str, str]] = {
    "it ends the process": ("os._exit(7)", "error"),
    "it leaves": ("sys.exit(0)", "error"),
    "it never returns": ("time.sleep(60)", "timeout"),
    "it kills itself": ("os.kill(os.getpid(), 9)", "error"),
    "it takes all memory": ("'x' * (1 << 40)", "error"),
    "its error has no text": ("(_ for _ in ()).throw(Raises())", "error"),
    "it recurs without end": ("score(completion, answer)", "error"),
    "it closes what it answers on": ("os.closerange(3, 200) or 1.0", "error"),
}
TAKEN: dict[str, tuple[str, float]] = {
    "a whole number": ("1", 1.0),
    "true": ("True", 1.0),
    "numpy's small float": ("np.float32(0.5)", 0.5),
    "numpy's integer": ("np.int64(1)", 1.0),
    "a fraction": ("Fraction(1, 2)", 0.5),
    "a dict with a score": ("{'score': 0.25, 'odd': 'x', 'strict': np.float64(1)}", 0.25),
    "a grade of its own class": ("Two(0.5, answer=Text('x'))", 0.5),
    "an answer with half a character": ("Grade(1.0, answer='\\ud800')", 1.0),
    "an answer without end": ("Grade(1.0, answer='x' * (1 << 22))", 1.0),
}


def own(tmp_path: Path, value: str, function: str = "score") -> str:
    file = tmp_path / "mine.py"
    source = HEAD.replace("{value}", value).replace("{canary}", str(tmp_path / "canary"))
    file.write_text(source.replace("{sign!r}", repr(str(tmp_path / "imported"))), encoding="utf-8")
    return f"{file}:{function}"


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the file runs in this process, and no canary sings."""
    monkeypatch.setattr(plugins, "SECONDS", 20.0)
    yield
    assert not (tmp_path / "canary").exists(), "what the verifier returned ran code here"
    sign = tmp_path / "imported"
    assert not sign.exists() or str(os.getpid()) not in sign.read_text().split(), "its file was imported here"


def lines(tmp_path: Path) -> Path:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"completion": "x", "reference": "y"}\n', encoding="utf-8")
    return file


@pytest.mark.parametrize("attack", REFUSED)
def test_what_is_no_grade_is_refused_by_the_verifier_s_name_and_the_row(attack, tmp_path, capsys):
    name = own(tmp_path, REFUSED[attack])
    assert main(["grade", name, str(lines(tmp_path))]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "answers.jsonl, line 1: the verifier" in said
    assert "mine.py:score: what it returned is no grade: " in said
    found = verifier(name)("x", "y")  # in training: no grade either, and the run goes on
    assert (found.score, found.outcome, found.lost, found.refused) == (0.0, "error", True, True)
    with pytest.raises(VerifierError, match=r"mine\.py:score: "):
        check_reference(name, "y")


@pytest.mark.parametrize("value", ["1.0", "[]", "[1.0, 0.0]", "['1']", "None", "'1'", "{'score': 1.0}", "[[1.0]]"])
def test_a_list_of_another_length_is_refused(value, tmp_path, capsys):
    assert main(["grade", own(tmp_path, value, "trl"), str(lines(tmp_path))]) == 2
    assert "is no grade" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("attack", ACCIDENTS)
def test_an_accident_is_an_outcome_and_the_next_grade_is_given(attack, tmp_path, monkeypatch):
    value, outcome = ACCIDENTS[attack]
    found = verifier(own(tmp_path, value))
    monkeypatch.setattr(plugins, "SECONDS", 1.0)
    grade = found("x", "y")
    assert (grade.score, grade.outcome) == (0.0, outcome)
    assert not grade.refused
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(plugins, "SECONDS", 20.0)
    assert verifier(own(tmp_path / "other", "1.0"))("x", "y").score == 1.0


@pytest.mark.parametrize("attack", TAKEN)
def test_a_number_of_any_library_becomes_a_plain_one(attack, tmp_path):
    value, score = TAKEN[attack]
    found = verifier(own(tmp_path, value))("x", "y")
    assert (found.score, found.outcome) == (score, "graded")
    assert {type(found.score), *map(type, found.numbers.values())} == {float}
    assert type(found.answer) is str
    assert len(json.dumps(vars(found)).encode()) < 200_000


def test_a_file_that_leaves_on_import_is_told(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit(0)\n", encoding="utf-8")
    with pytest.raises(VerifierError, match="cannot be imported: SystemExit"):
        verifier(f"{tmp_path / 'mine.py'}:score")


def test_a_worker_cannot_answer_with_anything_but_plain_values():
    with pytest.raises(WorkerError, match="no plain value"):
        call("pathlib:Path", ("/tmp",), 20.0)
    with pytest.raises(WorkerError, match="the worker process died"):
        call("operator:mul", ("x", 100 << 20), 20.0)
    assert call("math:factorial", (5,), 20.0) == 120


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "a reference that is a number": ({"reference": lambda record: 4}, "reference must be a text, got 4"),
    "a reference that is nothing": ({"reference": lambda record: None}, "reference must be a text, got None"),
    "fields that are numbers": ({"fields": lambda record: (1,)}, "fields must be texts, got 1"),
    "a part that is a list": ({"subset": lambda record: ["x"]}, "expected layout|subset must be a text"),
    "a cluster that is a number": ({"cluster": lambda record: 3}, "template must be a text, got 3"),
    "a prompt that is a text": ({"prompt": lambda record: "why?"}, "expected layout"),
    "a prompt of numbers": ({"prompt": lambda record: (Message("user", 3),)}, "messages with a text each|layout"),
    "a function that divides by zero": ({"prompt": lambda record: 1 / 0}, "ZeroDivisionError"),
    "a function that refuses": ({"reference": lambda record: int("x")}, "ValueError"),
    "options that are numbers": (
        {"metric": "choice", "verifier": "", "options": lambda record: ([1, 2], 0)},
        "options must be texts, got 1",
    ),
    "a right option that is a text": (
        {"metric": "choice", "verifier": "", "options": lambda record: (["a", "b"], "0")},
        "must be a whole number, got '0'",
    ),
}


@pytest.mark.parametrize("attack", TASKS)
def test_a_user_s_task_of_wrong_types_is_refused_by_task_and_record(attack):
    changes, message = TASKS[attack]
    plain: dict[str, Any] = {"prompt": lambda record: (Message("user", "?"),), "reference": lambda record: "4"}
    plain |= {"name": "mine", "version": 1, "skill": "x", "data": (), "verifier": "gsm8k@2", "sampling": Sampling()}
    with pytest.raises(TaskError, match=message) as caught:
        items(Task(**(plain | changes)), [{"question": "?"}])
    assert "mine@1" in str(caught.value)


@pytest.mark.parametrize(
    "reply", ["SCORE: 11", "SCORE: -1", "SCORE: 1e99", "SCORE: nan", "SCORE: " + "9" * 5000, "SCORE: inf"]
)
def test_a_judge_s_score_beyond_its_scale_is_no_verdict(reply):
    assert QUALITY.read(reply, Case("?", "x", "")).outcome == "unparsed"


@pytest.mark.parametrize("reply", ["SCORES: [3]", "SCORES: [-1]", "SCORES: [nan]", "SCORES: [1, 1]", "SCORES: [inf]"])
def test_a_judge_s_scores_of_rubrics_beyond_their_scale_are_no_verdict(reply):
    rubric = '[{"rubric": "Is short.", "weight": 1.0}]'
    assert RUBRIC.read(reply, Case("?", "x", rubric)).outcome == "unparsed"
