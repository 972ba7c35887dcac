"""`math@2`: formulas that are the same however they are written, and where the last one stands."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.math.latex import boxed

math = verifier("math@2")

SAME = [
    ("42", "42"),
    (r"\frac{1}{2}", "0.5"),
    (r"3\frac{1}{2}", r"\frac{7}{2}"),
    ("10,000", "10000"),
    ("1e5", "100000"),
    ("0.1+0.2", "0.3"),
    ("2^{10}", "1024"),
    (r"6.02\times10^{23}", "602000000000000000000000"),
    (r"\sqrt{4}", "2"),
    (r"2\sqrt{3}\,\mathrm{cm}", r"2\sqrt3"),
    (r"T_{\max} = 5", "5"),
    ("y = 2x+3", "3+2x"),
    (r"\mathbf{5}", "5"),
    (r"20\%", "20"),
    (r"\text{monday}", r"\text{Monday}"),
    ("B", r"\text{(B)}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"(1/2, 3)", r"\left(\frac{2}{4},3\right)"),
    ("1, 2", "2,1"),
    (r"x = 1 \text{ or } x = 2", "2, 1"),
    (r"\{2, 1\}", r"\{1,2\}"),
    ("[2,5)", "[2, 5)"),
    ("(1,2),(3,4)", "(3,4), (1,2)"),
    (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{pmatrix}1\\-2\end{pmatrix}"),
]
DIFFERENT = [
    ("42", "43"),
    ("6e", "2e3"),
    ("e-5", "1e-5"),
    ("0.33", r"\frac{1}{3}"),
    ("5,6", "5,7"),
    ("1,2", "12"),
    ("(1,2)", "(2,1)"),
    ("[2,5)", "(2,5)"),
    ("11_2", "11_3"),
    (r"5\sqrt{2}", "5"),
    ("5x", "5"),
    (r"\pi", "3.14"),
    ("x=1, y=2", "2"),
    (r"5 \text{ or } 6", "5"),
    ("-3", "3"),
    ("3,5", "3.5"),
]


@pytest.mark.parametrize(("answer", "reference"), SAME)
def test_formulas_that_mean_the_same_are_equal_in_both_directions(answer: str, reference: str) -> None:
    assert math(rf"So it is $\boxed{{{answer}}}$.", reference).score == 1
    assert math(f"So the answer is ${reference}$.", rf"Hence $\boxed{{{answer}}}$.").score == 1


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_formulas_that_differ_are_not_equal(answer: str, reference: str) -> None:
    assert math(rf"So it is $\boxed{{{answer}}}$.", reference).score == 0
    assert math(rf"So it is $\boxed{{{reference}}}$.", answer).score == 0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"Final Answer: The final answer is \[5\]. I hope it is correct.", "5"),
        ("The answer is **5**.", "5"),
        ("So we get\n\\[\nx = 5\n\\]", "5"),
        ("The answer is $5$ meters.", "5"),
        ("The answer is $1$ and $2$.", "1, 2"),
        ("The answer is (3, 4).", "(3,4)"),
        (r"The answer is \frac{1}{2}, as $1=1$ is clear.", "1"),
        ("The answer is that Ann has 5 apples.", "5"),
        ("Step 1 gives $7$. So x must be $2+3 = 5$.", "5"),
        (r"\boxed{5}. Wait, that is wrong. $\boxed{6}$", "6"),
        (r"The answer is $3$. Let me redo this: $x = 4$.", "4"),
        ("So x must be 5.", "5"),
        (r"So it is $\boxed{5}$. We check that our answer is correct by plugging in $x = 3$.", "5"),
        (r"So it is $\boxed{5}$. We check our answer: $5 \cdot 2 = 10$.", "5"),
        (r"First $\boxed{4}$. No, the answer is 5.", "5"),
    ],
)
def test_the_last_statement_counts(completion: str, answer: str) -> None:
    assert math(completion, answer).score == 1
    assert math(completion, "77").score == 0


@pytest.mark.parametrize(
    "completion", [r"The answer is 5\sqrt{2}.", "The answer is 5x.", "The answer is 5 pi.", "5 or 6"]
)
def test_a_formula_in_words_is_never_read_in_part(completion: str) -> None:
    assert math(completion, "5").score == 0


def test_a_tolerance_stands_with_the_reference_answer() -> None:
    near = '{"answer": "3.14159", "tolerance": 0.01}'
    assert [math(rf"\boxed{{{text}}}", near).score for text in ("3.14", "3.2")] == [1, 0]


@pytest.mark.parametrize("reference", ["", "  ", "$$", '{"answer": ""}'])
def test_an_empty_reference_answer_is_refused(reference: str) -> None:
    with pytest.raises(VerifierError, match="math@2 expects"):
        math("5", reference)


def test_an_empty_completion_is_unparsed() -> None:
    assert (math("", "5").score, math("", "5").outcome) == (0, "unparsed")


def test_gold_solutions_of_math_are_right_and_another_answer_wrong(shared_data: Path) -> None:
    with gzip.open(shared_data / "eval/math/test.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = list(map(json.loads, lines))[::25]
    for row in rows:
        gold = boxed(row["solution"]) or ""
        assert math(row["solution"], row["solution"]).score == 1, gold
        assert math(f"Final Answer: The final answer is ${gold}$. I hope it is correct.", gold).score == 1, gold
        assert math(r"So $\boxed{7171}$.", row["solution"]).score == 0, gold
