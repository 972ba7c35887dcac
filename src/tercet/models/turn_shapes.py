"""What a chat template does with an answer, a thought and a call of a tool, found by rendering small conversations.

Two renderings that differ in one letter show what stands before and behind it; one with a further turn shows which
token ends a turn. Nothing is looked up by the name of a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tercet.models.chat_template import ChatError, ChatTemplate

FIELDS = ("reasoning_content", "thinking", "reasoning")  # what templates call the thought of a message
_ASKED = {"role": "user", "content": "a"}
_THOUGHT, _ANSWER = "Thought1", "Answer2"
_TOOL: dict[str, Any] = {
    "name": "tool3",
    "description": "d",
    "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
}


class Ending(NamedTuple):
    """How a turn ends: the text of the token, what the last turn of a text has behind it, and whether the template
    writes the token only as the beginning of the next turn."""

    text: str
    after: str = ""
    implied: bool = False


class PromptGap(NamedTuple):
    """A turn that is not written behind its generation prompt: the prompt's end, and what stands in its place."""

    dangling: str
    written: str


class Shape(NamedTuple):
    """How an answer without thoughts or calls is written."""

    opening: str  # what the generation prompt adds to the turns before
    gap: PromptGap | None
    before: str  # the text up to the answer of a first turn
    waiting: str  # the prompt of a first turn
    ending: Ending


class Thoughts(NamedTuple):
    """How a thought gets into the text: a field of the message, the content (`{}` is the thought), or put between the
    generation prompt and the answer by us; nothing where the template leaves thoughts out.

    `split`: a thought between marks in the content is taken for one.
    """

    field: str = ""
    inline: str = ""
    between: str = ""
    split: bool = False


class Calls(NamedTuple):
    """How calls are given to the template: arguments as text or object, no content as null or as empty text."""

    as_text: bool
    null: bool
    any_id: bool  # else the template wants nine letters and digits
    ending: Ending


def probe(write: ChatTemplate, specials: Sequence[str]) -> Shape:
    """How the template writes an answer; ChatError where it cannot be trained."""
    asked = write([_ASKED])
    waiting = write([_ASKED], waiting=True)
    texts = [write([_ASKED, _answer(content)]) for content in "bc"]
    found = _around(texts)
    if found is None:
        raise ChatError(
            "the chat template does not write an answer right after its generation prompt, so training and "
            f"generation would disagree: it waits with\n{waiting!r}\nand then writes\n{texts[0]!r}"
        )
    before, behind = found
    gap = None
    if not before.startswith(waiting):
        shared = len(common_start([waiting, before]))
        gap = PromptGap(waiting[shared:], before[shared:])
        if not _opened(waiting):
            raise ChatError(
                "the chat template does not write an answer right after its generation prompt, so training and "
                f"generation would disagree: it waits with\n{waiting!r}\nand then writes\n{texts[0]!r}"
            )
    ending = _ending(behind, _followed(write, [_ASKED], [_answer(c) for c in "bc"], _ASKED), specials)
    if ending is None:
        raise ChatError(
            "missing end-of-turn token: the chat template must close an assistant turn with a special token, so "
            f"that a model learns to stop; it closes with {behind!r}. "
            'Set template = "tulu3" under [base], or repair the template:\n' + repr(texts[0])
        )
    return Shape(waiting.removeprefix(asked) if waiting.startswith(asked) else "", gap, before, waiting, ending)


def probe_thoughts(write: ChatTemplate, shape: Shape) -> Thoughts:
    """How the template carries a thought in the last turn."""
    opened = _opened(shape.waiting)
    tag, space = opened or ("think", "\n")
    inline = f"<{tag}>{space}{{}}{space}</{tag}>\n\n"
    inlined = _tried(write, _answer(inline.replace("{}", _THOUGHT) + _ANSWER))
    for field in FIELDS:
        text = _tried(write, _answer(_ANSWER) | {field: _THOUGHT})
        if _THOUGHT in text and text.find(_THOUGHT) < text.find(_ANSWER):
            own = text != inlined and (shape.gap is not None or not _plain(shape) or "<think>" not in text)
            return Thoughts(field=field, split=own)
    shut = re.search(r"</\w+>\s*$", shape.waiting)  # the generation prompt says that there is no thought
    if _THOUGHT in inlined and inlined.startswith(shape.waiting) and not shut:
        return Thoughts(inline=inline)
    if opened and shape.gap is not None:
        close = f"</{tag}>"
        tail = shape.before[-len(close) - 8 :]
        between = space + (tail[tail.rfind(close) :] if close in tail else f"{close}\n\n")
        return Thoughts(between=between, split=True)
    return Thoughts()


