"""An answer in pieces, as server-sent events in the protocol's chunks.

What a client puts together is what it would have got whole: a character that is half written, the start of a stop
string and, within a thought, white space wait until more is known.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tercet.models.openai.jobs import Task
from tercet.models.openai.protocol import ChatRequest, ParsedRequest
from tercet.models.openai.replies import Places, chat_table, ending, message, prompt_text, usage
from tercet.rows import Completion
from tercet.verify.thoughts import OPEN

DONE = "data: [DONE]\n\n"


class Stream:
    """The chunks of one request, whose tasks a worker is doing; `changed` is set whenever there is more."""

    def __init__(self, what: ParsedRequest, tasks: list[Task], head: dict[str, Any], changed: asyncio.Event) -> None:
        self.what, self.tasks, self.changed = what, tasks, changed
        self._head = dict(head)
        if what.asked.stream_options.include_usage:
            self._head["usage"] = None
        n = what.asked.n
        self._choices = [_Choice(what, task, place * n + k, k) for place, task in enumerate(tasks) for k in range(n)]

    @property
    def wrote(self) -> int:
        """How many tokens have been sent."""
        return sum(choice.told for choice in self._choices)

    async def events(self) -> AsyncIterator[str]:
        """Chunks until all choices have ended; an error of a task is raised."""
        for choice in self._choices:
            yield self._event(choice.first())
        while True:
            over = all(task.answer.done() for task in self.tasks)
            for choice in self._choices:
                for part in choice.pieces():
                    yield self._event(part)
            if over:
                break
            await self.changed.wait()
            self.changed.clear()
        for task in self.tasks:
            task.answer.result()
        if self.what.asked.stream_options.include_usage:
            yield _sent(self._head | {"choices": [], "usage": usage(self.what, self.wrote)})
        yield DONE

    def _event(self, choice: dict[str, Any]) -> str:
        return _sent(self._head | {"choices": [choice]})


class _Choice:
    """One choice, and how much of it has been sent."""

    def __init__(self, what: ParsedRequest, task: Task, index: int, sample: int) -> None:
        self.what, self.task, self.index, self.sample = what, task, index, sample
        self.chat = isinstance(what.asked, ChatRequest)
        self.shown, self.told, self.ended = "", 0, False
        self._echo_text = ""  # the prompt, once it is sent
        self.echoed = prompt_text(what, task.job) if task.job.echo else ""
        self._begun = what.model.chat.begun(task.job.ids)
        self._places = Places()

    def first(self) -> dict[str, Any]:
        """The chunk that opens a choice."""
        found = self._piece({"role": "assistant", "content": ""} if self.chat else "")
        return found | ({"prompt_token_ids": list(self.task.job.ids)} if self.what.asked.return_token_ids else {})

    def pieces(self) -> Iterator[dict[str, Any]]:
        """What is new since the last time."""
        if self.ended:
            return
        if self.echoed and (self.task.prompt or self.task.rows or self.task.over):
            yield from self._echo()
        done, row = self.task.over.get(self.sample), self.task.rows.get(self.sample)
        ids = list(row.token_ids) if row else []
        if self.task.job.top >= 0 and row:
            ids = ids[: len(row.seen)]
        fresh = ids[self.told :]
        text = "" if self.what.calls else self._text(ids, done)
        called: dict[str, Any] = message(self.what, done) if self.what.calls and done else {}
        asked = self.what.asked.return_token_ids or self.task.job.top >= 0
        if text or called or (fresh and asked):
            yield self._chunk(text, fresh, called)
        self.told = max(self.told, len(ids))
        if done is not None:
            self.ended = True
            last = self._piece({} if self.chat else "")
            yield last | ending(self.what, self.task.job, done, called="tool_calls" in called)

    def _chunk(self, text: str, fresh: list[int], called: dict[str, Any]) -> dict[str, Any]:
        delta: Any = {"content": text} if self.chat else text
        if called:
            calls = [{"index": place, **call} for place, call in enumerate(called.get("tool_calls", ()))]
            delta = {"content": called["content"]} | ({"tool_calls": calls} if calls else {})
        found = self._piece(delta)
        if self.task.job.top >= 0:
            seen, chat = self.task.rows[self.sample].seen[self.told : self.told + len(fresh)], self.what.model.chat
            so_far = self._echo_text + self.shown
            table = {"content": chat_table(seen, chat)} if self.chat else self._places.table(seen, so_far, chat)
            found["logprobs"] = table
        return found | ({"token_ids": fresh} if self.what.asked.return_token_ids else {})

    def _echo(self) -> Iterator[dict[str, Any]]:
        """The prompt, once its log-probs are known where they are asked for."""
        found = self._piece(self.echoed)
        if self.task.job.top >= 0:
            found["logprobs"] = self._places.table(list(self.task.prompt), self.echoed, self.what.model.chat)
        yield found
        self._echo_text, self.echoed = self.echoed, ""

    def _text(self, ids: list[int], done: Completion | None) -> str:
        """The text that is new and will not change any more."""
        stop = self.task.job.sampling.stop
        text = done.text if done else self.what.model.chat.completion(ids, (), stop, self._begun).text
        if not done:
            if text.startswith(OPEN):
                text = text.rstrip()
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max((_held(text, words) for words in stop), default=0)]
        fresh = text[len(self.shown) :] if len(text) > len(self.shown) else ""
        self.shown += fresh
        return fresh

    def _piece(self, delta: Any) -> dict[str, Any]:
        return {"index": self.index, "delta" if self.chat else "text": delta, "logprobs": None, "finish_reason": None}


def _held(text: str, words: str) -> int:
    """How many characters at the end of a text may be the start of a stop string."""
    return next((size for size in range(min(len(words) - 1, len(text)), 0, -1) if text.endswith(words[:size])), 0)


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
