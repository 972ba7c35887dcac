"""What a request to our OpenAI-compatible server may say, and the jobs that it makes (`payloads.py`: the client).

A field of the protocol that this server does not serve is refused, never ignored, unless its value asks for nothing
(`fields.toml`).
"""

from __future__ import annotations

import hashlib
import json
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from tercet.models.chat import ChatError
from tercet.models.openai import grammar
from tercet.models.openai.calls import CallFormat, call_format
from tercet.models.openai.jobs import GenerationJob
from tercet.models.openai.messages import MOST_TOOLS, Strict, Tool, Turn, messages
from tercet.models.openai.problems import Problem, invalid, unsupported
from tercet.models.openai.served import ServedModel
from tercet.rows import PLAIN, Message, Sampling

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
DEFAULT_TOKENS = 512  # longest answer to a chat that does not say, where the context has room for it
TEXT_TOKENS = 16  # the same for a text, as the protocol has it
DEEPEST = 32  # lists and objects inside each other
MOST_TOKENS, MOST_STOPS, LONGEST_STOP, MOST_TURNS, MOST_PROMPTS = 1 << 20, 64, 1024, 4096, 256
LETTERS = 64  # of a prompt for each token of the context; more than a tokenizer ever gets into one on average


class StreamOptions(Strict):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Schema(Strict):
    """A schema that an answer follows."""

    name: str = ""
    description: str = ""
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool = False


class ResponseFormat(Strict):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @property
    def grammar(self) -> str:
        """The JSON schema of it; empty for any text."""
        if self.type == "text":
            return ""
        if self.type == "json_object":
            return grammar.ANY_OBJECT
        if self.json_schema is None:
            where = "response_format.json_schema"
            raise Problem(400, f"{where}: the field is missing", "missing_required_parameter", where)
        return json.dumps(self.json_schema.schema_)


