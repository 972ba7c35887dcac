"""What a turn has beside a plain text: content in parts, a weight, the calls of a turn and the tools there are.

Data write them in several ways: a list or the JSON of one, a function bare or wrapped, its arguments an object or the
JSON of one. Here they become one. A `ValueError` says what cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tercet.outside import read_json

ROLES = ("system", "user", "assistant", "tool")
ROLE_NAMES = {"developer": "system", "function": "tool"}  # OpenAI's names of two roles
WEIGHTS = ("weight", "train", "training")  # of a turn: whether it is trained
ONLY_TEXT = "only text can be read, so leave such rows out, or take the {} out of them where the text does without"
_MEDIA = ("image", "audio", "video", "file")
_PART_TEXTS = {"text": "text", "input_text": "text", "output_text": "text"}  # type of a part -> where its text stands
_PART_THOUGHTS = {"thinking": "thinking", "reasoning": "reasoning"}


def is_plain(turn: Any) -> bool:
    """Whether a stored turn has a role and a text and nothing else, as most have."""
    return type(turn) is dict and len(turn) == 2 and turn.get("role") in ROLES and type(turn.get("content")) is str


def read_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """The turn with its content as one text, a role of ours, and all its calls under `tool_calls`."""
    found = {**turn, "role": ROLE_NAMES.get(turn["role"], turn["role"])}
    if turn.get("function_call") and not turn.get("tool_calls"):  # how OpenAI wrote a call before there were several
        found["tool_calls"] = [turn["function_call"]]
    content = turn.get("content")
    if isinstance(content, list | tuple):
        content, thought = _joined(content)
        found |= {"thought": thought} if thought else {}
    if content is None and found.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"has content of type {type(content).__name__}, expected text")
    return found | {"content": content}


def _joined(parts: list[Any] | tuple[Any, ...]) -> tuple[str, str]:
    """The text of content in parts, as templates join it (without a gap), and the thought in it."""
    texts, thoughts = [], []
    for part in parts:
        kind = str(part.get("type", "text")) if isinstance(part, dict) else "text"
        text = part.get(_PART_TEXTS.get(kind, "")) if isinstance(part, dict) else part
        thought = part.get(_PART_THOUGHTS[kind]) if kind in _PART_THOUGHTS else None
        if media := next((name for name in _MEDIA if name in kind), ""):
            raise ValueError(f"holds {media} content ({kind!r}); {ONLY_TEXT.format(media)}")
        if isinstance(thought, str):
            thoughts.append(thought)
        elif isinstance(text, str):
            texts.append(text)
        else:
            raise ValueError(f"holds a part that is no text: {part!r:.80}; expected parts of type 'text'")
    return "".join(texts), "\n".join(thoughts)


def untrained(turn: Mapping[str, Any]) -> bool:
    """Whether a turn says that it is context: weight 0, or train false."""
    if turn.get("train_detail"):
        raise ValueError("has parts that are trained apart (train_detail); only whole turns can be, by `train`")
    given = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
    if wrong := [key for key, value in given.items() if not isinstance(value, int | float) or value not in (0, 1)]:
        value = given[wrong[0]]
        raise ValueError(f"has the {wrong[0]} {value!r:.40}; a turn is trained (1, true) or is context (0, false)")
    return not all(given.values())


def calls_text(value: Any) -> str:
    """Calls as JSON, each `{id, type, function: {name, arguments}}` with the arguments as an object."""
    calls = []
    for call in _list(value, "tool_calls"):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(f"a tool call must be an object with the name of a function, got {call!r:.80}")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = read_json(arguments) if arguments.strip() else {}
            except ValueError:
                raise ValueError(f"the arguments of a tool call are not JSON: {arguments!r:.80}") from None
        named = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
        function = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        calls.append({**named, "type": "function", "function": function})
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def tools_text(value: Any) -> str:
    """Tools as JSON, each `{type, function}`."""
    tools = []
    for tool in _list(value, "tools"):
        if not isinstance(tool, dict) or not isinstance(tool.get("function", tool), dict):
            raise ValueError(f"a tool must be an object that describes a function, got {tool!r:.80}")
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    return json.dumps(_without_nulls(tools), ensure_ascii=False) if tools else ""


def _list(value: Any, name: str) -> list[Any]:
    """A list, or the JSON of one; empty for null."""
    if isinstance(value, str) and value.strip():
        try:
            value = read_json(value)
        except ValueError:
            raise ValueError(f"{name} is not JSON: {value!r:.80}") from None
        value = [value] if isinstance(value, dict) else value
    if value is None or isinstance(value, str):
        return []
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list under {name}, got {type(value).__name__}")
    return list(value)


def _without_nulls(value: Any) -> Any:
    """Without the keys that a table fills with null where another row's object has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value
