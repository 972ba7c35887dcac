"""Where a model's own words stand in a conversation, found by asking the template and never by a list of names.

A template is a function of messages. What the model reads before turn i is the rendering of the turns before it with
the generation prompt (the head); what it must write is what the rendering up to and with turn i has behind that head,
to the token that ends a turn. Templates differ in what stands between head and answer: nothing, a space, a channel, an
empty thought. Some write earlier turns otherwise once others follow (thoughts are left out), so a conversation may need
several texts: each answer is trained behind what the model will see before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tercet.models.chat_template import ChatError, ChatTemplate
from tercet.models.turn_shapes import (
    Calls,
    Ending,
    Shape,
    Thoughts,
    common_start,
    opened_mark,
    probe,
    probe_calls,
    probe_thoughts,
)
from tercet.rows import DetailedMessage, Message, is_context
from tercet.verify.thoughts import CLOSE, OPEN

_THOUGHT = re.compile(r"\s*(?:<think>)?\n*(.*?)\n*</think>\s*(.*)", re.DOTALL)
_GONE, _SAID = "\ufdd0", "\ufdd1"  # noncharacters: they stand for a thought and an answer that are taken out again


class Span(NamedTuple):
    """Characters `begin` to `end` of a text: an answer with what closes it."""

    begin: int
    end: int


class TrainedText(NamedTuple):
    """A text that the model reads and writes, and the answers in it that are trained."""

    text: str
    spans: list[Span]


class UntrainableError(ChatError):
    """What is trained has no place in the text of a conversation; the text is kept to show it."""

    def __init__(self, message: str, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class _Answer(NamedTuple):
    """One turn of the model: what it sees, the text up to the turn's end, and where the last trained token ends."""

    head: str
    text: str
    end: int

    def stands_in(self, text: str) -> bool:
        """Whether the text has this turn where the model would write it."""
        return text.startswith(self.head) and text.startswith(self.text[: self.end])


