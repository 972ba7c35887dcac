import gzip
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.math import verifiers
from tercet.verify.math.latex import boxed, candidates, hendrycks, minerva, number
from tercet.verify.math.verifiers import check_packages, deepmind_math, math_flex

EQUAL = [
    ("42", "42"),
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac{3}{4}", r"\tfrac34"),
    (r"\frac ab", r"\frac{a}{b}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    ("1/2", r"\frac{2}{4}"),
    (r"-\frac{2}{3}", r"\frac{-2}{3}"),
    (r"3\frac{1}{2}", r"\frac{7}{2}"),
    (".5", "0.5"),
    ("7.50", "7.5"),
    ("10,000", "10000"),
    (r"10,\!000", "10{,}000"),
    (r"\$18.90", "18.90"),
    ("33\\%", "33"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    (r"12\text{ cm}", "12"),
    (r"440\mbox{ cm}^2", "440"),
    ("x = 5", "5"),
    (r"k=\frac12", r"\frac{1}{2}"),
    (r"\sqrt a", r"\sqrt{a}"),
    (r"3+4\sqrt2", r"4\sqrt{2}+3"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    ("[2,5)", "[2, 5)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)"),
    (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{pmatrix}1\\-2\end{pmatrix}"),
    (r"\begin{pmatrix} \dfrac12 \\ 3 \end{pmatrix}", r"\begin{pmatrix} \frac{1}{2} \\ 3 \end{pmatrix}"),
]
DIFFERENT = [
    ("42", "43"),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("0.33", r"\frac{1}{3}"),
    ("5,6", "5,7"),
    ("1,-3", "1,-4"),
    ("1,2", "12"),
    ("11_2", "11_3"),
    (r"3\frac{1}{2}", r"\frac{3}{2}"),
    (r"8+4\sqrt3", r"8+4\sqrt5"),
    (r"2\sqrt3", "2"),
    ("[2,5)", "(2,5)"),
    (r"(3,\frac{\pi}{2})", r"(3,\frac{\pi}{3})"),
    (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("x+1", "x-1"),
    (r"\text{Monday}", r"\text{Friday}"),
    ("x=5", "x=6"),
    ("10", "100"),
    (r"\pi", "3.14"),
    ("1e5", "100000"),
]


def rows(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def spoiled(answer: str) -> str:
    """The answer with its last digit changed; without a digit, another answer."""
    match = re.search(r"\d(?=\D*$)", answer)
    return answer[: match.start()] + str((int(match[0]) + 1) % 10) + answer[match.end() :] if match else "17"


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_answers_that_mean_the_same_are_equal_in_both_directions(answer, reference):
    assert math_flex(rf"So it is $\boxed{{{answer}}}$.", reference).score == 1
    assert math_flex(rf"So it is $\boxed{{{reference}}}$.", rf"Hence $\boxed{{{answer}}}.$").score == 1


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_answers_that_differ_are_not_equal(answer, reference):
    assert math_flex(rf"So it is $\boxed{{{answer}}}$.", reference).score == 0
    assert math_flex(rf"So it is $\boxed{{{reference}}}$.", answer).score == 0


def test_candidates_are_taken_in_order():
    text = r"Let $a=1$. So $\boxed{2}$. Final Answer: The final answer is $3$. I hope it is correct."
    assert candidates(text) == [("phrase", "3"), ("boxed", "2")]
    assert candidates(r"Let $a=1$. So \fbox{2}, and $4$ is no answer.") == [("boxed", "2")]
    assert candidates("Let $a=1$, so $b$ is $12$ cm.") == [("dollars", "12")]
    assert candidates("That makes 12 cm.") == [("whole", "Thatmakes12"), ("whole", "That makes 12 cm.")]


def test_any_candidate_may_be_right():
    text = r"So $\boxed{2}$. Final Answer: The final answer is $3$. I hope it is correct."
    assert [math_flex(text, reference).score for reference in ("2", "3", "4")] == [1, 1, 0]
    assert [math_flex(text, reference).answer for reference in ("2", "3", "4")] == ["2", "3", "3"]
    assert [math_flex(text, reference).numbers["minerva"] for reference in ("2", "3", "4")] == [0, 1, 0]


@pytest.mark.parametrize("ending", ["", ".", ". I hope it", ". I hope it is correct.", " I hope it is correct."])
def test_a_truncated_closing_of_the_minerva_phrase_is_forgiven(ending):
    grade = math_flex(f"Hm.\nFinal Answer: The final answer is $x^2${ending}", "x^2")
    assert (grade.score, grade.outcome, grade.numbers["minerva"]) == (1, "graded", 1)


def test_the_phrase_may_hold_words_and_equations():
    say = "Final Answer: The final answer is {}. I hope it is correct.".format
    assert math_flex(say("Evelyn"), r"\boxed{\text{Evelyn}}").score == 1
    assert math_flex(say("$x - 3z = 0$"), r"\boxed{x - 3z = 0}").score == 1
    assert math_flex(say("$x - 4z = 0$"), r"\boxed{x - 3z = 0}").score == 0
    assert math_flex(say("$2$"), "x=1, y=2").score == 0


def test_boxes_are_found_by_their_braces():
    assert boxed(r"\boxed{1} and \boxed{\frac{a}{b^{2}}}.") == r"\frac{a}{b^{2}}"
    assert boxed(r"it is $\boxed 7$ or so") == "7"
    assert boxed(r"cut off: \boxed{\frac{1}{2") is None
    assert boxed("none") is None


def test_minerva_takes_off_what_is_not_the_answer():
    assert minerva("x = 5") == "5"
    assert minerva(r"a total of $12$ square cm") == "12"
    assert minerva(r"\text{Evelyn}") == "Evelyn"
    assert minerva("1,234,567 dollars") == "1234567"
    assert minerva(r"\frac ab + \sqrt 3") == r"\frac{a}{b}+\sqrt{3}"
    assert minerva("2a + b") == "2a+b"
    assert minerva(r"\left(1,2\right)") == r"\left(1,2\right)"
    assert minerva("1,2") == "1,2"


def test_hendrycks_writes_alike():
    assert hendrycks("0.5") == hendrycks(".5") == hendrycks("1/2") == hendrycks(r"\tfrac12") == r"\frac{1}{2}"
    assert hendrycks(r"\leftarrow") == r"\leftarrow"
    assert hendrycks("y = 2x = 6") == "y=2x=6"


def test_plain_numbers_have_exact_values():
    assert number(r"-1\frac{1}{2}") == Fraction(-3, 2)
    assert number("12,345.60") == Fraction(1234560, 100)
    assert number("12,34") is number(r"\frac{1}{0}") is number("x") is number("") is None


def test_without_a_marked_answer_the_outcome_is_unparsed():
    assert (math_flex("5", "5").score, math_flex("5", "5").outcome) == (1, "unparsed")
    assert (math_flex("", "5").score, math_flex("", "5").outcome) == (0, "unparsed")
    assert math_flex("I do not know. " * 100, "5").outcome == "unparsed"


def test_the_halves_are_told_apart_and_the_library_is_never_mixed_in():
    numbers = math_flex(r"$\boxed{[2,5)}$", "[2,5)").numbers
    assert numbers == {"minerva": 0, "hendrycks": 1, "sympy": 0, "math_verify": 1}
    numbers = math_flex(r"$\boxed{1+x}$", "x+1").numbers
    assert numbers == {"minerva": 0, "hendrycks": 0, "sympy": 1, "math_verify": 1}
    grade = math_flex(r"$\boxed{(1/2, 3)}$", r"\left(\frac{2}{4},3\right)")
    assert (grade.score, grade.numbers["math_verify"]) == (0, 1)


def test_a_comparison_without_end_is_a_timeout_unless_something_else_is_equal(monkeypatch):
    monkeypatch.setattr(verifiers, "SECONDS", 0.3)
    tower = r"10^{10^{10}}"
    assert math_flex(rf"$\boxed{{{tower}}}$", "31x").outcome == "timeout"
    grade = math_flex(rf"$\boxed{{{tower}}}$. Final Answer: The final answer is $31x$.", "31x")
    assert (grade.score, grade.outcome) == (1, "graded")
    assert math_flex(r"$\boxed{x+31}$", "31+x").score == 1


@pytest.mark.parametrize("verify", [math_flex, deepmind_math])
def test_an_empty_reference_is_refused(verify):
    with pytest.raises(VerifierError, match=r"expects .* as reference answer"):
        verify("5", "  ")


@pytest.mark.parametrize(("needed", "message"), [("3.", "got 4"), (None, "not installed")])
def test_packages_that_do_not_fit_are_named_with_what_to_install(monkeypatch, needed, message):
    name = "antlr4-python3-runtime" if needed else "no-such-package"
    monkeypatch.setattr(verifiers, "NEEDED", {name: needed or "1."})
    check_packages.cache_clear()
    with pytest.raises(VerifierError, match=rf"{name}.*{message}.*antlr4-python3-runtime==4\.11"):
        math_flex("5", "5")
    check_packages.cache_clear()


def say(answer: str) -> str:
    return f"Let me see. Therefore, the final answer is {answer}. I hope it is correct."


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("-23", "-23"),
        ("$-23$", "-23"),
        ("[5*x]", "5*x"),
        ("true", "True"),
        ("(b)", "b"),
        ("-1,0, 2/2", "-1, 0, 1"),
        ("3*p**2 - 264*p", "3*p*(p - 88)"),
        ("0.5", "1/2"),
        (r"$\frac{1}{2}$", "1/2"),
        ("12*sqrt(2)", "sqrt(288)"),
        ("n^(-2)", "1/n**2"),
        ("10:05 pm", "10:05 PM"),
    ],
)
def test_deepmind_answers_that_mean_the_same_are_equal(answer, reference):
    assert deepmind_math(say(answer), reference).score == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("23", "-23"),
        ("0, -1, 1", "-1, 0, 1"),
        ("-1, 0", "-1, 0, 1"),
        ("False", "True"),
        ("1e5", "100000"),
        ("3a1", "3a2"),
        ("__import__('os').getpid()", "5"),
        ("sqrt(3, 5)", "5"),
        ("", "0"),
    ],
)
def test_deepmind_answers_that_differ_are_not_equal(answer, reference):
    assert deepmind_math(say(answer), reference).score == 0


def test_deepmind_takes_the_last_sentence_in_any_case():
    grade = deepmind_math(f"{say('1')} {say('0.25').upper()}", "1/4")
    assert (grade.score, grade.answer, grade.outcome) == (1, "0.25", "graded")
    assert deepmind_math(f"Therefore, the final answer is near. {say('7')}", "7").score == 1
    assert deepmind_math("The answer is 7.", "7").outcome == "unparsed"


def test_deepmind_wants_the_dots_of_its_sentence():
    assert deepmind_math("Therefore, the final answer is 25 I hope it is correct!", "25").outcome == "unparsed"


def test_deepmind_powers_without_end_are_a_timeout(monkeypatch):
    monkeypatch.setattr(verifiers, "SECONDS", 0.3)
    assert deepmind_math(say("9**9**9**9"), "4*z").outcome == "timeout"


def test_the_registry_names_the_verifiers():
    assert (verifier("math_flex@1").loaded, verifier("deepmind_math@1").loaded) == (math_flex, deepmind_math)


def test_all_gold_solutions_of_math_agree_with_themselves_spelled_otherwise(shared_data):
    golds = [candidates(row["solution"])[0] for row in rows(shared_data / "eval/math/test.jsonl.gz")]
    assert len(golds) == 5000
    for gold in golds:
        other = gold.text.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", "\\right)\n")
        again = candidates(rf"Hence $\boxed{{{other}}}$, as $1=1$.")
        assert gold.place == again[0].place == "boxed"
        assert hendrycks(again[0].text) == hendrycks(gold.text) != ""


def test_gold_solutions_of_math_are_right_in_both_forms_and_spoiled_ones_wrong(shared_data):
    for row in list(rows(shared_data / "eval/math/test.jsonl.gz"))[::25]:
        gold = boxed(row["solution"]) or ""
        assert math_flex(row["solution"], row["solution"]).score == 1, gold
        phrase = f"Final Answer: The final answer is ${gold}$. I hope it is correct."
        assert math_flex(phrase, row["solution"]).score == 1, gold
        assert math_flex(rf"So $\boxed{{{spoiled(gold)}}}$.", row["solution"]).score == 0, gold


def test_gold_answers_of_deepmind_mathematics_are_right_and_spoiled_ones_wrong(shared_data):
    for i, row in enumerate(rows(shared_data / "eval/deepmind_math/sample.jsonl.gz")):
        assert deepmind_math(say(row["answer"]), row["answer"]).score == 1, row
        if i % 10 == 0:
            wrong = spoiled(row["answer"]) if re.search(r"\d", row["answer"]) else "17"
            assert deepmind_math(say(wrong), row["answer"]).score == 0, row
