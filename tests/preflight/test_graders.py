"""A verifier grades its own reference answer as right, and `tercet doctor` says which does not."""

from __future__ import annotations

import json

import pytest

from tercet.preflight.facts import Facts
from tercet.preflight.graders import answer_in, graded
from tercet.recipe import Recipe
from tercet.verify import VERIFIERS, verifier

REFERENCES = {
    "bbh@1": '{"answer": "(A)", "task": "date_understanding"}',
    "bbh@2": '{"answer": "(A)", "task": "date_understanding"}',
    "choice@1": "A",
    "choice@2": "B",
    "contains@1": '["United States of America", "USA"]',
    "deepmind_math@1": "12",
    "drop@1": '[["12"], ["Smith", "Jones"]]',
    "drop@2": '[["12"], ["Smith", "Jones"]]',
    "f1@1": "the cat",
    "flan@1": "the cat",
    "gpqa@1": "A",
    "gsm8k@1": "1,200",
    "gsm8k@2": "72",
    "letter@1": '{"answer": "C", "letters": "ABCD", "brackets": false}',
    "letter@2": '{"answer": "C", "letters": "ABCD", "brackets": false}',
    "math@1": "\\frac{1}{2}",
    "math@2": "\\frac{1}{2}",
    "math_flex@1": "\\frac{1}{2}",
    "phrase@1": '{"answer": "(A)"}',
    "string@1": "Paris",
}


def test_every_verifier_that_says_how_an_answer_is_stated_has_an_example_here():
    assert {name for name, one in VERIFIERS.items() if one.plainly} == REFERENCES.keys()


@pytest.mark.parametrize(("name", "reference"), REFERENCES.items())
def test_a_reference_answer_that_is_stated_plainly_is_right(name, reference):
    verify = verifier(name)
    assert verify(verify.plainly.replace("{}", answer_in(reference)), reference).score >= 1


def of_rows(tmp_path, *rows: dict[str, str], **source: str) -> list[tuple[str, str]]:
    turns = [{"role": "user", "content": "How many?"}]
    lines = [json.dumps({"messages": turns, **row}) + "\n" for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    stage = {
        "rows": {"kind": "mix", "sources": [{"path": "rows.jsonl", "require_answer": False, **source}]},
        "rl": {"kind": "grpo", "model": "base", "prompts": "rows", "rounds": 1},
    }
    recipe = Recipe.model_validate({"name": "r", "base": {"model": "tiny:"}, "stage": stage})
    recipe._folder = tmp_path
    return [(one.state, one.what) for one in graded(Facts(recipe, {}, {}), ["rows", "rl"])]


def gsm8k(reference: str) -> dict[str, str]:
    return {"verifier": "gsm8k@2", "reference": reference}


def test_references_that_a_verifier_never_rewards_are_found(tmp_path):
    assert of_rows(tmp_path, gsm8k("4"), gsm8k("5")) == [("ok", "gsm8k@2 grades 2 of 2 own answers as right")]
    ((state, what),) = of_rows(tmp_path, {"verifier": "gsm8k@1", "reference": "7 or 8"})
    assert (state, "gsm8k@1 grades 0 of 1 own answers as right: row 'rows.jsonl-1'" in what) == ("cannot work", True)
    some = [{"verifier": "gsm8k@1", "reference": text} for text in ("7 or 8", "7")]
    assert [state for state, _ in of_rows(tmp_path, *some)] == ["warning"]
    ((state, what),) = of_rows(tmp_path, gsm8k("a few"), gsm8k("4"))
    assert (state, "expects one number as reference answer" in what) == ("cannot work", True)


def test_a_users_function_that_pays_for_no_reference_is_a_warning(tmp_path):
    (tmp_path / "mine.py").write_text("def score(completion, reference):\n    return float(completion == 'x')\n")
    name = "mine.py:score"
    ((state, what),) = of_rows(tmp_path, {"reference": "4"}, verifier=name, prompt="messages", answer="reference")
    assert state == "warning"
    assert "grades 0 of 1 own answers as right" in what


def test_generated_rows_are_graded_by_their_own_answers_and_tasks_by_theirs(tmp_path):
    stage = {
        "words": {"kind": "synth", "generator": "constraints@1", "rows": 20},
        "items": {"kind": "synth", "generator": "words@1", "rows": 5, "split": "test"},
        "benchmark": {"kind": "benchmark", "tasks": ["words@1", "gsm8k@2"], "items": ["items"]},
        "rl": {"kind": "grpo", "model": "base", "prompts": "words", "rounds": 1},
    }
    recipe = Recipe.model_validate({"name": "r", "base": {"model": "tiny:"}, "stage": stage})
    found = [(one.state, one.what) for one in graded(Facts(recipe, {}, {}), list(stage))]
    assert found == [
        ("ok", "tulu_if@1 grades 20 of 20 own answers as right"),
        ("ok", "1 tasks grade their own answers right, spoiled ones wrong"),
        ("not tried", "items are not at hand: gsm8k@2"),
    ]
