"""Tool calls in plain words, for models whose template is not asked: what a model reads of tools, and what it calls.

A call stands between `<tool_call>` and `</tool_call>` as JSON with `name` and `arguments`, a result between
`<tool_response>` and `</tool_response>` in a user's turn, as many models were taught.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tercet.rows import Message

CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
ASKS = (
    'You may call tools. To call one, write <tool_call>{{"name": NAME, "arguments": {{…}}}}</tool_call>; its result '
    "follows. The tools:\n{}"
)

Wire = Mapping[str, Any]  # a turn as OpenAI's protocol has it


def explained(tools: Iterable[Wire]) -> list[Wire]:
    """The turn that tells a model of these tools; none where there are none."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return [{"role": "system", "content": ASKS.format("\n".join(lines))}] if lines else []


def said(turns: Iterable[Wire]) -> list[Message]:
    """Turns of the protocol as a model reads them: neighbours of a role are one turn, results of tools are a user's."""
    found: list[Message] = []
    for turn in turns:
        text = _text(turn.get("content"))
        role = turn["role"]
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        elif role == "developer":
            role = "system"
        if found and found[-1].role == role:
            found[-1] = Message(role, f"{found[-1].content}\n\n{text}")
        else:
            found.append(Message(role, text))
    return found


def called(text: str, turn: int) -> dict[str, Any]:
    """What a model wrote as the protocol's turn, with the calls in it; what is no JSON stays text."""
    calls = []
    for number, one in enumerate(CALL.finditer(text)):
        try:
            call = json.loads(one[1])
        except ValueError:
            continue
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            function = {"name": call["name"], "arguments": json.dumps(call.get("arguments") or {})}
            calls.append({"id": f"call_{turn}_{number}", "type": "function", "function": function})
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": CALL.sub("", text).strip(), "tool_calls": calls}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text", f"[{part.get('type')}]") for part in content)
    return content or ""
