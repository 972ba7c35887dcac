"""Numbers in text against values worked out by hand, and against Python's exact decimals for thousands of spellings."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.numbers import number_reference, numbers_in, plain, read_number, spelled

READ = {
    "-3": [
        "-3",
        "−3",
        "–3",
        "\u20113",
        "-$3",
        "−$3",
        "$-3",
        r"-\$3",
        "-€ 3",
        "negative 3",
        "x = -3",
        r"$\boxed{−3}$",
        "US$-3",
    ],
    "5": ["5", "+5", "5.", "5.00", "05", "**5**", "`5`", r"\(5\)", r"\[5\]", "$5$", "$$5$$", "(5)", "{5}", "\uff15"],
    "7": ["x=7", r"T_{\max}=7", r"T_{\max} = 7", "x_1 = 7", "f(x)=7", r"\alpha=7", r"x \approx 7"],
    "9": [
        r"9\,\text{cm}",
        r"9\;\mathrm{cm}",
        r"9\text{ m}",
        "9 cm",
        "9cm",
        "9 square feet",
        r"9\text{ cm}^2",
        "9 m/s^2",
    ],
    "90": [r"90^\circ", r"90^{\circ}", "90°", "90 degrees", r"90\text{ degrees}"],
    "18000": [
        "18000",
        "18,000",
        r"18{,}000",
        r"18{\,}000",
        r"18,\!000",
        r"18\,000",
        "18 000",
        "18\u00a0000",
        "18\u2009000",
    ],
    "18000.5": ["18,000.5", "18.000,5", "18\u202f000,5", "18'000.5", "18’000.50", "$18,000.50", "18,000.5 dollars"],
    "1234567": ["1,234,567", "1.234.567", "12,34,567", "1 234 567", "1'234'567", r"1\ 234\ 567", "1~234~567"],
    "20": ["20%", r"20\%", "20 %", "20 percent", "$20", "20$", "20 €", "£20", "20 USD"],
    "0.5": [
        "0.5",
        ".5",
        "1/2",
        "1 / 2",
        "½",
        "1\u20442",
        r"\frac{1}{2}",
        r"\frac12",
        r"\dfrac 12",
        r"\tfrac{2}{4}",
        "5e-1",
    ],
    "3.5": ["7/2", "3 1/2", "3½", "3 ½", r"3\frac{1}{2}", r"3 \frac 12", r"\frac{7}{2}", r"\frac{3.5}{1}"],
    "-0.5": ["-1/2", "−½", r"-\frac{1}{2}", r"\frac{-1}{2}", r"-\frac12"],
    "0.0015": ["1.5e-3", "1.5E-03", r"1.5 \times 10^{-3}", "1.5 × 10^-3", "1.5×10⁻³", "1.5 x 10^(-3)", "1.5*10**-3"],
    "100000": ["1e5", "1e+5", "10^5", "10^{5}", "10⁵", r"1 \cdot 10^5", "1E5", "100 thousand"],
    "1.21": ["1.1^2", "1.1**2", "1.1^{2}", "1.1²"],
    "5000000": ["5 million", "$5 million", "5-million"],
}
NO_NUMBER = [
    *("", "abc", "x", "6e", "e-5", "5x", "5 pi", r"2\pi", r"5\mathrm{e}", "5 or 6", "5-10", "5 to 10", "3, 5"),
    *("3,5", "0,500", "1,2345", "1,234,56", "1.2.3", "10:30", "3/4/2020", "x=5, y=6", "1/0", "18 dollars and 50 cents"),
    *(r"\frac{1,5}{2}", r"\frac{\pi}{2}", r"5\sqrt{2}", "1e999999", "9^999999", "9" * 500, r"0.5\text{ or }1", "3 + 4"),
]


@pytest.mark.parametrize(("value", "text"), [(value, text) for value, texts in READ.items() for text in texts])
def test_a_number_is_read_in_every_common_form(value: str, text: str) -> None:
    assert read_number(text) == Fraction(value)


@pytest.mark.parametrize("text", NO_NUMBER)
def test_what_is_not_one_number_is_not_read_in_part(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("10-3", [10, 3]),  # a hyphen between numbers is no sign
        ("10 - 3 = 7", [10, 3, 7]),
        ("3 - 4 = -1", [3, 4, -1]),
        ("The balance is -$3.", [-3]),
        ("- 3 apples\n- 4 pears", [3, 4]),  # marks of a list
        ("x = - 3", [-3]),
        ("COVID-19, H2O and step2", [19]),
        ("No.5 costs .5", [5, Fraction(1, 2)]),
        ("one of 1,2,3", [None]),
        ("at 10:30 for 3,5 hours", [None, None]),
        ("50% of $1,200.00 is $600", [50, 1200, 600]),
        ("x^2 + y_3", []),
    ],
)
def test_numbers_in_a_text_have_their_values_in_order(text: str, values: list[object]) -> None:
    assert [number.value for number in numbers_in(plain(text))] == values


def test_five_thousand_random_spellings_have_the_value_that_python_gives_them() -> None:
    rng = random.Random(7)
    for _ in range(5000):
        number = Decimal(rng.randrange(-(10**9), 10**9)).scaleb(-rng.randrange(0, 7))
        mark = rng.choice([",", "{,}", r"\,", "\u00a0", "\u2009", "'"])
        forms = [f"{number:f}", f"{number:e}", f"{number:,f}".replace(",", mark), f"${number:,f}$".replace(",", mark)]
        text = rng.choice(forms).replace("-", rng.choice("-−–"))
        assert read_number(text) == Fraction(number), text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(5), "5"),
        (Fraction(-1, 2), "-0.5"),
        (Fraction(1, 3), "1/3"),
        (Fraction(18000), "18000"),
        (Fraction(3, 1000), "0.003"),
        (Fraction(0), "0"),
    ],
)
def test_a_value_has_one_shortest_spelling(value: Fraction, text: str) -> None:
    assert spelled(value) == text
    assert Fraction(text) == value


@pytest.mark.parametrize("reference", ["72", "$72", "72 dollars", "2 * 36 = 72\n#### 72", '{"answer": "72"}', "72.00"])
def test_a_reference_answer_is_a_number_in_any_form(reference: str) -> None:
    assert number_reference("gsm8k@2", reference) == (72, 0)


@pytest.mark.parametrize(
    "reference",
    ["", "#### ", "seventy", "5 or 6", "3,5", "#### 5 apples, 3 pears", '{"answer": "x"}', '{"a": 1}', "nan"],
)
@pytest.mark.parametrize("name", ["gsm8k@2"])
def test_a_reference_answer_that_is_no_number_is_an_error(name: str, reference: str) -> None:
    with pytest.raises(VerifierError, match=f"{name} expects"):
        verifier(name)("5", reference)


def test_a_tolerance_stands_with_the_reference_answer() -> None:
    grade = verifier("gsm8k@2")
    near = '{"answer": "3.14159", "tolerance": 0.01}'
    assert [grade(f"It is {text}.", near).score for text in ("3.14", "3.15", "22/7", "3.2")] == [1, 1, 1, 0]
    assert grade("It is 3.14.", "3.14159").score == 0
    for bad in ('{"answer": "3", "tolerance": -1}', '{"answer": "3", "tolerance": "much"}'):
        with pytest.raises(VerifierError, match="tolerance"):
            grade("3", bad)
