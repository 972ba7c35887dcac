"""Filters of conversations: each is a pure function from a row to the reason for its removal, or None.

`FILTERS` names them; `checks` binds the parameters of a recipe's table. A filter sees one row and remembers nothing, so
filtering twice removes nothing more; rules that compare rows are in `dedupe`.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from tercet.rows import Row
from tercet.verify.instructions.language import language_of

_LISTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("filters.toml").read_text(encoding="utf-8"))
KEYWORDS, MAKERS, MODELS = (tuple(_LISTS[name]) for name in ("keywords", "makers", "models"))

_EASTERN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # written without spaces
_WORD = re.compile(rf"[{_EASTERN}]|[^\W{_EASTERN}]+")
_TOKEN = re.compile(rf"{_WORD.pattern}|[^\w\s]")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SIGN = re.compile(r"[{}()\[\]<>=+*/\\_#$;|^]")
_KEYWORD = re.compile(rf"\b(?:{'|'.join(map(re.escape, KEYWORDS))})\b", re.IGNORECASE)
_AN_AI = r"an? (?:AI|artificial intelligence|(?:large |AI )?language model)(?: (?:assistant|model|system|chatbot))*"
_REFUSAL = re.compile(
    r"\bI(?: am|'m)? (?:\w+ly |just )?(?:cannot|can't|can not|could not|couldn't|won't|will not|do not|don't"
    r"|(?:am )?(?:not able|unable|not going|not allowed|not permitted) to|(?:must|have to) (?:\w+ly )?"
    r"(?:decline|refuse)(?: to)?|decline to|refuse to|(?:am )?not comfortable)"
    r"(?: \w+ly| in good conscience| be able to| to)*"
    r" (?:help(?! but)|assist|provid|giv|offer|answer|fulfil|compl|creat|writ|generat|produc|support|engag|participat"
    r"|shar|recommend|condon|encourag|promot|facilitat|do (?:that|this|so)|continu|advis|suggest)\w*"
    r"|^\W*(?:I'm|I am) (?:\w+ )?sorry,? but (?:I|it|that|this|we)\b"
    rf"|\bas {_AN_AI},? I\b",
    re.IGNORECASE,
)
_CUTOFF = re.compile(
    r"\bmy (?:knowledge|training|information)(?: data)?(?:'s)? (?:cut-?\s?off|was last updated|only goes|ends)\b"
    r"|\bas of my (?:last|latest|most recent|knowledge|training)\b|\bmy (?:last|latest) (?:\w+ )?update\b",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    """Why a row is removed, and the text that shows it (uncut; empty when the detail says all)."""

    detail: str
    text: str = ""


Check = Callable[[Row], Finding | None]


def checks(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Check]:
    """The filters of a recipe's table with their parameters, in its order: `{"repetition": {"share": 0.2}, ...}`."""
    ready: dict[str, Check] = {}
    for name, given in settings.items():
        if name not in FILTERS:
            raise ValueError(f"unknown filter {name!r}; the known filters are {', '.join(sorted(FILTERS))}")
        known = inspect.signature(FILTERS[name]).parameters.items()
        defaults = {key: parameter.default for key, parameter in known if parameter.kind is parameter.KEYWORD_ONLY}
        for key, value in given.items():
            if key not in defaults or not _fits(value, defaults[key]):
                listed = ", ".join(f"{k} = {v!r}" for k, v in defaults.items()) or "none"
                raise ValueError(f"filter {name!r} cannot take {key} = {value!r}; its parameters are: {listed}")
        ready[name] = partial(FILTERS[name], **given)
    return ready


def paper_filters(source: str) -> tuple[str, ...]:
    """The paper's filters that a source gets: both, save for the sources that its scripts exempt (Tülu 3 code)."""
    name = source.casefold().replace("-", "_")
    return next((tuple(kept) for part, kept in _LISTS["exempt"].items() if part in name), ("keywords", "blank"))


def keywords(row: Row) -> Finding | None:
    """An assistant turn names another maker's model: whole word, any case (Tülu 3, SFT conversion scripts)."""
    return _said(row, _KEYWORD)


def blank(row: Row) -> Finding | None:
    """A message is empty or holds only white space (Tülu 3, SFT conversion scripts)."""
    found = [f"turn {i} ({turn.role})" for i, turn in enumerate(row.messages) if turn.blank]
    return Finding(f"blank: {', '.join(found)}") if found else None


def repetition(row: Row, *, ngram: int = 10, share: float = 0.3) -> Finding | None:
    """Over `share` of an assistant turn's letters repeat an n-gram of words (Gopher, Rae et al. 2021, table A1).

    Gopher's bound for web pages is 0.1; sound answers repeat more (1.3 % of GSM8K's pass 0.1, 0.04 % pass 0.3), and
    what a looping model writes comes near 1.
    """
    for turn in _answers(row):
        found, example = repeated(turn, ngram)
        if found > share:
            return Finding(f"{found:.0%} of a turn repeats {ngram}-grams", example)
    return None


