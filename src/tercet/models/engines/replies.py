"""What an engine wrote, as completions: the same rules for one in this process, an actor and a server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from tercet.models.chat import Chat, Ids
from tercet.rows import Completion, Sampling

T = TypeVar("T")
Reply = tuple[Sequence[int], Sequence[float], str | None]  # tokens, their log-probs, why the engine says they ended


def completions_of(
    chat: Chat, prompt: Ids, replies: Iterable[Reply], sampling: Sampling, engine: str = "vLLM"
) -> list[Completion]:
    """The completions of a prompt. Greedy ones are all the same, so an engine is asked for one alone."""
    begun = chat.begun(prompt)
    written = [_completion(chat, reply, sampling.stop, begun, engine) for reply in replies]
    return written if sampling.temperature else written[:1] * sampling.n


def answered(value: T) -> Future[T]:
    """An answer that is known before anybody is asked."""
    answer: Future[T] = Future()
    answer.set_result(value)
    return answer


def _completion(chat: Chat, reply: Reply, stops: Sequence[str], begun: str, engine: str) -> Completion:
    ids, logps, reason = reply
    found = chat.completion(ids, logps, stops, begun)
    if found.stop == "stop" or reason == "length":
        return found
    if reason == "stop":
        return found if found.stop == "eos" else replace(found, stop="stop")
    return Completion("", (), (), "error", f"{engine} gave up on the prompt: {reason}")
