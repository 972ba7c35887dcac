"""The turns of a conversation as clients send them, with tools where the model's template has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from tercet.models.chat import Chat
from tercet.models.openai.problems import Problem, unsupported
from tercet.rows import DetailedMessage, Message

NAME = r"^[\w.-]{1,128}$"
MOST_TOOLS = 128


class Strict(BaseModel):
    """An object of the protocol: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    """A piece of a message that comes in pieces; only text can be read."""

    type: Literal["text"]
    text: str


class Function(Strict):
    """A function that the model may call."""

    name: str = Field(pattern=NAME)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: Literal[False] = False


class Tool(Strict):
    """A tool; the protocol's other kinds are its own services."""

    type: Literal["function"]
    function: Function

    @property
    def shown(self) -> dict[str, Any]:
        """What the template is given of it."""
        own = self.function.model_dump(exclude={"strict"}, exclude_unset=True)
        return {"type": "function", "function": {"description": "", "parameters": {}, **own}}


class CalledFunction(Strict):
    """A call's function, its arguments JSON in a string."""

    name: str = Field(pattern=NAME)
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        try:
            found = json.loads(value or "{}")
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object in a string")
        return json.dumps(found)


class Call(Strict):
    """A call of a tool that the model made earlier."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int = 0  # of a chunk that a client hands back as it came


def _text(value: Any) -> Any:
    """A message's text; the text of its pieces in a row."""
    if not isinstance(value, list):
        return value
    return "".join(TextPart.model_validate(part).text for part in value)


class Turn(Strict):
    """One message. `name` says who answers as a tool; other turns have none in any template."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text)] = ""
    reasoning_content: str = ""
    tool_calls: list[Call] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_call_id: str = ""
    name: str = ""
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    metadata: dict[str, Any] = Field(default_factory=dict)  # this and `options` say how gradio's page shows a turn
    options: list[Any] = Field(default_factory=list)

    def message(self, tools: str) -> Message:
        """The turn as our own type; the first turn of a conversation carries its tools."""
        role = "system" if self.role == "developer" else self.role
        calls = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        for call in calls:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        known: dict[str, Any] = {
            "thought": self.reasoning_content,
            "tool_calls": json.dumps(calls) if calls else "",
            "tools": tools,
        }
        known |= {"tool_call_id": self.tool_call_id, "name": self.name}
        given = {name: value for name, value in known.items() if value}
        return DetailedMessage(role, self.content, **given) if given else Message(role, self.content)

    def check(self, where: str) -> None:
        """Refuse what no template would show."""
        owners = {"reasoning_content": "assistant", "tool_calls": "assistant", "tool_call_id": "tool", "name": "tool"}
        for field, role in owners.items():
            if getattr(self, field) and self.role != role:
                raise unsupported(f"{where}.{field}", f"only turns of the role {role} have it here")
        if "content" not in self.model_fields_set and not self.tool_calls:
            raise Problem(400, f"{where}.content: the field is missing", "missing_required_parameter", where)


def messages(turns: Sequence[Turn], tools: Sequence[Tool], chat: Chat) -> tuple[Message, ...]:
    """A conversation as our own type, where the template can show it."""
    for place, turn in enumerate(turns):
        turn.check(f"messages.{place}")
    asked = "tools" if tools else "messages" if any(turn.tool_calls or turn.role == "tool" for turn in turns) else ""
    if asked and (chat.untrainable or chat.turns.calls is None):
        raise unsupported(asked, "the chat template of this model has no calls of tools")
    shown = json.dumps([tool.shown for tool in tools]) if tools else ""
    return tuple(turn.message("" if place else shown) for place, turn in enumerate(turns))