def language(row: Row, *, keep: Sequence[str] = ("en",), least: int = 100, most: int = 1000) -> Finding | None:
    """An answer is in none of the languages `keep` (langdetect's codes; Cavnar & Trenkle 1994, Shuyo 2010).

    Up to `most` characters of each assistant turn are read, without code blocks. Turns with fewer than `least` letters,
    or with a sign of code or mathematics for every 20 letters, are passed over.
    """
    for turn in _answers(row):
        text = _CODE.sub(" ", turn)[:most]
        letters = sum(map(str.isalpha, text))
        prose = letters >= max(least, 20 * len(_SIGN.findall(text)))
        found = language_of(text) if prose else None
        if found and found not in keep:
            return Finding(f"language {found}", text)
    return None


def length(
    row: Row, *, characters: Sequence[int] = (0, 0), words: Sequence[int] = (0, 0), turns: Sequence[int] = (0, 0)
) -> Finding | None:
    """A conversation is shorter or longer than `(least, most)` in a measure; a most of 0 is no bound."""
    measures: dict[str, tuple[Sequence[int], Callable[[], int]]] = {
        "characters": (characters, lambda: sum(len(turn.content) for turn in row.messages)),
        "words": (words, lambda: sum(len(split_words(turn.content)) for turn in row.messages)),
        "turns": (turns, lambda: len(row.messages)),
    }
    for name, ((least, most), count) in measures.items():
        size = count() if least or most else 0
        if size < least or (most and size > most):
            return Finding(f"{size} {name}, outside {least} to {most or 'any'}")
    return None


def refusal(row: Row, *, within: int = 200) -> Finding | None:
    """An assistant turn opens by refusing, or as an AI (after Zou et al. 2023, app. B); not for safety data."""
    return _said(row, _REFUSAL, within)


def identity(row: Row, *, names: Sequence[str] = MODELS, makers: Sequence[str] = MAKERS) -> Finding | None:
    """An assistant turn claims to be another's model or of another maker (as later open-instruct code finds it).

    Only claims in the first person count ("I am Claude", "I was trained by Google"), not the bare names.
    """
    return _said(row, _claim(tuple(names), tuple(makers)))


def cutoff(row: Row) -> Finding | None:
    """An assistant turn mentions its own knowledge cut-off (as later open-instruct code finds it)."""
    return _said(row, _CUTOFF)


FILTERS: dict[str, Callable[..., Finding | None]] = {"keywords": keywords, "blank": blank, "repetition": repetition}
FILTERS |= {"language": language, "length": length, "refusal": refusal, "identity": identity, "cutoff": cutoff}


def split_words(text: str, *, signs: bool = False) -> list[str]:
    """The words of a text without case, and each sign of it where asked; a Chinese or Japanese character is a word."""
    return (_TOKEN if signs else _WORD).findall(text.casefold())


def repeated(text: str, ngram: int) -> tuple[float, str]:
    """The share of letters in n-grams of words that the text held before, and the commonest such n-gram."""
    found = split_words(text)
    grams = list(zip(*(found[i:] for i in range(ngram)), strict=False))
    if len(set(grams)) == len(grams):
        return 0.0, ""
    seen: set[tuple[str, ...]] = set()
    covered = done = 0
    for place, gram in enumerate(grams):
        if gram in seen:
            covered += sum(len(word) for word in found[max(done, place) : place + ngram])
            done = place + ngram
        seen.add(gram)
    return covered / sum(map(len, found)), " ".join(Counter(grams).most_common(1)[0][0])


def _answers(row: Row) -> Iterator[str]:
    return (turn.content for turn in row.messages if turn.role == "assistant")


def _said(row: Row, pattern: re.Pattern[str], within: int | None = None) -> Finding | None:
    """The first match in an assistant turn, with the text around it; typographic apostrophes count as plain ones."""
    for turn in _answers(row):
        found = pattern.search(turn[:within].replace("\u2019", "'"))
        if found:
            return Finding(f"assistant says {found.group()!r}", turn[max(0, found.start() - 160) : found.end() + 160])
    return None


@cache
def _claim(names: tuple[str, ...], makers: tuple[str, ...]) -> re.Pattern[str]:
    """First-person claims; "I am Claude Monet" is none, because another name follows."""
    models, firms = (
        "|".join(map(re.escape, sorted(each, key=len, reverse=True))) or r"(?!)" for each in (names, makers)
    )
    who = rf"(?:(?:{models})(?:[- ]?v?\d[\w.]*)?(?!(?-i: [A-Z])|\w)|{_AN_AI} (?:from|of) (?:{firms})\b)"
    made = r"(?:created|made|trained|developed|built|designed|fine-?tuned|programmed|owned|released)"
    return re.compile(
        rf"\b(?:I am|I'm|my name is|call me) (?:called |named |an? |the )?{who}"
        rf"|\bI(?:'m| am| was| have been|'ve been)\b[^.!?\n]{{0,60}}\b{made}(?: and \w+)? (?:by|at) (?:{firms})\b"
        rf"|\bas an? (?:AI |language |large )*model[^.!?\n]{{0,30}}\b{made}(?: and \w+)? (?:by|at) (?:{firms})\b",
        re.IGNORECASE,
    )


def _fits(value: Any, default: Any) -> bool:
    """Whether a setting is of its default's kind: a positive number, or a list of like things (a pair stays a pair)."""
    if isinstance(default, tuple):
        same = isinstance(value, list | tuple) and all(type(item) is type(default[0]) for item in value)
        return same and (not isinstance(default[0], int) or (len(value) == 2 and min(value) >= 0))
    return type(value) in ((int, float) if isinstance(default, float) else (int,)) and value > 0