class Turns:
    """A template with what was found out about it. The properties are asked for when a conversation needs them."""

    def __init__(self, write: ChatTemplate, specials: Sequence[str]) -> None:
        self.write, self._specials = write, specials

    @cached_property
    def shape(self) -> Shape:
        """How an answer without thoughts or calls is written; a ChatError where the template does not show it."""
        return probe(self.write, self._specials)

    @cached_property
    def thoughts(self) -> Thoughts:
        """How the template carries a thought; prompts also need it where answers cannot be trained."""
        try:
            return probe_thoughts(self.write, self.shape)
        except ChatError:
            return Thoughts()

    @cached_property
    def calls(self) -> Calls | None:
        """How the template carries calls of tools; None where it does not."""
        return probe_calls(self.write, self._specials)

    @cached_property
    def lead(self) -> str:
        """What the model writes between the generation prompt and an answer without a thought, mostly nothing."""
        asked = Message("user", "a")
        answers = [self._answer([asked, Message("assistant", content)], 1) for content in "bc"]
        return common_start([answer.text for answer in answers])[len(answers[0].head) :]

    def said(self, written: str) -> str | None:
        """An answer in plain words, its thought between `<think>` marks; None where it does not begin as one does."""
        opens, between = self.marks if self.thoughts.field else ("", "")
        if opens and written.startswith(opens):
            thought, found, answer = written[len(opens) :].partition(between)
            return f"{OPEN}{thought}{CLOSE}{answer}" if found else f"{OPEN}{thought}"
        if self.lead and written.startswith(self.lead):
            return written[len(self.lead) :]
        return "" if self.lead.startswith(written) or opens.startswith(written) else None

    @cached_property
    def marks(self) -> tuple[str, str]:
        """What stands before a thought, also where the prompt ends with it, and between the thought and the answer.

        Nothing where the template carries no thought.
        """
        way, opened = self.thoughts, opened_mark(self.shape.waiting)
        if not way.field:
            before, _, between = way.inline.partition("{}")
            return (before, between) if before else (opened, way.between) if way.between else ("", "")
        turn = DetailedMessage("assistant", _SAID, thought=_GONE)
        try:
            answer = self._answer([Message("user", "a"), turn], 1)
        except ChatError:  # the prompt says not to think
            return "", ""
        before, _, behind = answer.text[len(answer.head) :].partition(_GONE)
        return before or opened, behind.partition(_SAID)[0]

    def text(self, messages: Sequence[Message], *, waiting: bool = False) -> str:
        """The template's text of a conversation."""
        if any(type(m) is DetailedMessage or (m.role == "assistant" and "</think>" in m.content) for m in messages):
            return self.write(self._turns(messages), waiting=waiting, tools=_tools(messages))
        return self.write([{"role": m.role, "content": m.content} for m in messages], waiting=waiting)

    def behind(self, replies: Sequence[Message]) -> str:
        """What stands between the end of an answer and the beginning of the next, where these turns lie between.

        Some templates end an answer by another token once others replied: what was written stands in its place.
        """
        asked = [Message("user", "a"), Message("assistant", _SAID), *replies]
        text = self.text(asked, waiting=True).partition(_SAID)[2]
        ends = [(text.find(special), special) for special in self._specials if special in text]
        if not ends:
            raise ChatError("the template writes no token that ends an answer which others reply to")
        return text.partition(min(ends)[1])[2]

    def paths(self, messages: Sequence[Message]) -> list[TrainedText]:
        """The texts that train every answer of a conversation; one where the template allows it, the last turn last.

        An answer that is marked as context is only read, as what users and tools say.
        """
        trained = [turn for turn, one in enumerate(messages) if one.role == "assistant" and not is_context(one)]
        answers = [self._answer(messages, turn) for turn in trained]
        closed = bool(trained) and trained[-1] == len(messages) - 1
        whole = answers[-1].text if closed else self.text(messages)
        _check_tools(messages, whole)
        found: list[tuple[str, list[Span]]] = [(whole, [])]
        for answer in reversed(answers):
            place = next((spans for text, spans in found if answer.stands_in(text)), None)
            if place is None:
                place = list[Span]()
                found.append((answer.text, place))
            place.insert(0, Span(len(answer.head), answer.end))
        used = [TrainedText(text, spans) for text, spans in reversed(found) if spans]
        return used or [TrainedText(whole, [])]

    def _answer(self, messages: Sequence[Message], turn: int) -> _Answer:
        message = messages[turn]
        thought, calls = self._thought_of(message), getattr(message, "tool_calls", "")
        head, closed = self.text(messages[:turn], waiting=True), self.text(messages[: turn + 1])
        if turn == 0 and not head.endswith(self.shape.opening):
            raise UntrainableError(
                f"the chat template does not open turn {turn} by a generation prompt, so what is trained has no fixed "
                "place; use other turns (a conversation starts with system or user)",
                closed,
            )
        if not closed.startswith(head):
            closed = self._composed(messages[: turn + 1], head, closed, thought)
        ending = self._ending(calls)
        if ending.implied:
            closed += ending.text
        elif not closed.endswith(ending.text + ending.after):
            raise UntrainableError(f"missing end-of-turn token {ending.text!r} after turn {turn}", closed)
        answer = _Answer(head, closed, len(closed) - len(ending.after))
        self._check(answer, thought, calls, turn)
        return answer

    def _ending(self, calls: str) -> Ending:
        return self.calls.ending if calls and self.calls is not None else self.shape.ending

    def _composed(self, messages: Sequence[Message], head: str, closed: str, thought: str) -> str:
        """The turn behind a head that opens a thought, where the template writes a turn without one differently."""
        way, last = self.thoughts, messages[-1]
        if way.field or way.inline:
            marked = self.text([*messages[:-1], _with_thought(last, _GONE)]) if not thought else ""
            if marked.startswith(head) and marked.count(_GONE) == 1:
                return marked.replace(_GONE, "")
        gap = self.shape.gap
        if gap is not None and way.between and head.endswith(gap.dangling):
            begin = head.removesuffix(gap.dangling) + gap.written
            if closed.startswith(begin):
                return head + thought + way.between + closed[len(begin) :]
        about = " (it closes its thought before it begins: the row thinks, the prompt says not to)" if thought else ""
        raise UntrainableError(
            "the chat template does not write an answer right after its generation prompt, so training and generation "
            f"would disagree{about}: it waits with\n{head[-300:]!r}\nand then writes\n{closed[-300:]!r}\n"
            'set other template_args under [base], or thinking = "drop" in the stage',
            closed,
        )

    def _check(self, answer: _Answer, thought: str, calls: str, turn: int) -> None:
        """Nothing of the turn is lost in silence: its thought and the names of its calls stand in what is trained."""
        written = answer.text[len(answer.head) : answer.end]
        if thought.strip() not in written:
            raise UntrainableError(
                f'the chat template does not write the thought of turn {turn}; set thinking = "drop" in the stage, or '
                "use a template that carries thoughts",
                answer.text,
            )
        _check_calls(calls, written, turn, answer.text)

    def _thought_of(self, message: Message) -> str:
        if message.role != "assistant":
            return ""
        if isinstance(message, DetailedMessage) and message.thought:
            return message.thought
        if "</think>" not in message.content:
            return ""
        return split_thought(message.content)[0]

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        open_calls: list[dict[str, Any]] = []  # those that no tool has answered yet
        return [self._turn(message, open_calls) for message in messages]

    def _turn(self, message: Message, open_calls: list[dict[str, Any]]) -> dict[str, Any]:
        thought, content = "", message.content
        if message.role == "assistant" and "</think>" in content and self.thoughts.split:
            thought, content = split_thought(content)
        found: dict[str, Any] = {"role": message.role, "content": content}
        if not isinstance(message, DetailedMessage):
            return found | self._thinking(thought, content)
        found |= self._thinking(message.thought or thought, content)
        if message.tool_calls:
            calls = self._calls(message)
            own = [call.get("id") for call in json.loads(message.tool_calls)]
            open_calls += [call | {"own": name} for call, name in zip(calls, own, strict=True)]
            return found | {"tool_calls": calls, "content": found["content"] or self._nothing}
        if message.role == "tool":
            found |= _answered(message, open_calls)
        return found

    def _thinking(self, thought: str, content: str) -> dict[str, Any]:
        if not thought:
            return {}
        if self.thoughts.field:
            return {self.thoughts.field: thought}
        return {"content": self.thoughts.inline.replace("{}", thought) + content} if self.thoughts.inline else {}

    @property
    def _nothing(self) -> str | None:
        """How the template wants the content of a turn that only calls."""
        return None if self.calls is not None and self.calls.null else ""

    def _calls(self, message: DetailedMessage) -> list[dict[str, Any]]:
        """The calls of a turn as the template wants them, each with an id."""
        calls, way = json.loads(message.tool_calls), self.calls
        for number, call in enumerate(calls):
            own = call.get("id", "")
            fits = way is None or way.any_id or re.fullmatch(r"[A-Za-z0-9]{9}", own)
            call["id"] = own if own and fits else f"call{number:05d}"
            if way is not None and way.as_text:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return calls


