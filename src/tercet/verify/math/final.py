r"""`math@2`: one formula against another, read from where a completion states its final answer.

The published protocols (verifiers.py) try several candidates of a completion and read `2e3` as a product. Here the
last statement counts, numbers are exact, and units, names and delimiters around an answer do not matter.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from tercet.verify.grade import Grade, unreadable
from tercet.verify.math.latex import boxed, hendrycks
from tercet.verify.math.verifiers import LONGEST, ask, check_packages
from tercet.verify.numbers import BLANK, NAME, NO_UNIT, label_of, numbers_in, plain, read_number
from tercet.verify.stated import CLAUSE, AnswerPlace, places, sentence

SPAN = re.compile(
    r"\\\((.{1,999}?)\\\)|\\\[(.{1,999}?)\\\]|\$\$(.{1,999}?)\$\$|(?<!\\)\$(.{1,999}?)(?<!\\)\$", re.DOTALL
)
JOINED = re.compile(r"(?:\s|,|and\b|or\b)+")
WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathbf|mathrm|mbox|boldsymbol)\s*\{([^{}]*)\}")
LAST_UNIT = re.compile(
    r"(?<=[\w})])\s*\\(?:text|textrm|mbox|mathrm)\s*\{\s*(?!(?:or|and|if|for|e|i|d)\b)[A-Za-z /.°]+\}(?:\^\{?\d\}?)?$"
)
LIST = re.compile(r"(\(|\[|\\\{|\\langle\b|)(.*?)(\)|\]|\\\}|\\rangle|)", re.DOTALL)
WORDS_OF_LISTS = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}|\s(?:and|or)\s|;")
FORMULA = re.compile(r"[\\^$=+*/(){}]|\d[A-Za-z]")


def math_answer(completion: str, reference: str) -> Grade:
    """`math@2`: the formula that the completion states last equals the reference answer.

    Two formulas are equal if they are equal numbers, exactly; are spelled alike; differ by what simplifies to zero;
    or are lists whose items are (a set, and a list without brackets, in any order). The reference answer is an
    answer, a solution with a box, or JSON `{"answer": "3.14", "tolerance": 0.01}`. Units are not compared.
    VerifierError for an empty reference answer, and when the packages of the LaTeX parser do not fit.
    """
    check_packages()
    label, tolerance = label_of("math@2", reference)
    gold = boxed(label) or (_formulas(label)[0] if "\\boxed" in label else label)
    if not gold.strip(" $"):
        raise unreadable(
            "math@2", "an answer or a solution with a box as reference answer, e.g. '\\boxed{2}'", reference
        )
    found = _formulas(completion)
    if not found:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty")
    verdicts = [_verdict(mine, gold, tolerance) for mine in found]
    right = "equal" in verdicts
    outcome = next((one for one in verdicts if one in ("timeout", "error") and not right), "graded")
    return Grade(float(right), found[0][:LONGEST], outcome)


def _formulas(completion: str) -> list[str]:
    """The last statement as one formula, or as several readings of one; where there is a box, it has to be a number.

    "We check: our answer is correct" behind a box is no answer.
    """
    found = list(places(completion))
    boxes = any(place.boxed for place in found)
    for place in found:
        readings = _readings(place)
        words = CLAUSE.split(sentence(place.text))[0]
        if readings and (place.boxed or not (boxes and place.stated) or read_number(words) is not None):
            return readings
    return []


def _readings(place: AnswerPlace) -> list[str]:
    """What a place says: its box, its formula, or a sentence, its first clause, and its number."""
    if place.boxed:
        return [place.text]
    text = place.text.strip(' \n\t*_`":')
    spans = list(SPAN.finditer(text))
    if place.stated and spans and not spans[0].start():
        return [_together(text, spans)]
    words = (sentence(place.text) if place.stated else text[-LONGEST:].split("\n")[-1]).strip(" *.")
    if inside := [span for span in spans if not place.stated or span[0] in words]:
        return [_inside(inside[-1])]
    clause = CLAUSE.split(words)[0].strip(" *.")
    return [one for one in dict.fromkeys([words, clause, *_number_in_words(clause), *_number_in_words(words)]) if one]


def _together(text: str, spans: list[re.Match[str]]) -> str:
    """The formula that a text begins with, and those that are joined to it: "$1$ and $2$" is "1, 2"."""
    end, found = spans[0].end(), [_inside(spans[0])]
    for span in spans[1:]:
        if not JOINED.fullmatch(text, end, span.start()):
            break
        end, found = span.end(), [*found, _inside(span)]
    return ", ".join(found)


def _inside(span: re.Match[str]) -> str:
    return next(group for group in span.groups() if group is not None).strip()


def _number_in_words(text: str) -> list[str]:
    """The only number of a sentence in plain words: "that Ann has 5 apples"; a formula is never read in part."""
    text = plain(text)
    numbers = numbers_in(text)
    if len(numbers) != 1 or FORMULA.search(text) or NO_UNIT.search(text):
        return []
    return [text[numbers[0].start : numbers[0].end]]


@lru_cache(maxsize=65536)
def _verdict(mine: str, gold: str, tolerance: Fraction = Fraction(0)) -> str:
    """The verdict "equal", "different", "timeout" or "error" on two formulas; plain numbers need no worker."""
    if not mine or max(len(mine), len(gold)) > LONGEST:
        return "different"
    first, second = read_number(mine), read_number(gold)
    if first is None and second is not None and "=" in mine and "," not in mine:
        mine = mine.rsplit("=", 1)[1]
        first = read_number(mine)
    if first is not None and second is not None:
        return "equal" if abs(first - second) <= tolerance else "different"
    one, other = (_tidy(text) for text in (mine, gold))
    if "=" in one and "=" not in other and "," not in one:
        one = one.rsplit("=", 1)[1].strip()
    if hendrycks(one).casefold() == hendrycks(other).casefold() != "":
        return "equal"
    (mine_marks, mine_items), (gold_marks, gold_items) = _items(one), _items(other)
    if max(len(mine_items), len(gold_items)) > 1:
        same = mine_marks == gold_marks and len(mine_items) == len(gold_items)
        return _verdict_of_items(mine_items, gold_items, gold_marks in ("", r"\{\}")) if same else "different"
    return ask("exactly_equal", _exact(first, one), _exact(second, other))


def _verdict_of_items(mine: list[str], gold: list[str], in_any_order: bool) -> str:
    left = list(gold)
    for item in mine:
        verdicts = {other: _verdict(item, other) for other in (left if in_any_order else left[:1])}
        same = next((other for other, verdict in verdicts.items() if verdict == "equal"), None)
        if same is None:
            return next((one for one in verdicts.values() if one in ("timeout", "error")), "different")
        left.remove(same)
    return "equal"


def _tidy(text: str) -> str:
    """A formula without what does not change it: delimiters around it, its name, units, words in wrappers, bold."""
    text = plain(text).replace("×", r"\times ").replace(BLANK, " ")
    text = re.sub(r"(?<=\d)\^([-+]?\d+)", r"^{\1}", text.replace(r"\displaystyle", "")).strip(" \n*.")
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip(" \n.")
    text = LAST_UNIT.sub("", NAME.sub("", text, count=1).strip())
    if whole := WRAPPED.fullmatch(text):
        text = whole[1].strip()
    return re.sub(r"[$%]", "", re.sub(r"^\(([A-Za-z])\)$", r"\1", text)).strip()


def _items(text: str) -> tuple[str, list[str]]:
    """The brackets around a list, and its items; a text without commas outside brackets is one item."""
    text = WORDS_OF_LISTS.sub(",", text)
    around = LIST.fullmatch(text)
    marks, inner = (around[1] + around[3], around[2]) if around and around[1] and around[3] else ("", text)
    if marks and len(_split(text)) > 1:  # "(1, 2), (3, 4)": the outer brackets are not one pair
        marks, inner = "", text
    return marks, _split(inner)


def _split(text: str) -> list[str]:
    items, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        items = [*items, ""] if character == "," and depth == 0 else [*items[:-1], items[-1] + character]
    return [item.strip() for item in items if item.strip()]


def _exact(value: Fraction | None, text: str) -> str:
    """The formula for the computer algebra; a number as a fraction, since `1e-5` would be read as a product."""
    if value is None:
        return text
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
