r"""Numbers in text: one reader for all verifiers, exact, so that two spellings of one number are equal.

Read are signs (`-3`, U+2212, an en dash, `-$3`, `$-3`, "negative 3", `+5`), groups of thousands (`18,000`, `18{,}000`,
`18\,000`, `18 000` with any blank, `18'000`, `1,00,000`), decimals (`5.00`, `.5`), powers and scientific notation
(`1.5e-3`, `1.5 \times 10^{-3}`, `10⁵`), fractions (`3/4`, `\frac34`, `¾`), mixed numbers (`3 1/2`) and "5 million". A
percent sign is a unit like others: 20 % is 20, and not 0.2.

A comma with other than three digits behind it may be a decimal comma or part a list, so "3,5" has no value and equals
nothing; `1.234,56` and `1 234,56` can be read in one way only, and are. Clock times and dates have no value either.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from tercet.verify.grade import read_reference, unreadable

JSON = '{"answer": "3.14", "tolerance": 0.01}'
LONGEST = 400  # characters of a number, and digits of a power; no answer is longer
BLANK = "\u00a0"  # stands for every blank that is narrower or tied, and for those of LaTeX

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_TABLE = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-")
    | dict.fromkeys("\u2007\u2009\u202f\u2005\u2006\u2008\u200a", BLANK)
    | dict.fromkeys("×·⋅∙✕✖", "×")
    | dict.fromkeys("\u2044\u2215", "/")
    | {"’": "'", "\u200b": None, "\u2060": None}
)
_COMPOSED = re.compile("[¼-¾\u2150-\u215e\u2189\uff01-\uff5e]")  # vulgar fractions, and characters of full width


def _forms(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(form), alike) for form, alike in pairs)


# How LaTeX, and then words and powers, are written alike, in this order.
_LATEX = _forms(
    (r"\\!|\\left(?![A-Za-z])|\\right(?![A-Za-z])", ""),
    (r"\{\\,\}|\\[,;: ]", BLANK),
    (r"\\([$%])", r"\1"),
    (r" ?\\(?:times|cdot)(?![A-Za-z]) ?", "×"),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s?(?:(\d)|(\{[^{}]*\}))\s?(?:(\d)|(\{[^{}]*\}))", r"\\frac{\1\2}{\3\4}"),
    (r"\{\{([^{}]*)\}\}", r"{\1}"),
    (r"(\\[A-Za-z]+)(?=\d)", r"\1 "),
)
_ALIKE = _forms(
    (r"\{,\}", ","),
    (r"~", BLANK),
    (r"\b(?:USD|EUR|GBP|INR|CAD|AUD|US|Rs\.?)\s?(?=[-\d$])", "$"),
    (r"\$\s?\$(?=[-\d])", "$"),
    (r"(?<=\d)\s?(?:\^|\*\*)\s?(?:\{\s?([-+]?\d+)\s?\}|\(\s?([-+]?\d+)\s?\)|([-+]?\d+))", r"^\1\2\3"),
    (r"((?:[=(≈{:]|\b(?:is|be|equals))\s?)(?:-|\bminus)\s(?=[$€£¥₹]?\s?[\d.\\])", r"\1-"),
    (r"\b[Nn]egative\s(?=[$€£¥₹]?\s?[\d.\\])", "-"),
)
_WHOLE = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|[1-9]\d{0,2}(?:['\u00a0 ]\d{3})+)(?!\d)"  # groups
_DECIMAL = rf"(?:{_WHOLE}|\d+)(?:\.\d+)?|(?<![\w.)])\.\d+"
_NUMBER = re.compile(
    rf"""
    (?:(?<![\w)\]}}%-])(?P<sign>[-+]))?  # a sign behind a word or a number is a hyphen or a subtraction
    (?:[$€£¥₹]\s?(?P<inner>[-+])?)?
    (?<![A-Za-z_^\d])(?<![_^]\{{)
    (?:
      (?:(?P<whole>\d+)[\u00a0 ]?)?\\frac\{{(?P<over>[-+]?[\d,.]+)\}}\{{(?P<under>[-+]?[\d,.]+)\}}
      | (?P<mixed>\d+)[\u00a0 ]+(?P<part>\d+)/(?P<of>\d+)(?![\d/.,])
      | (?:
          (?P<european>[1-9]\d{{0,2}}(?:\.\d{{3}})+,\d+|[1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}(?!\d)
              |[1-9]\d{{0,2}}(?:['\u00a0 ]\d{{3}})+,\d+)
          | (?P<decimal>{_DECIMAL})
        )
        (?:[eE](?P<e>[-+]?\d+)(?![A-Za-z\d]) | \s?[×xX*]\s?10\^(?P<tens>[-+]?\d+) | \^(?P<power>[-+]?\d+))?
        (?:[\u00a0 ]?/[\u00a0 ]?(?P<by>\d+(?:\.\d+)?))?
    )
    (?:[\u00a0 -]?(?P<scale>thousand|million|billion|trillion)\b)?
    """,
    re.VERBOSE,
)
_MORE = re.compile(
    r"[.,/]\d[\d.,:/]*|:\d{1,2}(?!\d)[\d.,:/]*"
)  # digits that run on: a decimal comma or a list, a time, a date
_SCALE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

# What may stand around a number that is a whole answer.
_WRAPPED = re.compile(r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox|boxed|fbox|mathit|textit)\s*\{([^{}]*)\}")
NAME = re.compile(r"\\?[A-Za-z]\w*?(?:_\{[^{}]*\}|_\\?\w+)?(?:\([a-z]\))?'?\s*(?:=|\\approx|≈)(?=[^=]+$)")
_FEW = "cm|mm|km|kg|mg|ml|mL|ft|in|mi|yd|lb|lbs|oz|hr|hrs|min|sec|ms|mph|kW|Hz|st|nd|rd|th"
_UNIT = re.compile(
    rf"\s*(?:%|°[CF]?|\^\{{?\\circ\}}?|[€£¥₹$¢])?\s*"
    rf"(?:(?:(?<=\d)(?:{_FEW})|(?<=[\s%])(?:{_FEW}|[mgshL]|[A-Za-z]{{3,}}))\b(?:/[A-Za-z]+|[\s-][A-Za-z]{{2,}})*)?"
    r"(?:\^\{?[23]\}?)?\s*[.!]?\s*"
)
NO_UNIT = re.compile(r"\b(?:e|i|d|pi|sqrt|sin|cos|tan|log|ln|exp|mod|and|or|to|not|than)\b")


class Number(NamedTuple):
    """A number in a plain text: its value, or None where it can be read in more than one way, and its place."""

    value: Fraction | None
    start: int
    end: int


def plain(text: str) -> str:
    r"""The text with one spelling for each sign, separator, power and fraction: `−1\,000` is "-1 000"."""
    if not text.isascii():
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda found: f"^{found[0].translate(_SUPERSCRIPTS)}", text)
        text = _COMPOSED.sub(_simple, text).translate(_TABLE)
    for form, alike in _LATEX if "\\" in text else ():
        text = form.sub(alike, text)
    for form, alike in _ALIKE:
        text = form.sub(alike, text)
    return text


def numbers_in(text: str) -> list[Number]:
    """All numbers of a text that is `plain`, in order."""
    found, place = [], 0
    while match := _NUMBER.search(text, place):
        place, value = match.end(), _value(match)
        if more := _MORE.match(text, place):
            place, value = more.end(), None
        found.append(Number(value, match.start(), place))
    return found


def read_number(text: str) -> Fraction | None:
    r"""The value of a text that is one number and what belongs to it: `$18`, `x = 5`, `5\,\text{cm}`, "18 dollars".

    None where there is anything else, such as a second number: a text is never read in part.
    """
    text = plain(text).strip(" \n\t*_`\"'")
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("(", ")"), ("{", "}")):
        if text.startswith(opening) and text.rstrip(". ").endswith(closing) and len(text) > len(opening + closing):
            text = text.rstrip(". ")[len(opening) : -len(closing)].strip()
    text = _WRAPPED.sub(_unwrapped, _WRAPPED.sub(_unwrapped, text)).strip()
    text = NAME.sub("", text, count=1).strip()
    found = numbers_in(text)
    if len(found) != 1 or found[0].start:
        return None
    rest = text[found[0].end :]
    return found[0].value if _UNIT.fullmatch(text, found[0].end) and not NO_UNIT.search(rest) else None


class NumberReference(NamedTuple):
    """A number as reference answer, and by how much an answer may miss it."""

    value: Fraction
    tolerance: Fraction = Fraction(0)

    def admits(self, answer: Fraction | None) -> bool:
        """Whether the answer is this number, within the tolerance."""
        return answer is not None and abs(answer - self.value) <= self.tolerance


def number_reference(verifier: str, reference: str) -> NumberReference:
    """The number that a reference answer names: `72`, `$1,234.50`, a solution ending in `#### 72`, or JSON.

    VerifierError for all that is not one number.
    """
    label, tolerance = label_of(verifier, reference)
    label = label.rsplit("####", 1)[-1]
    value = read_number(label) if len(label) <= LONGEST else None
    if value is None:
        raise unreadable(verifier, f"one number as reference answer, e.g. '72', '... #### 72' or '{JSON}'", reference)
    return NumberReference(value, tolerance)


def label_of(verifier: str, reference: str) -> tuple[str, Fraction]:
    """The text of a reference answer and its tolerance: JSON `{"answer": "3.14", "tolerance": 0.01}`, else all of it.

    Other keys beside the answer are not read.
    """
    if not reference.lstrip().startswith('{"'):
        return reference.strip(), Fraction(0)
    fields = read_reference(verifier, reference, JSON)
    try:
        tolerance = Fraction(str(fields.get("tolerance", 0)))
    except ValueError:
        tolerance = Fraction(-1)
    if not isinstance(fields.get("answer"), str | int | float) or tolerance < 0:
        raise unreadable(verifier, f"an answer, and a tolerance from 0, e.g. {JSON}", reference)
    return str(fields["answer"]).strip(), tolerance


def spelled(value: Fraction) -> str:
    """The shortest exact spelling: a whole number, a decimal that ends, else a fraction."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    places = max(twos, fives)
    if rest != 1 or places > LONGEST:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, decimals = (digits[:-places], f".{digits[-places:]}") if places else (digits, "")
    return f"{'-' if value < 0 else ''}{whole}{decimals}"


def _simple(match: re.Match[str]) -> str:
    """A vulgar fraction as "1/2", behind a blank where it follows a digit; digits of full width as the usual ones."""
    behind = match.string[match.start() - 1 : match.start()].isdigit()
    fraction = unicodedata.decomposition(match[0]).startswith("<fraction>")
    return (" " if behind and fraction else "") + unicodedata.normalize("NFKC", match[0])


def _unwrapped(match: re.Match[str]) -> str:
    """The content of a wrapper; words in one are a unit, however short, except those that mean something."""
    words = re.fullmatch(r"[A-Za-z /°%.]+", match[1]) and not NO_UNIT.search(match[1])
    return " unit" if words and "boxed" not in match[0] else f" {match[1]}"


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a number, None where it is too long, divides by zero, or has parts that cannot be read."""
    if match.end() - match.start() > LONGEST:
        return None
    try:
        value = _unsigned(match) * _SCALE.get(match["scale"] or "", 1)
    except (ZeroDivisionError, ValueError):
        return None
    return -value if (match["sign"], match["inner"]).count("-") == 1 else value


def _unsigned(match: re.Match[str]) -> Fraction:
    if match["over"]:
        return int(match["whole"] or 0) + _digits(match["over"]) / _digits(match["under"])
    if match["mixed"]:
        return int(match["mixed"]) + Fraction(int(match["part"]), int(match["of"]))
    european = match["european"]
    value = _digits(re.sub(r"[.' \u00a0]", "", european).replace(",", ".") if european else match["decimal"])
    if tens := match["e"] or match["tens"]:
        value *= _power(Fraction(10), int(tens))
    elif match["power"]:
        value = _power(value, int(match["power"]))
    return value / Fraction(match["by"]) if match["by"] else value


def _power(base: Fraction, power: int) -> Fraction:
    if abs(power) * len(f"{base.numerator}{base.denominator}") > 4 * LONGEST:
        raise ValueError("a number without end")
    return Fraction(base**power)


def _digits(text: str) -> Fraction:
    """The value of digits with or without groups; a comma elsewhere is a ValueError."""
    if not re.fullmatch(rf"[-+]?(?:{_DECIMAL})", text):
        raise ValueError(f"not a number: {text}")
    return Fraction(re.sub(r"[,' \u00a0]", "", text))
