"""Answers inside LaTeX text: where they stand, and the two ways of writing them alike. Pure string work.

Minerva's normalisation takes words and units off an answer; Hendrycks' makes two spellings of a formula one string.
Both follow Tülu 3's MATH ("flex") protocol. Where its usual implementation deletes letters inside other words ("ft"
in `\\left`, "a " in `2a + b`) or joins a list into one number ("1,2"), words and digit groups are kept whole here.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

PHRASE = re.compile(r"Final Answer: The final answer is(.*?)\.? I hope it is correct")
CLOSING = " I hope it is correct."
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
DOLLAR = re.compile(r"(?<!\\)\$")

# What Minerva's normalisation takes off, as whole words and as LaTeX.
UNITS = (
    "square ways integers dollars mph inches ft hours km units sue points feet minutes digits cents degrees cm gm "
    "pounds meters meals edges students children tickets multiples"
)
UNIT = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(UNITS.split())})(?![A-Za-z])")
ARTICLE = re.compile(r"(?<![\w\\])an? (?=[A-Za-z]{2})")
NOISE = re.compile(r',\\!|\\text\{(?:s|m|\.|\s*)\}(?:\^[23])?|\\mathrm\{th\}|\^\\circ|\^\{\\circ\}|\\[;:,!]|"|\\l?dots')
WRAPPER = re.compile(r"\\(?:text|textbf|overline)\{([^{}]*)\}")

SHORT_ROOT = re.compile(r"\\sqrt\s*(\\[A-Za-z]+|[^{\[\s\\])")
SHORT_FRACTION = re.compile(r"\\frac(?:([^{\\])([^{\\])|([^{\\])(?=\{)|(\{[^{}]*\})([^{\\]))")
RIGHT_UNIT = re.compile(r"\\(?:text|mbox)\{ [^{}]*\}(?:\^\{?\d\}?)?\.?\s*$")
DIGITS = r"\d{1,15}"
NUMBER = re.compile(
    rf"(?P<sign>-?)(?:(?P<decimal>{DIGITS}(?:\.{DIGITS})?)"
    rf"|(?P<whole>(?:{DIGITS})?)\\frac\{{(?P<over>-?{DIGITS})\}}\{{(?P<under>-?{DIGITS})\}})"
)
GROUPED = re.compile(r"-?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?")


class Candidate(NamedTuple):
    """A possible answer, and where it stood: "phrase", "boxed", "dollars" or "whole"."""

    place: str
    text: str


def candidates(text: str) -> list[Candidate]:
    """The possible answers of a solution, best first: never empty.

    The Minerva phrase "Final Answer: The final answer is ... I hope it is correct." (a cut-off closing is forgiven)
    and the last box both count; without them the text between the last two dollar signs, else the whole. All but the
    box are normalised, and an equation, of which that leaves only the right side, is a candidate as it stands too.
    """
    found = []
    if match := PHRASE.search(text + CLOSING):
        found += _normalised("phrase", match[1])
    if box := boxed(text):
        found.append(Candidate("boxed", box))
    dollars = [match.start() for match in DOLLAR.finditer(text)]
    if not found and len(dollars) > 1:
        found += _normalised("dollars", text[dollars[-2] + 1 : dollars[-1]])
    return found or [Candidate("whole", minerva(text)), Candidate("whole", text.strip())]


def _normalised(place: str, text: str) -> list[Candidate]:
    forms = [minerva(text), text.strip().strip("$")] if "=" in text else [minerva(text)]
    return [Candidate(place, form) for form in forms if form]


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}` or `\fbox{}`, or of `\boxed x` up to the next dollar; None if unclosed."""
    places = list(BOX.finditer(text))
    if not places:
        return None
    rest = text[places[-1].end() :]
    if not rest.lstrip().startswith("{"):
        return rest.split("$")[0].strip()
    rest, depth = rest.lstrip(), 0
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i].strip()
    return None


def minerva(text: str) -> str:
    """An answer without units, articles, wrappers, spaces and thousands commas: "a total of" stays, "$12$ cm" is 12."""
    text = text.rsplit("=", 1)[-1].replace("mbox", "text").replace(r"\$", "").replace(".$", "$")
    text = UNIT.sub("", ARTICLE.sub("", text)).replace("\\ ", "").replace(" ", "")
    text = NOISE.sub("", text.replace(r"\text{and}", "" if r",\text{and}" in text else ",").replace("{,}", ""))
    text = re.sub(r".*?\$(.*?)\$.*", r"\1", text)
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", WRAPPER.sub(r"\1", text)).replace("$", "")
    text = _brace_fractions(SHORT_ROOT.sub(r"\\sqrt{\1}", text))
    return text.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text.strip().removesuffix(".")


def hendrycks(text: str) -> str:
    """The canonical spelling of a formula; two answers whose spellings agree are equal."""
    text = text.replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\^\{\\circ\}|\^\\circ(?![A-Za-z])|\\\$", "", text)
    text = re.sub(r"\\?%", "", RIGHT_UNIT.sub("", text)).strip()
    text = re.sub(r"(^|[ {])\.(?=\d)", r"\g<1>0.", text)
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left.strip()) <= 2:
        text = right
    text = _brace_fractions(SHORT_ROOT.sub(r"\\sqrt{\1}", text).replace(" ", ""))
    if text == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def number(text: str) -> Fraction | None:
    r"""The exact value of a plain number, fraction or mixed number (`3\frac{1}{2}` is 7/2), else None."""
    text = hendrycks(text)
    match = NUMBER.fullmatch(re.sub(r"\{,\}|,", "", text) if GROUPED.fullmatch(text) else text)
    if not match:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"])
    elif int(match["under"]):
        value = int(match["whole"] or 0) + Fraction(int(match["over"]), int(match["under"]))
    else:
        return None
    return -value if match["sign"] else value


def _brace_fractions(text: str) -> str:
    def braced(match: re.Match[str]) -> str:
        both, below, above, wide, last = match.groups()
        return rf"\frac{wide}{{{last}}}" if wide else rf"\frac{{{above}}}" if above else rf"\frac{{{both}}}{{{below}}}"

    return SHORT_FRACTION.sub(braced, text)
