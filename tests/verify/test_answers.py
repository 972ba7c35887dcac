"""The judges of short answers, with the quirks they are meant to have."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from tercet.verify import Grade, VerifierError, verifier, verifiers

gsm8k = verifier("gsm8k@1")
choice = verifier("choice@1")


def test_the_judges_are_listed_in_order() -> None:
    assert {"choice@1", "gsm8k@1", "tulu_if@1"} <= set(verifiers())
    assert verifiers() == sorted(verifiers())


def test_an_unknown_judge_is_refused_with_the_known_names() -> None:
    with pytest.raises(VerifierError, match=r"unknown verifier 'gsm9k@1'.*choice@1.*gsm8k@1.*tulu_if@1"):
        verifier("gsm9k@1")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("So she pays $18.", "18"),
        ("3 + 4 = 7 apples", "7"),
        ("The total is 1,234", "1234"),
        ("It is 1,234,567 in all", "1234567"),
        ("The change is -5", "-5"),
        ("The change is +5", "+5"),
        ("It costs 5.0", "5.0"),
        ("It costs .5", ".5"),
        ("10-3", "-3"),
        ("one of 1,2,3", "3"),
        ("#### 72", "72"),
        ("20%", "20"),
    ],
)
def test_the_last_number_is_the_answer(completion: str, answer: str) -> None:
    assert gsm8k(completion, answer) == Grade(1.0, answer)
    assert gsm8k(completion, "999") == Grade(0.0, answer)


def test_there_is_no_numeric_tolerance() -> None:
    assert gsm8k("It is 5.0", "5").score == 0
    assert gsm8k("It is 05", "5").score == 0
    assert gsm8k("It is -5", "5").score == 0


def test_a_number_after_the_answer_replaces_it() -> None:
    assert gsm8k("The answer is 18. That took 2 steps.", "18") == Grade(0.0, "2")


def test_without_a_number_the_whole_text_is_compared() -> None:
    assert gsm8k("Eighteen", "eighteen").score == 1
    grade = gsm8k("I do not know", "18")
    assert (grade.score, grade.answer, grade.outcome) == (0.0, "", "unparsed")


def test_the_truth_may_be_a_whole_solution() -> None:
    assert gsm8k("It is 1234", "2 * 617 = <<2*617=1234>>1,234\n#### 1,234").score == 1


@pytest.mark.parametrize("truth", ["", "  ", "work #### "])
def test_an_empty_label_is_refused(truth: str) -> None:
    with pytest.raises(VerifierError, match="gsm8k@1 expects the number as truth"):
        gsm8k("5", truth)


def test_every_published_gsm8k_solution_is_right_and_a_spoiled_one_wrong(shared_data: Path) -> None:
    texts = [gzip.decompress((shared_data / "train/gsm8k/train.jsonl.gz").read_bytes()).decode()]
    texts.append((shared_data / "eval/gsm8k/test.jsonl").read_text(encoding="utf-8"))
    solutions = [json.loads(line)["answer"] for text in texts for line in text.split("\n") if line]
    assert len(solutions) == 7_473 + 1_319
    for solution in solutions:
        label = solution.rsplit("####", 1)[1].strip().replace(",", "")
        spoiled = re.sub(r"(\d)(\D*)$", lambda last: str((int(last[1]) + 1) % 10) + last[2], solution)
        assert gsm8k(solution, label) == Grade(1.0, label), solution
        assert gsm8k(spoiled, label).score == 0, solution


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("B is wrong. Therefore, the answer is: C", "C"),
        ("Therefore the answer is (d).", "D"),
        ("A looks good (B) but the answer is D because", "D"),
        ("(A) no. Option B is correct.", "B"),
        ("Option (c) is correct, not (A).", "C"),
        ("I choose (C) over D", "C"),
        ("Perhaps A, perhaps B", "B"),
        ("Either A or B\nno, C", "B"),
        ("The answer is J.", "J"),
        ("**Answer is**: B. Or (C)", "C"),
    ],
)
def test_the_letter_is_found_by_the_first_fallback_that_hits(completion: str, letter: str) -> None:
    assert choice(completion, letter) == Grade(1.0, letter)
    assert choice(completion, f"({letter.lower()})").score == 1
    assert choice(completion, "A" if letter != "A" else "B") == Grade(0.0, letter)


def test_the_article_and_the_pronoun_are_no_choice() -> None:
    assert choice("The answer is a bit complicated", "A").outcome == "unparsed"
    assert choice("I think so", "I").outcome == "unparsed"


def test_no_letter_is_unparsed() -> None:
    grade = choice("no idea", "B")
    assert (grade.score, grade.answer, grade.outcome) == (0.0, "", "unparsed")


@pytest.mark.parametrize("truth", ["", "AB", "2", "K"])
def test_a_truth_that_is_no_letter_is_refused(truth: str) -> None:
    with pytest.raises(VerifierError, match="one letter from A to J"):
        choice("A", truth)