class CompletionRequest(Strict):
    """What both kinds of requests may say. A field that is null counts as absent."""

    model: str
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=MOST_TOKENS)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: tuple[str, ...] = Field((), max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat = ResponseFormat(type="text")
    return_token_ids: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a stop string is empty")
        if max(map(len, value), default=0) > LONGEST_STOP:
            raise ValueError(f"a stop string has more than {LONGEST_STOP} characters")
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> CompletionRequest:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options goes with stream = true")
        return self


class ChatRequest(CompletionRequest):
    """The body of a request that continues a conversation."""

    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    messages: list[Turn] = Field(min_length=1, max_length=MOST_TURNS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    tools: list[Tool] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_choice: Any = "auto"
    echo: ClassVar[bool] = False

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools

    def prompts(self, model: ServedModel) -> list[list[int]]:
        """The prompt's token ids; a last assistant turn is continued only where the request says so."""
        if self.tool_choice not in ("auto", "none"):
            raise unsupported("tool_choice", "only auto and none can be served: no call can be promised", value=True)
        if self.top_logprobs and not self.logprobs:
            raise Problem(400, "top_logprobs goes with logprobs = true", "invalid_value", "top_logprobs")
        chat = model.chat
        turns = messages(self.messages, self.offered, chat)
        last = turns[-1].role == "assistant"
        if self.continue_final_message == self.add_generation_prompt:
            advice = "give continue_final_message = true with add_generation_prompt = false, or neither"
            raise Problem(400, advice, "invalid_value", "continue_final_message")
        if self.continue_final_message and not last:
            advice = "continue_final_message needs a last message of the assistant"
            raise Problem(400, advice, "invalid_value", "messages")
        closed = last and not self.continue_final_message
        return [chat.render(turns, generation_prompt=True) if closed else chat.prompt_ids(turns)]

    @property
    def letters(self) -> int:
        """The length of the prompt in characters, without the template."""
        return sum(len(turn.content) for turn in self.messages)

    @property
    def most(self) -> int | None:
        """The longest answer in tokens, where the client says."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int:
        """How many likely tokens are shown at each place; -1: no log-probs at all."""
        return self.top_logprobs if self.logprobs else -1


class TextRequest(CompletionRequest):
    """The body of a request that continues texts, or token ids."""

    prompt: tuple[str | list[int], ...] = Field(min_length=1, max_length=MOST_PROMPTS)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and value and all(type(one) is int for one in value):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("prompt")
    @classmethod
    def _none_empty(cls, value: tuple[str | list[int], ...]) -> tuple[str | list[int], ...]:
        if not all(value):
            raise ValueError("a prompt is empty; give it at least one token")
        return value

    def prompts(self, model: ServedModel) -> list[list[int]]:
        """The texts as they stand."""
        if self.best_of not in (None, self.n):
            raise unsupported("best_of", f"only n = {self.n} answers are written, and none is chosen", value=True)
        size = len(model.chat.tokenizer)
        for prompt in self.prompt:
            if not isinstance(prompt, str) and not all(0 <= token < size for token in prompt):
                raise Problem(400, f"prompt: expected token ids from 0 to {size - 1}", "invalid_value", "prompt")
        encode = model.chat.prompt_ids
        return [encode((Message(PLAIN, one),)) if isinstance(one, str) else one for one in self.prompt]

    @property
    def letters(self) -> int:
        """The length of the longest prompt in characters."""
        return max(len(one) for one in self.prompt)

    @property
    def most(self) -> int | None:
        """The longest answer in tokens."""
        if self.max_tokens == 0 and not self.echo:
            raise Problem(400, "max_tokens = 0 writes nothing; set echo = true as well", "invalid_value", "max_tokens")
        return TEXT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def top(self) -> int:
        """How many likely tokens are shown at each place; -1: no log-probs at all."""
        return -1 if self.logprobs is None else self.logprobs


@dataclass(frozen=True)
class ParsedRequest:
    """A request that was read and checked: a job for each of its prompts, and how the model writes calls of tools."""

    asked: ChatRequest | TextRequest
    model: ServedModel
    jobs: list[GenerationJob]
    calls: CallFormat | None = None


def read(data: bytes) -> dict[str, Any]:
    """The JSON object of a body, without what is null."""
    try:
        body = json.loads(data, parse_constant=_no_number)
        _check_depth(body)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise Problem(400, f"the body is more than {DEEPEST} levels deep") from None
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Problem(400, f"expected a JSON object, got {type(body).__name__}")
    return dict(_without_nulls(body))


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        lists = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [part for parts in lists for part in parts]
        if not level:
            return
    raise RecursionError


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def checked(path: str, body: dict[str, Any]) -> ChatRequest | TextRequest:
    """A body whose fields are all as they should be, without those that ask for nothing."""
    kind = ChatRequest if path == CHAT else TextRequest
    table = _table()
    left = {name: value for name, value in body.items() if name not in table["any"]}
    for name in table["neutral"].keys() & left.keys() - kind.model_fields.keys():
        value = left.pop(name)
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in table["neutral"][name]):
            raise unsupported(name, f"only {table['neutral'][name][0]!r} can be served", value=True)
    try:
        return kind.model_validate(left)
    except ValidationError as error:
        raise invalid(error) from None


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("fields.toml").read_text(encoding="utf-8"))


def request(asked: ChatRequest | TextRequest, model: ServedModel) -> ParsedRequest:
    """The jobs of a request. An answer that is drawn without a seed gets a random one, the same for all its prompts."""
    if asked.letters > LETTERS * model.context:
        excess = f"a prompt of {asked.letters} characters exceeds the context of {model.context} tokens"
        raise Problem(400, excess, "context_length_exceeded")
    try:
        prompts = asked.prompts(model)
        offered = asked.offered if isinstance(asked, ChatRequest) else []
        calls = call_format(model.chat) if offered else None
        schema = grammar.check(asked.response_format.grammar) if asked.response_format.grammar else ""
    except ChatError as error:
        raise Problem(400, str(error), "invalid_value", "messages") from None
    except grammar.GrammarError as error:
        raise unsupported("response_format", str(error), value=True) from None
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    jobs = [_job(asked, model, ids, seed, schema) for ids in prompts]
    return ParsedRequest(asked, model, jobs, calls)


def _job(
    asked: ChatRequest | TextRequest, model: ServedModel, ids: Sequence[int], seed: int, schema: str
) -> GenerationJob:
    limit, most = model.context, asked.most
    if most is None:
        most = max(1, min(DEFAULT_TOKENS, limit - len(ids)))
    if len(ids) + most > limit:
        excess = f"{len(ids)} tokens of the prompt and up to {most} of the answer exceed the context of {limit}"
        where = "messages" if isinstance(asked, ChatRequest) else "prompt"
        raise Problem(400, f"{excess}; shorten the prompt or lower max_tokens", "context_length_exceeded", where)
    sampling = Sampling(most, asked.temperature, asked.top_p, max(asked.top_k, 0), asked.n, stop=asked.stop)
    return GenerationJob(ids, sampling, seed, asked.top, asked.echo, schema, model.name)
