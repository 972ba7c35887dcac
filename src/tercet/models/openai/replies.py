"""What our OpenAI-compatible server answers: whole replies, and what they and the pieces of a stream have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tercet.models.chat import Chat
from tercet.models.openai.jobs import GenerationJob, GenerationResult
from tercet.models.openai.logps import TokenLogps
from tercet.models.openai.protocol import ChatRequest, ParsedRequest
from tercet.rows import Completion

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
LEAST_LOGP = -9999.0  # JSON knows no infinity


def reply(what: ParsedRequest, answers: Sequence[GenerationResult], name: str, created: float) -> dict[str, Any]:
    """The protocol's reply object; the choices of one prompt stand together."""
    choices = [
        _choice(what, job, answer, sample) for job, answer in zip(what.jobs, answers, strict=True)
        for sample in range(job.sampling.n)
    ]  # fmt: skip
    for index, choice in enumerate(choices):
        choice["index"] = index
    wrote = sum(completion.num_tokens for answer in answers for completion in answer.completions)
    return head(what, name, created) | {"choices": choices, "usage": usage(what, wrote)}


def head(what: ParsedRequest, name: str, created: float, *, chunk: bool = False) -> dict[str, Any]:
    """What replies and chunks begin with."""
    chat = isinstance(what.asked, ChatRequest)
    kind = f"chat.completion{'.chunk' * chunk}" if chat else "text_completion"
    about = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{name}", "object": kind, "created": int(created)}
    return about | {"model": what.asked.model, "system_fingerprint": None}


def usage(what: ParsedRequest, wrote: int) -> dict[str, int]:
    """Tokens read and written."""
    read = sum(len(job.ids) for job in what.jobs)
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def prompt_text(what: ParsedRequest, job: GenerationJob) -> str:
    """The text of a prompt, as the client or the tokenizer writes it."""
    given = getattr(what.asked, "prompt", ())
    own = given[what.jobs.index(job)] if given else ""
    return own if isinstance(own, str) else token_text(list(job.ids), what.model.chat)


def ending(what: ParsedRequest, job: GenerationJob, completion: Completion, *, called: bool = False) -> dict[str, Any]:
    """Why an answer ended; the stop string too (a field of vLLM's)."""
    reason = "tool_calls" if called else REASONS[completion.stop]
    return {"finish_reason": reason, "stop_reason": _stopped_by(what.model.chat, completion, job)}


def message(what: ParsedRequest, completion: Completion) -> dict[str, Any]:
    """An answer as a turn, its calls of tools read out of it."""
    found: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if what.calls is None or not isinstance(what.asked, ChatRequest):
        return found
    chat, ids = what.model.chat, list(completion.token_ids)
    written = token_text(ids[:-1] if ids and ids[-1] in chat.stops else ids, chat)  # marks of calls may be special
    text, calls = what.calls.read(written, {tool.function.name for tool in what.asked.offered})
    return found | {"content": text or None, "tool_calls": calls} if calls else found


def _choice(what: ParsedRequest, job: GenerationJob, answer: GenerationResult, sample: int) -> dict[str, Any]:
    completion, logps = answer.completions[sample], answer.logps[sample] if answer.logps else []
    found: dict[str, Any] = {"index": 0}
    table: dict[str, Any] | None = None
    if isinstance(what.asked, ChatRequest):
        found["message"] = message(what, completion)
        table = None if job.top < 0 else {"content": chat_table(logps, what.model.chat)}
    else:
        found["text"] = (prompt_text(what, job) if job.echo else "") + completion.text
        if job.top >= 0:
            table = TokenPlaces().table([*answer.prompt, *logps] if job.echo else logps, found["text"], what.model.chat)
    if what.asked.return_token_ids:
        found |= {"prompt_token_ids": list(job.ids), "token_ids": list(completion.token_ids)}
    return found | {"logprobs": table} | ending(what, job, completion, called="tool_calls" in found.get("message", ()))


def _stopped_by(chat: Chat, completion: Completion, job: GenerationJob) -> str | None:
    if completion.stop != "stop":
        return None
    text = str(chat.tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))
    found = (words for words in job.sampling.stop if text.startswith(words, len(completion.text)))
    return next(found, next((words for words in job.sampling.stop if words in text), None))


def chat_table(logps: Sequence[TokenLogps], chat: Chat) -> list[dict[str, Any]]:
    """Tokens with their log-probs, as chats have them."""

    def shown(token: int, logp: float) -> dict[str, Any]:
        text = token_text([token], chat)
        return {"token": text, "logprob": max(logp, LEAST_LOGP), "bytes": list(text.encode())}

    return [
        {**shown(one.token, one.logp or 0.0), "top_logprobs": [shown(*likely) for likely in one.likeliest]}
        for one in logps
    ]


@dataclass
class TokenPlaces:
    """Where the tokens of a text stand; tokens that share a character stand where it begins."""

    start: int = 0
    piece: list[int] = field(default_factory=list)

    def table(self, logps: Sequence[TokenLogps], text: str, chat: Chat) -> dict[str, Any]:
        """The next tokens of a text with their log-probs and places, as texts have them."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in logps:
            self.piece.append(one.token)
            likely: dict[str, float] = {}
            for token, logp in one.likeliest:
                likely.setdefault(token_text([token], chat), max(logp, LEAST_LOGP))
            found["tokens"].append(token_text([one.token], chat))
            found["token_logprobs"].append(None if one.logp is None else max(one.logp, LEAST_LOGP))
            found["top_logprobs"].append(None if one.logp is None else likely)
            found["text_offset"].append(self.start)
            whole = token_text(self.piece, chat)
            if text.startswith(whole, self.start):
                self.start, self.piece = self.start + len(whole), []
        return found


def token_text(token_ids: list[int], chat: Chat) -> str:
    """The text of tokens, special ones too."""
    return str(chat.tokenizer.decode(token_ids, skip_special_tokens=False))