def probe_calls(write: ChatTemplate, specials: Sequence[str]) -> Calls | None:
    """The first way of giving calls that the template writes as it should; None where there is none."""
    for as_text, null in ((False, False), (False, True), (True, False), (True, True)):
        turns = [_call(letter, as_text, null) for letter in "bc"]
        texts = [_tried(write, turn, tools=True) for turn in turns]
        found = _around(texts)
        if found is None or _TOOL["name"] not in texts[0] or "{'x'" in texts[0]:
            continue
        result = {"role": "tool", "content": "d", "name": _TOOL["name"], "tool_call_id": "call00001"}
        follow = _followed(write, [_ASKED], turns, result, tools=True)
        if ending := _ending(found[1], follow, specials):
            short = _call("b", as_text, null, name="c1")
            return Calls(as_text, null, bool(_tried(write, short, tools=True)), ending)
    return None


def _answer(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _call(argument: str, as_text: bool, null: bool, name: str = "call00001") -> dict[str, Any]:
    arguments: Any = f'{{"x": "{argument}"}}' if as_text else {"x": argument}
    function = {"name": _TOOL["name"], "arguments": arguments}
    calls = [{"id": name, "type": "function", "function": function}]
    return {"role": "assistant", "content": None if null else "", "tool_calls": calls}


def _tried(write: ChatTemplate, turn: dict[str, Any], *, tools: bool = False) -> str:
    """The text of one exchange; empty where the template refuses it."""
    try:
        return write([_ASKED, turn], tools=[{"type": "function", "function": _TOOL}] if tools else None)
    except ChatError:
        return ""


def _followed(
    write: ChatTemplate,
    before: Sequence[dict[str, Any]],
    turns: Sequence[dict[str, Any]],
    after: dict[str, Any],
    *,
    tools: bool = False,
) -> str | None:
    """What stands behind an answer once another turn follows; None where the template refuses that."""
    given = [{"type": "function", "function": _TOOL}] if tools else None
    try:
        texts = [write([*before, turn, after], tools=given) for turn in turns]
    except ChatError:
        return None
    found = _around(texts)
    return found[1] if found else None


def _around(texts: Sequence[str]) -> tuple[str, str] | None:
    """What stands before and behind the one letter, b or c, in which two texts differ; None where more differs."""
    before = common_start(texts)
    behind = texts[0][len(before) + 1 :]
    return (before, behind) if list(texts) == [f"{before}b{behind}", f"{before}c{behind}"] else None


def _ending(behind: str, follow: str | None, specials: Sequence[str]) -> Ending | None:
    """The last special token that closes a turn both at the end and when another follows.

    Else the first at the end; else the token with which the next turn begins.
    """
    if not specials:
        return None
    marks = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))))
    shared = len(behind if follow is None else common_start([behind, follow]))
    found = list(marks.finditer(behind))
    kept = [mark for mark in found if mark.end() <= shared][-1:] or found[:1]
    if kept:
        return Ending(kept[0][0], behind[kept[0].end() :])
    if follow is None or not follow.startswith(behind):
        return None
    begins = re.compile(rf"\s*(?:{marks.pattern})").match(follow[len(behind) :])
    return Ending(begins[0], implied=True) if begins else None


def common_start(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)  # in this order all others lie between them
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def opened_mark(waiting: str) -> str:
    """The mark of a thought that the generation prompt leaves open, with the white space behind it; mostly nothing."""
    found = _opened(waiting)
    return f"<{found[0]}>{found[1]}" if found else ""


def _opened(waiting: str) -> tuple[str, str] | None:
    """The mark of a thought that the generation prompt leaves open, and the white space behind it."""
    found = re.search(r"<(\w+)>(\s*)$", waiting)
    return (found[1], found[2]) if found else None


def _plain(shape: Shape) -> bool:
    """Whether an answer stands right behind its generation prompt."""
    return shape.before == shape.waiting
