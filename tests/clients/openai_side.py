"""The official `openai` client asks our server in every way it can; prints a line of JSON: kind of request -> outcome.

Run by an environment of its own: `python openai_side.py http://HOST/v1 KEY`. The models are `tiny`, and `tools`, whose
template has calls. An outcome is "right", "refused TYPE PARAM CODE", or what was wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

import openai
from pydantic import BaseModel

URL, KEY = sys.argv[1:3]
CLIENT = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
PARTS: Any = [{"role": "user", "content": [{"type": "text", "text": "Say a thing"}]}]
PICTURE: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
WIDE: Any = [{"role": "user", "content": "é 北京 🎈 \u202e"}]
NEUTRAL: Any = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "user": "me", "store": False}
NEUTRAL |= {"metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True}
TURN: Any = [{"role": "user", "content": "Say a thing"}]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up", "parameters": {"type": "object", "properties": {}}},
}
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"a": 1}'}}


class Colour(BaseModel):
    colour: Literal["red", "blue"]


def chat(**more: Any) -> Any:
    return CLIENT.chat.completions.create(**{"model": "tiny", "messages": TURN, "max_tokens": 8, **more})


def text(**more: Any) -> Any:
    return CLIENT.completions.create(**{"model": "tiny", "prompt": "Once upon", "max_tokens": 6, **more})


def said(reply: Any) -> list[str]:
    return [choice.message.content for choice in reply.choices]


def streamed(stream: Any, count: int = 1) -> list[str]:
    found = [""] * count
    for chunk in stream:
        for choice in chunk.choices:
            piece = choice.delta.content if hasattr(choice, "delta") else choice.text
            found[choice.index] += piece or ""
    return found


def tokens_of(reply: Any) -> list[Any]:
    return reply.choices[0].logprobs.content


def reads_system(role: str) -> bool:
    more = chat(messages=[{"role": role, "content": "Be brief."}, *TURN])
    return bool(more.usage.prompt_tokens > chat().usage.prompt_tokens)


def with_tool_result() -> bool:
    turns = [*TURN, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    turns.append({"role": "tool", "tool_call_id": "call_1", "content": "four"})
    reply = chat(model="tools", messages=turns, tools=[TOOL])
    return bool(reply.usage.prompt_tokens > chat(model="tools", tools=[TOOL]).usage.prompt_tokens)


def scored() -> bool:
    reply = text(prompt="Once upon", echo=True, max_tokens=0, logprobs=2)
    table = reply.choices[0].logprobs
    whole = len(table.tokens) == len(table.token_logprobs) == reply.usage.prompt_tokens
    return (
        whole
        and table.token_logprobs[0] is None
        and 1 <= len(table.top_logprobs[1]) <= 2
        and reply.usage.completion_tokens == 0
    )


def parsed() -> bool:
    reply = CLIENT.beta.chat.completions.parse(model="tiny", messages=TURN, max_tokens=64, response_format=Colour)
    choice = reply.choices[0]
    return choice.finish_reason == "stop" and choice.message.parsed is not None


def kept_to_object() -> bool:
    choice = chat(response_format={"type": "json_object"}, max_tokens=200, seed=1).choices[0]
    if choice.finish_reason == "stop":
        return isinstance(json.loads(choice.message.content), dict)
    return bool(choice.message.content.startswith("{"))


def kept_to_schema() -> bool:
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA, "strict": True}}
    choice = chat(response_format=form, max_tokens=64).choices[0]
    return choice.finish_reason == "stop" and json.loads(choice.message.content) == {"colour": "red"}


def with_usage() -> bool:
    *_, last = chat(stream=True, stream_options={"include_usage": True})
    return not last.choices and last.usage.completion_tokens == 8


def left_early() -> bool:
    with chat(stream=True, max_tokens=500) as stream:
        next(iter(stream))
    return bool(said(chat()))


async def many() -> bool:
    client = openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
    asked = [
        client.chat.completions.create(model="tiny", messages=TURN, max_tokens=8, seed=i, stream=bool(i % 2))
        for i in range(20)
    ]
    found = []
    for reply in await asyncio.gather(*asked):
        if hasattr(reply, "choices"):
            found += said(reply)
        else:
            found.append("".join([c.choices[0].delta.content or "" async for c in reply]))
    return found == [said(chat(seed=i))[0] for i in range(20)]


def header() -> bool:
    raw = CLIENT.chat.completions.with_raw_response.create(model="tiny", messages=TURN, max_tokens=2)
    return raw.headers["x-queue-position"].isdigit() and bool(said(raw.parse()))


KINDS: dict[str, Callable[[], Any]] = {
    "chat": lambda: said(chat(temperature=0)) == said(chat(temperature=0)),
    "chat, streamed": lambda: streamed(chat(stream=True, seed=1)) == said(chat(seed=1)),
    "n": lambda: len(set(said(chat(n=3, seed=1)))) == 3,
    "n, streamed": lambda: streamed(chat(n=3, seed=1, stream=True), 3) == said(chat(n=3, seed=1)),
    "stop as text": lambda: "e" not in said(chat(stop="e", seed=1, max_tokens=50))[0],
    "stop as list": lambda: not set("ea") & set(said(chat(stop=["e", "a"], seed=1, max_tokens=50))[0]),
    "seed": lambda: said(chat(seed=7)) == said(chat(seed=7)) != said(chat(seed=8)),
    "temperature 0": lambda: said(chat(temperature=0, seed=1)) == said(chat(temperature=0, seed=2)),
    "top_p": lambda: said(chat(top_p=1e-6, seed=1)) == said(chat(temperature=0)),
    "max_tokens": lambda: chat(max_tokens=3).usage.completion_tokens == 3,
    "max_completion_tokens": lambda: chat(max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3,
    "no length": lambda: chat(max_tokens=None, stop="e").choices[0].finish_reason in ("stop", "length"),
    "logprobs": lambda: [len(one.top_logprobs) for one in tokens_of(chat(logprobs=True, top_logprobs=3))] == [3] * 8,
    "logprobs, streamed": lambda: sum(len(c.choices[0].logprobs.content) for c in chat(logprobs=True, stream=True)
                                      if c.choices[0].logprobs) == 8,
    "usage in a stream": with_usage,
    "usage": lambda: (one := chat().usage).total_tokens == one.prompt_tokens + one.completion_tokens,
    "system": lambda: reads_system("system"),
    "developer": lambda: reads_system("developer"),
    "content in parts": lambda: said(chat(messages=PARTS, seed=1)) == said(chat(seed=1)),
    "several turns": lambda: bool(said(chat(messages=[*TURN, {"role": "assistant", "content": "So"}, *TURN]))),
    "own reply sent back": lambda: bool(said(chat(messages=[*TURN, chat().choices[0].message, *TURN]))),
    "unicode": lambda: chat(messages=WIDE, max_tokens=4).usage.prompt_tokens > 12,
    "tools": lambda: chat(model="tools", tools=[TOOL]).usage.prompt_tokens > chat(model="tools").usage.prompt_tokens,
    "tools, streamed": lambda: len(streamed(chat(model="tools", tools=[TOOL], stream=True))) == 1,
    "tool results": with_tool_result,
    "tool_choice none": lambda: bool(said(chat(model="tools", tools=[TOOL], tool_choice="none"))),
    "response_format text": lambda: bool(said(chat(response_format={"type": "text"}))),
    "response_format json_object": kept_to_object,
    "response_format json_schema": kept_to_schema,
    "parse": parsed,
    "text": lambda: bool(text().choices[0].text),
    "text, streamed": lambda: streamed(text(stream=True, seed=1)) == [text(seed=1).choices[0].text],
    "list of prompts": lambda: [c.text for c in text(prompt=["Once", "Upon"], seed=1).choices]
    == [text(prompt=one, seed=1).choices[0].text for one in ("Once", "Upon")],
    "token ids": lambda: text(prompt=[70, 71, 72]).usage.prompt_tokens == 3,
    "lists of token ids": lambda: text(prompt=[[70, 71], [72]]).usage.prompt_tokens == 3,
    "echo": lambda: text(echo=True).choices[0].text.startswith("Once upon"),
    "echo with max_tokens 0 and logprobs": scored,
    "text with n": lambda: len(text(n=3, best_of=3).choices) == 3,
    "neutral values": lambda: bool(said(chat(**NEUTRAL))),
    "models": lambda: [one.id for one in CLIENT.models.list()] == ["tiny", "tools"],
    "one model": lambda: CLIENT.models.retrieve("tiny").id == "tiny",
    "raw response": header,
    "stream closed early": left_early,
    "twenty at once": lambda: asyncio.run(many()),
    "wrong key": lambda: openai.OpenAI(base_url=URL, api_key="wrong", max_retries=0).models.list(),
    "unknown model": lambda: chat(model="other"),
    "unknown model's card": lambda: CLIENT.models.retrieve("other"),
    "long input": lambda: chat(messages=[{"role": "user", "content": "long " * 3000}]),
    "wrong type": lambda: chat(max_tokens="many"),
    "frequency_penalty": lambda: chat(frequency_penalty=0.5),
    "logit_bias": lambda: chat(logit_bias={"5": 10}),
    "picture": lambda: chat(messages=PICTURE),
    "tool_choice required": lambda: chat(model="tools", tools=[TOOL], tool_choice="required"),
    "tools without a template": lambda: chat(tools=[TOOL]),
    "suffix": lambda: text(suffix="end"),
    "embeddings": lambda: CLIENT.embeddings.create(model="tiny", input="a"),
    "responses": lambda: CLIENT.responses.create(model="tiny", input="a"),
}  # fmt: skip


def outcome(ask: Callable[[], Any]) -> str:
    try:
        found = ask()
        return "right" if found is True else f"wrong: {found!r:.200}"
    except openai.APIStatusError as error:
        return f"refused {error.status_code} {error.type} {error.param} {error.code}"
    except Exception as error:
        return f"wrong: {type(error).__name__}: {error}"


sys.stdout.write(json.dumps({name: outcome(ask) for name, ask in KINDS.items()}) + "\n")
