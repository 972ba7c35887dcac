"""Calls of tools in what a model wrote, read as its own chat template writes them.

The template is asked to write one call. What stands before its JSON marks a call, and the JSON says under which names
the function and its arguments stand. Formats that are no JSON cannot be read back; tools are refused there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tercet.models.chat import Chat, ChatError
from tercet.models.openai.problems import unsupported
from tercet.rows import DetailedMessage

_NAME, _VALUE = "lookup9", "value7"
_ARGUMENTS = {"field5": _VALUE}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "d", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class CallFormat:
    """What stands before a call (nothing: the whole answer is calls), and the names of its two parts."""

    mark: str
    name: str
    arguments: str

    def read(self, text: str, tools: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
        """The text before the calls, and the calls as the protocol has them; all is text where there are none."""
        at = text.find(self.mark) if self.mark else len(text) - len(text.lstrip())
        if at < 0:
            return text, []
        found = [call for value in self._values(text[at:]) for call in (value if isinstance(value, list) else [value])]
        if not found or not all(self._is_call(call, tools) for call in found):
            return text, []
        return text[:at].rstrip(), [self._call(call) for call in found]

    def _values(self, text: str) -> list[Any]:
        """The JSON values behind marks, as far as they are whole."""
        values, place = list[Any](), 0
        while (mark := text.find(self.mark, place)) >= 0:
            place = mark + len(self.mark)
            begin = place + len(text[place:]) - len(text[place:].lstrip(" \n\t;,"))
            if text[begin : begin + 1] not in ("{", "["):
                break
            try:
                value, place = json.JSONDecoder().raw_decode(text, begin)
            except (ValueError, RecursionError):
                break
            values.append(value)
        return values

    def _is_call(self, value: Any, tools: Collection[str]) -> bool:
        return isinstance(value, dict) and value.get(self.name) in tools and self.arguments in value

    def _call(self, value: dict[str, Any]) -> dict[str, Any]:
        arguments = value[self.arguments]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {"name": value[self.name], "arguments": text}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def call_format(chat: Chat) -> CallFormat:
    """How the template of a chat writes calls; a Problem where they cannot be read back."""
    call = {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
    asked = DetailedMessage("user", "a", tools=json.dumps([_TOOL]))
    try:
        head = chat.text([asked], generation_prompt=True)
        text = chat.text([asked, DetailedMessage("assistant", "", tool_calls=json.dumps([call]))])
    except ChatError as error:
        raise unsupported("tools", f"the chat template fails on a call ({error})") from None
    written = text.removeprefix(head)
    for place, letter in enumerate(written):
        if letter not in "{[":
            continue
        try:
            value, _ = json.JSONDecoder().raw_decode(written, place)
        except ValueError:
            continue
        one = value[0] if isinstance(value, list) and value else value
        names = [key for key, part in one.items() if part == _NAME] if isinstance(one, dict) else []
        parts = [key for key, part in one.items() if part == _ARGUMENTS] if isinstance(one, dict) else []
        if names and parts:
            return CallFormat(written[:place].strip() if text.startswith(head) else "", names[0], parts[0])
    raise unsupported("tools", "the chat template of this model writes calls that are not JSON; they cannot be read")
