"""What a turn has beside its text, as one JSON text each: the tools of a conversation and the calls of a turn.

Data write them in several ways: a list or the JSON of one, a function bare or wrapped, its arguments an object or the
JSON of one. Here they become one. A `ValueError` says what cannot be read.
"""

from __future__ import annotations

import json
from typing import Any


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
                arguments = json.loads(arguments) if arguments.strip() else {}
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
            value = json.loads(value)
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
