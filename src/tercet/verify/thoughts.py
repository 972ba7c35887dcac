"""Thoughts are not answers: where the thought of a reply ends and its answer begins.

`Verifier` and `llm_judges.graded` read every completion through `answer_of`, and LLM judges' own replies are read
through it too. A thought opens only at the start of a reply, after white space at most, so a text that speaks of
`<think>` further on keeps its answer; several may follow one another. A prompt may have opened the thought already: a
closing mark alone then ends it, unless it is quoted as code or an opening one stands before it.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

OPEN, CLOSE = "<think>\n", "\n</think>\n\n"  # how generators write a thought whose marks are a template's own
# Code, in which marks are only spoken of: blocks between fences, and what stands between back-ticks in one line.
BLOCK = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?^ {0,3}\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")


class Answer(NamedTuple):
    """A reply taken apart. `unfinished`: it ends inside its thought, so that there is no answer."""

    thought: str
    answer: str
    unfinished: bool = False


@dataclass(frozen=True)
class Marks:
    """One kind of marks; see thoughts.toml."""

    open: tuple[str, ...]
    close: tuple[str, ...]
    around: tuple[str, ...] = ()
    together: bool = False


_TABLE = tomllib.loads(Path(__file__).with_name("thoughts.toml").read_text(encoding="utf-8"))
MARKS = tuple(
    Marks(tuple(one["open"]), tuple(one["close"]), tuple(one.get("around", ())), one.get("together", False))
    for one in _TABLE["marks"]
)
_OPENS = tuple(text for marks in MARKS if not marks.together for text in marks.open)
TOKENS = frozenset(text for marks in MARKS if not marks.together for text in (*marks.open, *marks.close, *marks.around))


def answer_of(reply: str) -> Answer:
    """The thought and the answer of a reply; one without a thought is its own answer, unchanged.

    Example: `answer_of("<think>2 and 2</think>4")` is `Answer("2 and 2", "4")`.
    """
    thoughts: list[str] = []
    rest = reply
    while (found := _opened(rest) or (None if thoughts else _closed(rest))) is not None:
        thoughts.append(found.thought.strip())
        rest = found.answer
        if found.unfinished:
            return Answer("\n\n".join(thoughts), "", unfinished=True)
    return Answer("\n\n".join(filter(None, thoughts)), rest)


def left_open(prompt: str) -> str:
    """The opening mark with which a prompt ends, so that what follows is thought; mostly nothing."""
    return next((one for one in _OPENS if prompt.rstrip().endswith(one)), "")


def _opened(text: str) -> Answer | None:
    """The thought that opens at the start of the text, and what follows it."""
    begin = len(text) - len(text.lstrip())
    for marks in MARKS:
        if opening := next((one for one in marks.open if text.startswith(one, begin)), ""):
            after = begin + len(opening)
            places = _places(text, marks.close, after)
            if places:  # a mark that is quoted as code ends no thought, unless there is no other
                end = next((place for place in places if not _quoted(text, place)), places[0])
                return _split(text, after, end, marks)
            if not marks.together:
                return Answer(text[after:], "", unfinished=True)
    return None


def _closed(text: str) -> Answer | None:
    """The thought that the prompt opened: it ends with the first closing mark, if nothing opens before."""
    found = []
    for marks in MARKS:
        for place in [] if marks.together else _places(text, marks.close, 0)[:1]:
            if not any(one in text[: place[0]] for one in marks.open) and not _quoted(text, place):
                found.append((place, marks))
    if not found:
        return None
    end, marks = min(found, key=lambda one: one[0])
    return _split(text, 0, end, marks)


def _places(text: str, marks: tuple[str, ...], start: int) -> list[tuple[int, int]]:
    """Begin and end of each of these marks from `start` on, in order."""
    found = []
    for mark in marks:
        place = text.find(mark, start)
        while place >= 0:
            found.append((place, place + len(mark)))
            place = text.find(mark, place + 1)
    return sorted(found)


def _quoted(text: str, place: tuple[int, int]) -> bool:
    """Whether a mark stands in a block of code, or at one end of code in a line (thoughts have odd back-ticks)."""
    begin, end = place
    inside = [BLOCK] + [LINE] * ("`" in (text[begin - 1 : begin], text[end : end + 1]))
    return any(code.start() < begin < code.end() for kind in inside for code in kind.finditer(text))


def _split(text: str, begin: int, end: tuple[int, int], marks: Marks) -> Answer:
    answer = text[end[1] :].lstrip()
    for mark in marks.around:
        answer = answer.removeprefix(mark).lstrip()
        answer = answer.rstrip().removesuffix(mark) if answer.rstrip().endswith(mark) else answer
    return Answer(text[begin : end[0]], answer)
