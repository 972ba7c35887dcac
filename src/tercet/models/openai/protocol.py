"""What a request to our OpenAI-compatible server may say, and what its reply looks like (`payloads.py`: the client).

A field of the protocol that this server does not support is refused, never ignored.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tercet.models.chat import Chat, ChatError
from tercet.models.generate import LocalGenerator
from tercet.models.openai.batcher import GenerationJob, GenerationResult, TokenLogps
from tercet.rows import PLAIN, Completion, Message, Sampling

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
DEFAULT_TOKENS = 512  # longest answer to a chat that does not say
TEXT_TOKENS = 16  # the same for a text, as the protocol has it
LEAST_LOGP = -9999.0  # JSON knows no infinity
DEEPEST = 32  # lists and objects inside each other
MOST_TOKENS, MOST_STOPS, LONGEST_STOP, MOST_TURNS = 1 << 20, 64, 1024, 4096
LETTERS = 64  # of a prompt for each token of the context; more than a tokenizer ever gets into one on average
KINDS = {401: "authentication_error", 404: "not_found_error"}
ADVICE = {
    "extra_forbidden": "this server does not know the field",
    "missing": "the field is missing",
    "model_type": "expected an object",
}


class Problem(ValueError):  # noqa: N818 - a reply, not a failure of the program
    """A request that gets an error for an answer: HTTP status, message, the protocol's code, the field at fault."""

    def __init__(self, status: int, message: str, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The protocol's error object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        about = {"message": str(self), "type": kind, "param": self.param or None, "code": self.code or None}
        return {"error": about}


class TextPart(BaseModel):
    """A piece of a message that comes in pieces; only text can be read."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def message(self) -> Message:
        """The turn as our own type."""
        pieces = self.content if isinstance(self.content, list) else []
        return Message(self.role, self.content if isinstance(self.content, str) else "".join(p.text for p in pieces))


class CompletionRequest(BaseModel):
    """What both kinds of requests may say. A field that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, le=MOST_TOKENS)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: tuple[str, ...] = Field((), max_length=MOST_STOPS)
    stream: Literal[False] = False
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    presence_penalty: float = Field(0.0, ge=0, le=0)
    user: str = ""

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


class ChatRequest(CompletionRequest):
    """The body of a request that continues a conversation."""

    messages: list[Turn] = Field(min_length=1, max_length=MOST_TURNS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    continue_final_message: bool = False
    add_generation_prompt: bool = True

    def token_ids(self, chat: Chat) -> list[int]:
        """The prompt; a last assistant turn is continued only where the request says so."""
        turns = tuple(turn.message for turn in self.messages)
        last = turns[-1].role == "assistant"
        if self.continue_final_message == self.add_generation_prompt:
            advice = "give continue_final_message = true with add_generation_prompt = false, or neither"
            raise Problem(400, advice, param="continue_final_message")
        if self.continue_final_message and not last:
            raise Problem(400, "continue_final_message needs a last message of the assistant", param="messages")
        closed = last and not self.continue_final_message
        return chat.render(turns, generation_prompt=True) if closed else chat.prompt_ids(turns)

    @property
    def letters(self) -> int:
        """The length of the prompt in characters, without the template."""
        return sum(len(turn.message.content) for turn in self.messages)

    @property
    def most(self) -> int:
        """The longest answer in tokens."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS

    @property
    def top(self) -> int:
        """How many likely tokens are shown at each place; -1: no log-probs at all."""
        return self.top_logprobs if self.logprobs else -1


class TextRequest(CompletionRequest):
    """The body of a request that continues a text."""

    prompt: str = Field(min_length=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False

    def token_ids(self, chat: Chat) -> list[int]:
        """The text as it stands."""
        return chat.prompt_ids((Message(PLAIN, self.prompt),))

    @property
    def letters(self) -> int:
        """The length of the prompt in characters."""
        return len(self.prompt)

    @property
    def most(self) -> int:
        """The longest answer in tokens."""
        return self.max_tokens or TEXT_TOKENS

    @property
    def top(self) -> int:
        """How many likely tokens are shown at each place; -1: no log-probs at all."""
        return -1 if self.logprobs is None else self.logprobs


@dataclass(frozen=True)
class ParsedRequest:
    """A request that was read and checked."""

    asked: ChatRequest | TextRequest
    job: GenerationJob


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


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def request(path: str, body: dict[str, Any], generator: LocalGenerator, names: Sequence[str]) -> ParsedRequest:
    """Check a body and make a job of it. An answer that is drawn without a seed gets a random one."""
    asked = _checked(ChatRequest if path == CHAT else TextRequest, body)
    if asked.model not in names:
        error = f"no model {asked.model!r:.80} here; served: {', '.join(names)}"
        raise Problem(404, error, "model_not_found", "model")
    limit = generator.context
    if asked.letters > LETTERS * limit:
        excess = f"a prompt of {asked.letters} characters exceeds the context of {limit} tokens"
        raise Problem(400, excess, "context_length_exceeded")
    try:
        ids = asked.token_ids(generator.chat)
    except ChatError as error:
        raise Problem(400, str(error), param="messages") from None
    if len(ids) + asked.most > limit:
        excess = f"{len(ids)} tokens of the prompt and up to {asked.most} of the answer exceed the context of {limit}"
        raise Problem(400, f"{excess}; shorten the prompt or lower max_tokens", "context_length_exceeded")
    sampling = Sampling(asked.most, asked.temperature, asked.top_p, max(asked.top_k, 0), asked.n, stop=asked.stop)
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    echo = isinstance(asked, TextRequest) and asked.echo
    return ParsedRequest(asked, GenerationJob(ids, sampling, seed, asked.top, echo))


def reply(
    what: ParsedRequest, answer: GenerationResult, name: str, created: float, generator: LocalGenerator
) -> dict[str, Any]:
    """The protocol's reply object."""
    chat = isinstance(what.asked, ChatRequest)
    read, wrote = len(what.job.ids), sum(completion.num_tokens for completion in answer.completions)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{name}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(created),
        "model": what.asked.model,
        "choices": [_choice(what, answer, index, generator) for index in range(len(answer.completions))],
        "usage": {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote},
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _checked(kind: type[ChatRequest] | type[TextRequest], body: dict[str, Any]) -> ChatRequest | TextRequest:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:100]
        message = "this server does not stream; leave the field out" if where == "stream" else first["msg"]
        raise Problem(400, f"{where}: {ADVICE.get(first['type'], message)}", param=where) from None


