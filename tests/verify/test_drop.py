"""DROP's exact match and F1, against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.drop import em_f1, normalise

drop = verifier("drop@1")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The 3rd-down pass", "3rd down pass"),
        ("1,200", "1200.0"),
        ("-3.50", "3.5"),
        ("24.8%", "248.0"),
        ("a theatre, an Anchor", "theatre anchor"),
        ("U.S.", "us"),
        ("--", ""),
    ],
)
def test_spans_are_normalised_by_the_official_rules(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("predicted", "gold", "em", "f1"),
    [
        ("Nate Kaeding", ["nate kaeding."], 1, 1.0),
        ("kicker Nate Kaeding", ["Nate Kaeding"], 0, 0.8),  # 2 of 3 and 2 of 2 words
        ("2.0", ["2"], 1, 1.0),
        ("2 yards", ["2"], 0, 0.67),
        ("3 field goals", ["2 field goals"], 0, 0.0),  # the number is missed, so shared words do not count
        ("field goals", ["2 field goals"], 0, 0.0),
        ("23 May 1990", ["May 1990 or 23"], 0, 0.86),
        ("Smith", ["Smith", "Jones"], 0, 0.5),
        ("Smith", ["Smith", "Smith"], 0, 0.5),
        ("Smith Jones", ["Smith", "Jones"], 0, 0.33),  # one pair of F1 2/3, over two gold spans
        ("tall tall man", ["tall man"], 0, 1.0),  # bags are sets
        ("the", ["an"], 1, 1.0),
    ],
)
def test_em_and_f1_equal_the_hand_computed_values(predicted: str, gold: list[str], em: int, f1: float) -> None:
    assert em_f1(predicted, gold) == (em, f1)


def test_the_best_alternative_counts() -> None:
    grade = drop(" Smith and Jones \n", json.dumps([["12"], ["Smith", "Jones"], ["Smith Jones"]]))
    assert (grade.score, grade.answer) == (0.8, "Smith and Jones")
    assert grade.numbers == {"em": 0.0, "f1": 0.8}
    assert drop("12.", json.dumps([["13"], ["12"]])).numbers == {"em": 1.0, "f1": 1.0}


def test_an_empty_completion_is_unparsed() -> None:
    assert drop(" \n", '[["12"]]').outcome == "unparsed"


@pytest.mark.parametrize("reference", ["12", "[]", '["12"]', "[[]]", '[[""]]', "[[3]]"])
def test_a_reference_that_is_no_list_of_lists_of_spans_is_refused(reference: str) -> None:
    with pytest.raises(VerifierError, match="drop@1 expects"):
        drop("12", reference)


def test_the_public_rows_are_graded_right_by_their_answer(shared_data: Path) -> None:
    rows = json.loads((shared_data / "eval/fewshot/drop_10.json").read_text(encoding="utf-8"))
    assert len(rows) == 10
    for row in rows:
        answer = row["answer"]
        date = " ".join(part for part in (answer["date"][key] for key in ("day", "month", "year")) if part)
        gold = [answer["number"]] if answer["number"] else list(answer["spans"]) or [date]
        grade = drop(gold[0], json.dumps([gold]))
        assert grade.score == (1 if len(gold) == 1 else pytest.approx(1 / len(gold), abs=0.01))
        assert em_f1(gold[0], gold)[0] == (len(gold) == 1)
        assert drop("quite another 77", json.dumps([gold])).score == 0


@pytest.mark.parametrize(
    ("completion", "golds", "em", "f1"),
    [
        ("12 yards", [["12"]], 1, 1.0),
        ("So he ran 5 and then 7 yards. The answer is 12 yards.", [["12"]], 1, 1.0),
        ("-3", [["3"]], 0, 0.0),
        ("−3.50", [["-3.5"]], 1, 1.0),
        ("24.8%", [["24.8"]], 1, 1.0),
        ("$1,200", [["1200"]], 1, 1.0),
        ("2 field goals", [["3 field goals"]], 0, 0.0),
        ("the 2.0 field goals", [["2 field goals"]], 1, 1.0),
        ("Nate Kaeding", [["nate kaeding."]], 1, 1.0),
        ("The answer is Nate Kaeding.", [["Nate Kaeding"]], 1, 1.0),
        ("23 May 1990", [["May 23, 1990"]], 0, 1.0),
        ("12 or 13", [["12"]], 0, 0.5),
    ],
)
def test_by_value_numbers_agree_in_sign_and_value(completion: str, golds: list[list[str]], em: int, f1: float) -> None:
    assert verifier("drop@2")(completion, json.dumps(golds)).numbers == {"em": em, "f1": f1}


def test_by_value_an_empty_completion_is_unparsed_and_a_bad_reference_refused() -> None:
    assert verifier("drop@2")(" ", '[["12"]]').outcome == "unparsed"
    with pytest.raises(VerifierError, match="drop@2 expects"):
        verifier("drop@2")("12", "12")
