"""A verdict on the page is the verdict that an evaluation stores, with each constraint by itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from stored_run import ANSWERS

from tercet.play.verdicts import Verdicts, parts
from tercet.records import Result, Sample, TaskCard
from tercet.rows import Completion
from tercet.verify import VerifierError, verifier, verifiers

SHOWN = ("score", "outcome", "answer", "detail", "numbers")


def asked(reference: str, *texts: str) -> Result:
    return Result(task="t", item="i", reference=reference, samples=[Sample(text, 3, "eos") for text in texts])


@pytest.mark.parametrize("task", ["words@1", "constraints@1"])
def test_the_verdict_on_a_stored_answer_is_the_stored_one(book, task):
    for (name, item), _ in book._lines.items():
        for stored in book.stored(name, item).values() if name == task else ():
            (found,) = Verdicts().grade(replace(stored, samples=list(stored.tries)), book.cards[name])
            assert {key: found[key] for key in SHOWN} == {key: getattr(stored, key) for key in SHOWN}


def test_each_constraint_is_ticked_by_itself(book):
    stored = book.stored("constraints@1", "c0")["base"]
    (found,) = Verdicts().grade(replace(stored, samples=list(stored.tries)), book.cards["constraints@1"])
    assert found["right"] is False
    assert [(one["label"], one["right"]) for one in found["parts"]] == [
        ("Write in lower case.", False),
        ("validate_word_constraint (N = 3, quantifier = at most)", True),
    ]


def test_a_benchmarks_row_of_instructions_has_a_part_for_each():
    kwargs = [{}, {"relation": "at least", "num_words": 2}]
    row = {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"]}
    (found,) = Verdicts().grade(
        asked(json.dumps({**row, "kwargs": kwargs}), "a, b"), TaskCard("t", verifier="ifeval@1")
    )
    assert [one["right"] for one in found["parts"]] == [False, True]
    assert found["parts"][1]["label"].startswith("length_constraints:number_words (")


def test_a_sum_has_a_part_for_each_verifier():
    reference = json.dumps([{"verifier": "gsm8k@2", "reference": "4"}, {"verifier": "format@1", "reference": "It.*"}])
    assert [part[:2] for part in parts("sum@1", reference)] == [
        ("gsm8k@2 × 1", "gsm8k@2"),
        ("format@1 × 1", "format@1"),
    ]


def test_every_sample_gets_a_verdict():
    found = Verdicts().grade(asked("4", *ANSWERS["sft"][:2], "It is 7."), TaskCard("t", verifier="gsm8k@2"))
    assert [one["right"] for one in found] == [True, True, False]


def test_only_the_verifiers_of_the_list_grade_so_no_file_is_run(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("raise SystemExit('it ran')\ndef score(completion, reference): return 1.0\n")
    for name in (f"{bad}:score", "no@1", "quality@1"):
        with pytest.raises(VerifierError, match="no verifier"):
            Verdicts().grade(asked("", "text"), TaskCard("t", verifier=name))


def test_the_list_has_every_verifier_and_judges_only_where_a_model_judges():
    assert [one["name"] for one in Verdicts().names()] == verifiers()
    assert any(one["judge"] for one in Verdicts(judge=object).names())
    assert all(verifier(one["name"]).asks_model == one["judge"] for one in Verdicts(judge=object).names())


class Judging:
    """A model that says what it is told to say."""

    def complete(self, prompts, sampling, done=None):
        return [
            [Completion("Reasoning.\nRating: 9" if "good" in str(turns) else "Rating: 1", (), (), "eos")]
            for turns in prompts
        ]


def test_a_judge_grades_where_there_is_one(monkeypatch):
    found = Verdicts(judge=Judging).grade(asked("", "a good answer"), TaskCard("t", judge="quality@1"))
    assert found[0]["outcome"] in ("graded", "unparsed")


def test_a_reference_that_cannot_be_read_is_said_before_anything_is_graded():
    with pytest.raises(VerifierError, match="expects"):
        Verdicts().grade(asked("not json", "text"), TaskCard("t", verifier="tulu_if@1"))