def _choice(what: ParsedRequest, answer: GenerationResult, index: int, generator: LocalGenerator) -> dict[str, Any]:
    asked, completion = what.asked, answer.completions[index]
    logps = answer.logps[index] if answer.logps else None
    table: dict[str, Any] | None = None
    if isinstance(asked, ChatRequest):
        content: dict[str, Any] = {"message": {"role": "assistant", "content": completion.text}}
        table = None if logps is None else {"content": [_chat_token(one, generator) for one in logps]}
    else:
        content = {"text": asked.prompt * asked.echo + completion.text}
        table = None if logps is None else _text_table(logps, content["text"], generator)
    ended = {"finish_reason": REASONS[completion.stop], "stop_reason": _stopped_by(completion, what.job, generator)}
    return {"index": index, **content, "logprobs": table, **ended}


def _stopped_by(completion: Completion, job: GenerationJob, generator: LocalGenerator) -> str | None:
    """The stop string that ended an answer (a field of vLLM's)."""
    if completion.stop != "stop":
        return None
    text = str(generator.chat.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))
    return next(words for words in job.sampling.stop if text.startswith(words, len(completion.text)))


def _chat_token(one: TokenLogps, generator: LocalGenerator) -> dict[str, Any]:
    def shown(token: int, logp: float) -> dict[str, Any]:
        text = _text([token], generator)
        return {"token": text, "logprob": max(logp, LEAST_LOGP), "bytes": list(text.encode())}

    likeliest = [shown(token, logp) for token, logp in one.likeliest]
    return {**shown(one.token, one.logp or 0.0), "top_logprobs": likeliest}


def _text_table(logps: Sequence[TokenLogps], text: str, generator: LocalGenerator) -> dict[str, Any]:
    """Tokens, log-probs and places; tokens that share a character stand where it begins."""
    table: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    start, piece = 0, list[int]()
    for one in logps:
        piece.append(one.token)
        likely: dict[str, float] = {}
        for token, logp in one.likeliest:
            likely.setdefault(_text([token], generator), max(logp, LEAST_LOGP))
        table["tokens"].append(_text([one.token], generator))
        table["token_logprobs"].append(None if one.logp is None else max(one.logp, LEAST_LOGP))
        table["top_logprobs"].append(None if one.logp is None else likely)
        table["text_offset"].append(start)
        whole = _text(piece, generator)
        if text.startswith(whole, start):
            start, piece = start + len(whole), []
    return table


def _text(token_ids: list[int], generator: LocalGenerator) -> str:
    return str(generator.chat.tokenizer.decode(token_ids, skip_special_tokens=False))