def _answered(message: DetailedMessage, open_calls: list[dict[str, Any]]) -> dict[str, str]:
    """The id and the name of the call that a tool answers: the one it names, else the first that is open."""
    named = [place for place, call in enumerate(open_calls) if message.tool_call_id in (call["id"], call["own"])]
    if not open_calls or (message.tool_call_id and not named):
        given = {"tool_call_id": message.tool_call_id, "name": message.name}
        return {key: text for key, text in given.items() if text}
    call = open_calls.pop(named[0] if named else 0)
    return {"tool_call_id": call["id"], "name": message.name or call["function"]["name"]}


def split_thought(content: str) -> tuple[str, str]:
    """The thought before `</think>` and the answer behind it; no thought and the whole text where there is none."""
    found = _THOUGHT.fullmatch(content)
    return (found[1], found[2]) if found else ("", content)


def without_thoughts(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with its answers alone."""
    return tuple(_with_thought(one, "") if one.role == "assistant" else one for one in messages)


def num_thoughts(messages: Sequence[Message]) -> int:
    """Answers that have a thought."""
    answers = [one for one in messages if one.role == "assistant"]
    return sum(1 for one in answers if getattr(one, "thought", "") or "</think>" in one.content)


def _with_thought(message: Message, thought: str) -> Message:
    own = dict(vars(message)) | {"content": split_thought(message.content)[1]}
    if thought or isinstance(message, DetailedMessage):
        return DetailedMessage(**own | {"thought": thought})
    return Message(**own)


def _tools(messages: Sequence[Message]) -> list[Any] | None:
    """The tools of a conversation, which stand on its first turn."""
    first = messages[0] if messages else None
    return json.loads(first.tools) if isinstance(first, DetailedMessage) and first.tools else None


def _check_tools(messages: Sequence[Message], text: str) -> None:
    """The tools that there are, what they gave back, and the calls that are not trained stand in the text."""
    names = [str(tool["function"].get("name", "")) for tool in _tools(messages) or ()]
    if lost := [name for name in names if name not in text]:
        raise UntrainableError(
            f"the chat template does not write the tool {lost[0]!r}; use a template that carries tools, or remove "
            "such rows",
            text,
        )
    for turn, message in enumerate(messages):
        if isinstance(message, DetailedMessage) and message.untrained:
            _check_calls(message.tool_calls, text, turn, text)
        if message.role == "tool":
            said = message.content.strip()
            if said not in text and json.dumps(said, ensure_ascii=False)[1:-1] not in text:
                raise UntrainableError(
                    f"the chat template does not write what the tool says in turn {turn}; use a template that carries "
                    "tools, or remove such rows",
                    text,
                )


def _check_calls(calls: str, written: str, turn: int, text: str) -> None:
    """The names of the functions that a turn calls are written."""
    names = [call["function"]["name"] for call in json.loads(calls or "[]")]
    if lost := [name for name in names if name not in written]:
        raise UntrainableError(
            f"the chat template does not write the call of {lost[0]!r} in turn {turn}; use a template that carries "
            "tool calls, or remove such rows",
            text,
        )
