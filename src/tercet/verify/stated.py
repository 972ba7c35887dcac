r"""Where a completion states its final answer, and what it says there: a number, a letter, one of two words.

The last statement counts ("the answer is", "Answer:", "####", `\boxed{}`), unless it is taken back behind it ("wait",
"no, let me redo"): then what comes after. Without any statement the end of the text is looked at. What is said not to
be the answer ("not A", "B is wrong") is none, and two answers joined by "or" are none either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from tercet.verify.numbers import Number, numbers_in, plain, read_number

STATEMENT = re.compile(
    r"""\\(?:boxed|fbox)(?![A-Za-z]) | \#{4}
    | \b(?:answer|(?:correct|right|best)\s+(?:option|choice|letter))
      (?:\s+(?:to|for|that|choice|option|value|we)\b[^.\n:=]{0,60}?)?
      [\s*_`"')]*
      (?: (?:is|was|equals|(?:would|must|should|will)\s+be)\b
          (?:\s+(?:now|thus|therefore|then|simply|clearly|indeed|exactly|definitely))*[\s*_`"]*:? | [:=] )""",
    re.VERBOSE | re.IGNORECASE,
)
TAKEN_BACK = re.compile(
    r"""[.!?\n]\s{0,3}(?:(?:but|oh|hmm+),?\s)?(?:no|sorry|oops|actually|wait|hmm+|hold\ on)\b | \bwait[,.!]
    | \bscratch\ that\b | \bcorrection:
    | \blet(?:\ me|'s|\ us)\ (?:re(?:do|start|think|consider|c\w*lculate|compute)|correct|fix|try\ again)
    | \b(?:that|this|which)\ (?:is|was|seems)\ (?:wrong|incorrect|not\ (?:right|correct))
    | \bI\ made\ an?\ (?:mistake|error)""",
    re.VERBOSE | re.IGNORECASE,
)
ABOUT = re.compile(r"[\s*]*(?:correct|right|wrong|incorrect|clear|reasonable|consistent|verified|confirmed)\b")
CHECKED = re.compile(r"\b(?:[Cc]heck|[Vv]erif|[Cc]onfirm)\w*\s(?:that\s)?(?:(?:our|the|my|this)\s)?$")
SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
CLAUSE = re.compile(r",\s|;|\s\(|\b(?:because|since|as|where|which|if|when|leaving|per)\b")
AROUND = " \n\t*_`\"':$([{\\"  # what may stand between a statement and its answer
DENIED = re.compile(
    r"(?:\bnot|n't|\brather than|\binstead of|\bnever|\bneither|\bnor|\bother than|\bexcept)"
    r"(?:\s+(?:the|equal|to|be|option|choice|answer))*[\s(*\"'$]*$"
)
REFUSED = re.compile(
    r"[\s)*\"'$]*(?:(?:is|was|are|seems|looks|would be|can be|must be)\s+"
    r"(?:not|incorrect|wrong|false|invalid|ruled out|eliminated|too)\b|isn't|wasn't|can't|cannot)"
)
AND_MORE = re.compile(
    r"(?:\s?,\s?|\s(?:[a-z]+\s)?(?:or|and|to|through|plus|minus|times)\s|\s?[-+*×/^x]\s?)[$€£¥₹(]*[-+]?\.?\d"
)
WORD = r"[AI]\s+(?!(?:is|because|since|as|and|or|would|which|seems|fits|but|due|must|not)\b)[a-z]"
CALCULATED = re.compile(r"[-+*/×=]\s?$")
BOLD = re.compile(r"(?<=\S )\*\*([^*\n]{0,59}[^*\n.:)\s])\*\*")  # no mark of a list
WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


class AnswerPlace(NamedTuple):
    """A part of a completion. `stated`: it begins behind a statement, so what comes first counts; else what is last.

    `boxed`: it is all that stands in a box.
    """

    text: str
    stated: bool
    boxed: bool = False


