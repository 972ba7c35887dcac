"""The verifiers that read an answer as a reader does, on whole benchmarks and on answers that once were misread."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from tercet.verify import Grade, VerifierError, verifier

bbh = verifier("bbh@2")


@pytest.mark.parametrize(
    ("file", "name", "scores"),
    [
        ("gsm8k_sign", "gsm8k@2", "001111111"),
        ("bbh", "bbh@2", "010001"),
        ("math_delims", "math@2", "111111"),
        ("math_float", "math@2", "11111100111"),
        ("program_main_guard", "program@1", "1111"),
    ],
)
def test_answers_that_once_were_misread_are_graded_right(shared_data: Path, file: str, name: str, scores: str) -> None:
    lines = (shared_data / f"cases/verdicts/{file}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [list(json.loads(line).values()) for line in lines]
    assert [verifier(name)(*row).score for row in rows] == [float(score) for score in scores]


def test_the_choice_after_a_thought_is_graded_right(shared_data: Path) -> None:
    lines = (shared_data / "cases/verdicts/letter_think.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [list(json.loads(line).values()) for line in lines]
    assert [verifier("letter@2")(*row).score for row in rows[1:]] == [1, 1]


def test_every_published_gsm8k_solution_is_right_and_a_spoiled_one_wrong(shared_data: Path) -> None:
    gsm8k = verifier("gsm8k@2")
    text = gzip.decompress((shared_data / "train/gsm8k/train.jsonl.gz").read_bytes()).decode()
    solutions = [json.loads(line)["answer"] for line in text.split("\n") if line][:2000]
    for solution in solutions:
        label = solution.rsplit("####", 1)[1].strip()
        spoiled = re.sub(r"(\d)(\D*)$", lambda last: str((int(last[1]) + 1) % 10) + last[2], solution)
        assert gsm8k(solution, label) == Grade(1.0, label.replace(",", "")), solution
        assert gsm8k(spoiled, solution).score == 0, solution


def test_without_a_number_the_outcome_is_unparsed() -> None:
    grade = verifier("gsm8k@2")("I do not know", "18")
    assert (grade.score, grade.answer, grade.outcome) == (0.0, "", "unparsed")


def test_a_choice_is_read_like_a_letter() -> None:
    choice = verifier("choice@2")
    assert choice("I take (b), not A", "B") == Grade(1.0, "B")
    assert choice("Either A or B", "A").score == 0
    assert choice("no idea", "B").outcome == "unparsed"
    with pytest.raises(VerifierError, match="choice@2 expects one letter"):
        choice("A", "AB")


def test_the_strict_form_is_measured_as_in_the_published_protocol() -> None:
    reference = json.dumps({"answer": "C", "letters": "ABCD"})
    letter = verifier("letter@2")
    assert letter("Therefore, the answer is (C).", reference).numbers == {"strict": 1}
    assert letter("The answer is c.", reference) == Grade(1.0, "C", numbers={"strict": 0})
    with pytest.raises(VerifierError, match="letter@2 expects"):
        letter("A", "C")


@pytest.mark.parametrize(
    ("task", "completion", "gold", "score"),
    [
        ("date_understanding", "So the answer is (A). Wait. So the answer is (F).", "(F)", 1),
        ("date_understanding", "(A) is early. So the answer is **(D)**.", "(D)", 1),
        ("snarks", "So the answer is b.", "(B)", 1),
        ("navigate", "Yes? So the answer is No.", "No", 1),
        ("navigate", "If we go there we end at the start. So the answer is yes.", "Yes", 1),
        ("formal_fallacies", "So the answer is not valid.", "invalid", 1),
        ("boolean_expressions", "So the answer is not True = False.", "False", 1),
        ("multistep_arithmetic_two", "So the answer is $-1,024.00$.", "-1024", 1),
        ("object_counting", "So the answer is 3.5.", "3", 0),
        ("object_counting", "So the answer is 3 or 4.", "3", 0),
        ("dyck_languages", "So the answer is `] } ]`.", "] } ]", 1),
        ("dyck_languages", "So the answer is ]}].", "] } ]", 1),
        ("dyck_languages", "So the answer is ] ] ].", "] } ]", 0),
        ("word_sorting", "So the answer is apple, banana, cherry.", "apple banana cherry", 1),
        ("word_sorting", "So the answer is:\n1. apple\n2. banana\n3. cherry", "apple banana cherry", 1),
        ("word_sorting", "The sorted words: apple banana cherry", "apple banana cherry", 1),
        ("word_sorting", "So the answer is banana, apple, cherry.", "apple banana cherry", 0),
        ("word_sorting", "So the answer is apple banana.", "apple banana cherry", 0),
        ("movie_recommendation", "So the answer is Monsters, Inc.", "Monsters, Inc", 1),
    ],
)
def test_bbh_reads_the_final_answer_of_the_kind(task: str, completion: str, gold: str, score: float) -> None:
    assert bbh(completion, json.dumps({"answer": gold, "task": task})).score == score


def test_every_bbh_row_is_graded_right_by_its_answer_and_wrong_by_another(shared_data: Path) -> None:
    for file in sorted((shared_data / "eval/bbh/bbh").glob("*.json")):
        golds = [row["target"] for row in json.loads(file.read_text(encoding="utf-8"))["examples"]]
        for number, gold in enumerate(golds):
            reference = json.dumps({"answer": gold, "task": file.stem})
            assert bbh(f"Let's see. So the answer is {gold}.", reference).score == 1, (file.stem, gold)
            other = next(answer for answer in golds[number:] + golds if answer != gold)
            assert bbh(f"Let's see. So the answer is {other}.", reference).score == 0, (file.stem, gold, other)


def test_the_published_shots_of_all_27_bbh_tasks_are_read(shared_data: Path) -> None:
    for file in sorted((shared_data / "eval/bbh/cot-prompts").glob("*.txt")):
        text = file.read_text(encoding="utf-8").split("-----\n", 1)[1]
        for shot in re.split(r"\n+(?=Q: )", text)[1:]:
            answer = shot.split("\nA: ", 1)[1].strip()
            gold = re.sub(r"(?s).*So the answer is (.*)\.$", r"\1", answer)
            assert bbh(answer, json.dumps({"answer": gold, "task": file.stem})).score == 1, (file.stem, gold)
