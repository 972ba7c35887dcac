"""Which answer a completion states last, in the ways that models have of saying so."""

from __future__ import annotations

import json
import random
from decimal import Decimal

import pytest

from tercet.verify import verifier
from tercet.verify.stated import final_letter, final_number, final_word

gsm8k = verifier("gsm8k@2")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("The answer is 18. That took 2 steps.", "18"),
        ("So she pays **$18** for 3 days.", "$18"),
        ("Each is **$5**. There are 7, so it is 35.", "35"),
        ("**1.** There are 3.\n**2.** So 4 are left.", "4"),
        ("#### 72", "72"),
        (r"So $\boxed{5}$. We check our answer: 5 * 2 = 10, so our answer is correct for x = 3.", "5"),
        ("The answer is 18. They did not actually wait for 3 hours.", "18"),
        ("$30 + $160 or $190", "$190"),
        ("Week 3:210 pages", "210"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("The answer is that the 3 boys have 18 apples.", "18"),
        ("The answer is 18 because 3 of 20 are left.", "18"),
        ("Answer: 5. Wait, I forgot the tax. So it is 7.", "7"),
        ("The answer is 5.\nNo, let me redo.\nThe answer is 6.", "6"),
        (r"Then \boxed{5}. So the answer is clear.", "5"),
        (r"\boxed{x = 5}", "5"),
        ("The answer is not 5, it is 7.", "7"),
        ("Answer:\n\n42", "42"),
        ("**Answer:** 12 apples", "12"),
        ("The answer to the question is 9", "9"),
        ("There are 4. So the answer is four.", "4"),
        ("So it costs 5 dollars", "5"),
    ],
)
def test_the_last_statement_gives_the_number(completion: str, answer: str) -> None:
    found = final_number(completion)
    assert found
    assert found[1] == answer
    assert found[0].value is not None


@pytest.mark.parametrize(
    "completion", ["The answer is 5 or 6.", "5-10", "The answer is 5 + 7.", "The answer is 3,5", "It is at 10:30"]
)
def test_two_numbers_and_one_that_can_be_read_in_two_ways_are_no_answer(completion: str) -> None:
    found = final_number(completion)
    assert found
    assert found[0].value is None
    assert [gsm8k(completion, number).score for number in ("5", "6", "10", "12", "3", "3.5", "30")] == [0] * 7


PHRASINGS = [
    "The answer is {}.",
    "So the answer is: {}",
    "Therefore, the final answer is **{}**.",
    "#### {}",
    r"Thus we get $\boxed{{{}}}$.",
    r"\[ \boxed{{{}}} \]",
    "Final Answer: The final answer is {}. I hope it is correct.",
    "First we add 3 and 4 to get 7. In total: {}",
    "Answer: {}",
    "**Answer:** {} dollars",
    "He starts with 1,000 and spends half of it on 2 days. He is left with {}",
    "The result of step 2 is x = {}",
    "At first I thought the answer is 12. But that ignores the tax, so the answer is {}.",
    "Answer: 12\nNo, let me redo this.\nAnswer: {}",
    r"The answer is \({}\).",
]


def spelling(number: Decimal, rng: random.Random) -> str:
    """One of the ways to write a number: plain, with groups, with needless decimals, in scientific notation."""
    mark = rng.choice([",", "{,}", r"\,", "\u00a0", "\u202f"])
    scientific = f"{number:e}".replace("e", rng.choice([r" \times 10^", "e", "×10^"]))
    base, _, power = scientific.partition("10^")
    forms = [
        f"{number:f}",
        f"{number:,f}".replace(",", mark),
        scientific if not power else f"{base}10^{{{int(power)}}}",
    ]
    if number == number.to_integral_value():
        forms.append(f"{number:.2f}")
    return rng.choice(forms).replace("-", rng.choice(["-", "−"]))


def test_fifteen_phrasings_of_a_thousand_numbers_are_accepted_and_wrong_ones_refused() -> None:
    rng, missed = random.Random(14), []
    for _ in range(1000):
        number = Decimal(rng.randrange(-(10**8), 10**8)).scaleb(-rng.choice([0, 0, 0, 1, 2, 4]))
        wrong = rng.choice([-number, number * 10, number + 1, number + Decimal("0.01"), number / 10, number - 1])
        reference = rng.choice([f"{number:f}", f"{number:,f}", f"{number:e}", f"{float(number)!r}"])
        for phrasing in PHRASINGS:
            right = phrasing.format(spelling(number, rng))
            missed += [right] if gsm8k(right, reference).score != 1 else []
            other = phrasing.format(spelling(wrong, rng))
            assert gsm8k(other, reference).score == 0, (other, reference)
    assert len(missed) <= 15, missed


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("c", "C"),
        ("(c)", "C"),
        ("C) Paris", "C"),
        ("C. Paris", "C"),
        ("**C**", "C"),
        ("The answer is c.", "C"),
        ("The answer is **C**.", "C"),
        ("the answer is a", "A"),
        (r"\boxed{C}", "C"),
        (r"$\boxed{\text{(C)}}$", "C"),
        (r"$\mathbf{B}$", "B"),
        ("Answer:\nC", "C"),
        ("**Answer:** C", "C"),
        ("My answer is: 'B'", "B"),
        ("The correct option is (c)", "C"),
        ("The answer to the question is D", "D"),
        ("So it must be option D.", "D"),
        ("The answer is A because it fits", "A"),
        ("At first glance the answer is A. But that is wrong, so the answer is C.", "C"),
        ("Answer: A\nNo, let me redo.\nAnswer: C", "C"),
        ("The answer is A. Wait, B.", "B"),
        ("The answer is not A. It is C.", "C"),
        ("Option B is incorrect. C is correct.", "C"),
        ("A is wrong, B is wrong, so C", "C"),
        ("A) 3 is too small\nB) 5 fits\nC) 9 is too big\nSo B is right.", "B"),
        ("A cat is here. I would pick D", "D"),
        ("The best option is (B), not (A).", "B"),
    ],
)
def test_the_last_choice_of_an_option_counts(completion: str, letter: str) -> None:
    assert final_letter(completion, "ABCD") == letter


@pytest.mark.parametrize(
    "completion", ["", "The answer is a bit complicated", "I think so", "Answer is H", "B is wrong"]
)
def test_articles_pronouns_and_refused_options_are_no_choice(completion: str) -> None:
    assert final_letter(completion, "ABCD") == ""


@pytest.mark.parametrize(
    ("completion", "both"), [("The answer is A or B.", "A or B"), ("It is (A) and (C)", "A or C"), ("C/D", "C or D")]
)
def test_two_options_are_no_choice(completion: str, both: str) -> None:
    assert final_letter(completion, "ABCD") == both
    reference = json.dumps({"answer": both[0], "letters": "ABCD"})
    assert verifier("letter@2")(completion, reference).score == 0


@pytest.mark.parametrize(
    ("completion", "word"),
    [
        ("So the answer is not valid.", "invalid"),
        ("So the answer is not invalid.", "valid"),
        ("The argument isn't deductively valid.", "invalid"),
        ("It looks valid, but the argument is invalid.", "invalid"),
        ("The answer is valid. Wait, it is invalid.", "invalid"),
        ("Is it valid or invalid? So the answer is **valid**.", "valid"),
        ("So the answer is valid or invalid.", "valid or invalid"),
        ("I cannot know.", ""),
    ],
)
def test_a_denied_word_is_its_opposite(completion: str, word: str) -> None:
    assert final_word(completion, ("valid", "invalid")) == word