def places(text: str) -> Iterator[AnswerPlace]:
    """Where to look for the answer, best first; the whole text is the last place."""
    spots = [spot for spot in STATEMENT.finditer(text) if not _remark(text, spot)]
    ends = [*(spot.start() for spot in spots[1:]), len(text)]
    for spot, end in zip(reversed(spots), reversed(ends), strict=False):
        part = text[spot.end() : end]
        inside = braced(part) if spot[0].startswith("\\") else None
        rest = part[len(inside) :] if inside is not None else part
        if back := TAKEN_BACK.search(rest):
            yield AnswerPlace(rest[back.end() :], stated=False)
        if inside is not None:
            yield AnswerPlace(inside, stated=True, boxed=True)
        else:
            yield AnswerPlace(part[: back.start() if back else None], stated=True)
    yield AnswerPlace(text, stated=False)


def _remark(text: str, spot: re.Match[str]) -> bool:
    """Whether words about an answer state none: "our answer is correct", "we check the answer: ..."."""
    return bool(ABOUT.match(text, spot.end()) or CHECKED.search(text[max(0, spot.start() - 30) : spot.start()]))


def braced(text: str) -> str | None:
    """The content of the braces that a text begins with, None where there are none or they do not close."""
    rest, depth = text.lstrip(), 0
    for place, character in enumerate(rest if rest.startswith("{") else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    return None


def sentence(text: str) -> str:
    """The first sentence or line of what stands behind a statement."""
    text = text.lstrip(' \n\t*_`":')
    end = SENTENCE.search(text)
    return text[: end.start()] if end else text


def final_number(completion: str) -> tuple[Number, str] | None:
    """The number that a completion gives as its answer, and its spelling; None without any number.

    The number has no value where it can be read in two ways, or is one of several: a range, a sum left as it is.
    """
    for place in places(plain(completion)):
        text = sentence(place.text) if place.stated else place.text
        if found := (_stated_number if place.stated else _last_number)(text):
            return found, text[found.start : found.end].strip()
    return None


def _stated_number(text: str) -> Number | None:
    """The number of a sentence behind a statement.

    A number that stands first is the answer; of an equation it is what follows the last equality sign; in a sentence
    ("that the 3 boys have 18 apples") it is the last of the clause.
    """
    numbers = _asserted(text)
    if not numbers:
        return None
    end = CLAUSE.search(text)
    clause = [number for number in numbers if not end or number.end <= end.start()] or numbers
    equal = max(text.rfind(sign, 0, clause[-1].start) for sign in "=≈")
    if equal >= 0:
        found = next(number for number in clause if number.start > equal)
    else:
        found = clause[0] if not re.search("[A-Za-z]", text[: clause[0].start]) else clause[-1]
    return found._replace(value=None) if AND_MORE.match(text, found.end) else found


def _last_number(text: str) -> Number | None:
    """The last number, or one in bold in the same sentence before it: "she pays **$18** for 3 days"."""
    numbers = _asserted(text)
    bold = [match for match in BOLD.finditer(text) if read_number(match[1]) is not None]
    if bold and not SENTENCE.search(text, bold[-1].end(), numbers[-1].start if numbers else len(text)):
        return Number(read_number(bold[-1][1]), bold[-1].start(1), bold[-1].end(1))
    joined = re.compile(r"\s?-\s?|\sor\s").fullmatch(text, numbers[-2].end, numbers[-1].start) if numbers[1:] else None
    if joined and not CALCULATED.search(
        text[: numbers[-2].start]
    ):  # a range or a choice of two; "3 + 4 or 7" is neither
        return numbers[-1]._replace(value=None)
    return numbers[-1] if numbers else None


def _asserted(text: str) -> list[Number]:
    return [one for one in numbers_in(text) if not denied(text, one.start, one.end)]


def denied(text: str, start: int, end: int) -> bool:
    """Whether what stands from `start` to `end` is said not to be the answer."""
    return bool(DENIED.search(text[max(0, start - 40) : start]) or REFUSED.match(text, end))


def final_letter(completion: str, letters: str) -> str:
    """The option that a completion chooses, as a capital, e.g. "C"; two of them as "A or B"; empty without any."""
    text = WRAPPER.sub(r"\1", completion)
    mention = _mention(letters)
    for place in places(text):
        if place.stated:
            line = sentence(place.text)
            if (first := _opening(letters).match(line)) and not REFUSED.match(line, first.end(1)):
                return _with_others(line, first.start(1), first.end(1), letters)
            found = _mentions(mention, line)[:1]
        else:
            line, found = place.text, _chosen(place.text, letters)
        if found:
            return _with_others(line, *found[-1].span(found[-1].lastindex or 0), letters)
    return ""


def _chosen(text: str, letters: str) -> list[re.Match[str]]:
    """The mentions of an option in a text without statement, of the strictest kind that occurs; the last one counts."""
    either = rf"(?:\(([{letters}{letters.lower()}])\)|{_capital(letters)})"
    stripped = text.strip(AROUND + ".)]}")
    lines = re.compile(rf"(?m)^[^\w\n]*([{letters}])[).:](?=\s)").findall(text)
    forms = [rf"{either}[*\"']*(?:\s+(?:is|must be|would be)\s+(?:the\s+)?(?:correct|right|best|answer)\b)"]
    if re.fullmatch(f"[{letters}{letters.lower()}]", stripped):
        forms = [f"({re.escape(stripped)})"]
    elif len(set(lines)) == 1:
        forms.append(rf"(?m)^[^\w\n]*([{letters}])[).:](?=\s)")
    bare = letters if "I" not in letters else letters.replace("I", "")
    forms += [
        rf"(?m)^[ \t*_`\"'$(]*([{letters}{letters.lower()}])[\s*_`\"'$).]*\Z",
        rf"\(([{letters}{letters.lower()}])\)",
        _capital(bare),
    ]
    return next((hits for form in forms if (hits := _mentions(re.compile(form), text))), [])


def _mentions(form: re.Pattern[str], text: str) -> list[re.Match[str]]:
    return [hit for hit in form.finditer(text) if not denied(text, hit.start(), hit.end())]


def _capital(letters: str) -> str:
    """A capital that stands alone. The article and the pronoun stand before a word, and are no options."""
    return rf"(?<![A-Za-z0-9-])(?<![A-Za-z]['’])(?!{WORD})([{letters}])(?!\w|['’][a-z]|-\w)"


@lru_cache(maxsize=64)
def _mention(letters: str) -> re.Pattern[str]:
    return re.compile(rf"\(([{letters}{letters.lower()}])\)|{_capital(letters)}")


@lru_cache(maxsize=64)
def _opening(letters: str) -> re.Pattern[str]:
    """An option right behind the statement, where a small letter counts as well unless a word follows."""
    small = rf"[{letters.lower()}](?=[\s*_`\"'$)\]}}.,:;!]*$|[).:,;*`\"'}}\]]|\s+(?:because|since|as|or|and|is)\b)"
    return re.compile(rf"[{re.escape(AROUND)}]*(?:(?:option|choice|letter)\s+)?[(*\"]*({small})(?![\w])", re.ASCII)


def _with_others(text: str, start: int, end: int, letters: str) -> str:
    """The letter found; with a second one that is joined to it both, which is no choice."""
    letter, join = text[start:end].upper(), r"[)\]*\"'$\s]*(?:\bor\b|\band\b|[/&,])[(\[*\"'$\s]*(?:option\s+)?"
    after = re.compile(rf"{join}\(?([{letters}])(?![\w'’])").match(text, end)
    before = re.compile(rf"(?<![\w'’])([{letters}]){join}\(?$").search(text[max(0, start - 30) : start])
    return f"{letter} or {after[1]}" if after else f"{before[1]} or {letter}" if before else letter


def final_word(completion: str, words: Sequence[str]) -> str:
    """Which of two opposite words a completion ends with, e.g. "valid" or "invalid"; "not valid" is the other one."""
    first, second = words
    form = re.compile(
        rf"((?:\bnot|n't|\bnever)\s+(?:(?:a|an|be|necessarily|logically|deductively)\s+)*)?\b({first}|{second})\b",
        re.IGNORECASE,
    )
    for place in places(re.sub(r"(?i)\bin-valid\b", "invalid", completion)):
        text = re.split("[=→⇒]", sentence(place.text))[-1] if place.stated else place.text
        hits = list(form.finditer(text))
        if not hits:
            continue
        if place.stated and len(hits) > 1 and re.fullmatch(r"\W*or\W*", text[hits[0].end() : hits[1].start()]):
            return f"{hits[0][2]} or {hits[1][2]}"
        hit = hits[0] if place.stated else hits[-1]
        return (first if hit[2].lower() == second else second) if hit[1] else hit[2].lower()
    return ""
