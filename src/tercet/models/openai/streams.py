"""An answer in pieces, as server-sent events in the protocol's chunks.

What a client puts together is what it would have got whole: a character that is half written, the start of a stop
string and, within a thought, white space wait until more is known.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tercet.models.openai.jobs import Ticket
from tercet.models.openai.protocol import ChatRequest, ParsedRequest
from tercet.models.openai.replies import TokenPlaces, chat_table, ending, message, prompt_text, usage
from tercet.rows import Completion
from tercet.verify.thoughts import OPEN

DONE = "data: [DONE]\n\n"


class Stream:
    """The chunks of one request, whose tickets a worker is doing; `changed` is set whenever there is more."""

    def __init__(
        self, what: ParsedRequest, tickets: list[Ticket], head: dict[str, Any], changed: asyncio.Event
    ) -> None:
        self.what, self.tickets, self.changed = what, tickets, changed
        self._head = dict(head)
        if what.asked.stream_options.include_usage:
            self._head["usage"] = None
        n = what.asked.n
        self._choices = [
            _Choice(what, ticket, place * n + k, k) for place, ticket in enumerate(tickets) for k in range(n)
        ]

    @property
    def wrote(self) -> int:
        """How many tokens have been sent."""
        return sum(choice.told for choice in self._choices)

    async def events(self) -> AsyncIterator[str]:
        """Chunks until all choices have ended; an error of a ticket is raised."""
        for choice in self._choices:
            yield self._event(choice.first())
        while True:
            over = all(ticket.answer.done() for ticket in self.tickets)
            for choice in self._choices:
                for part in choice.pieces():
                    yield self._event(part)
            if over:
                break
            await self.changed.wait()
            self.changed.clear()
        for ticket in self.tickets:
            ticket.answer.result()
        if self.what.asked.stream_options.include_usage:
            yield _sent(self._head | {"choices": [], "usage": usage(self.what, self.wrote)})
        yield DONE

    def _event(self, choice: dict[str, Any]) -> str:
        return _sent(self._head | {"choices": [choice]})


class _Choice:
    """One choice, and how much of it has been sent."""

    def __init__(self, what: ParsedRequest, ticket: Ticket, index: int, sample: int) -> None:
        self.what, self.ticket, self.index, self.sample = what, ticket, index, sample
        self.chat = isinstance(what.asked, ChatRequest)
        self.shown, self.told, self.ended = "", 0, False
        self._echo_text = ""  # the prompt, once it is sent
        self.echoed = prompt_text(what, ticket.job) if ticket.job.echo else ""
        self._begun = what.model.chat.begun(ticket.job.ids)
        self._places = TokenPlaces()

    def first(self) -> dict[str, Any]:
        """The chunk that opens a choice."""
        found = self._piece({"role": "assistant", "content": ""} if self.chat else "")
        return found | ({"prompt_token_ids": list(self.ticket.job.ids)} if self.what.asked.return_token_ids else {})

    def pieces(self) -> Iterator[dict[str, Any]]:
        """What is new since the last time."""
        if self.ended:
            return
        if self.echoed:
            if self.ticket.job.top >= 0 and not self.ticket.prompt:
                return
            yield from self._echo()
        done, row = self.ticket.over.get(self.sample), self.ticket.rows.get(self.sample)
        ids = list(row.token_ids) if row else []
        if self.ticket.job.top >= 0 and row:
            ids = ids[: len(row.seen)]
        fresh = ids[self.told :]
        text = "" if self.what.calls else self._text(ids, done)
        called: dict[str, Any] = message(self.what, done) if self.what.calls and done else {}
        asked = self.what.asked.return_token_ids or self.ticket.job.top >= 0
        if text or called or (fresh and asked):
            yield self._chunk(text, fresh, called)
        self.told = max(self.told, len(ids))
        if done is not None:
            self.ended = True
            last = self._piece({} if self.chat else "")
            yield last | ending(self.what, self.ticket.job, done, called="tool_calls" in called)

    def _chunk(self, text: str, fresh: list[int], called: dict[str, Any]) -> dict[str, Any]:
        delta: Any = {"content": text} if self.chat else text
        if called:
            calls = [{"index": place, **call} for place, call in enumerate(called.get("tool_calls", ()))]
            delta = {"content": called["content"]} | ({"tool_calls": calls} if calls else {})
        found = self._piece(delta)
        if self.ticket.job.top >= 0:
            seen, chat = self.ticket.rows[self.sample].seen[self.told : self.told + len(fresh)], self.what.model.chat
            so_far = self._echo_text + self.shown
            table = {"content": chat_table(seen, chat)} if self.chat else self._places.table(seen, so_far, chat)
            found["logprobs"] = table
        return found | ({"token_ids": fresh} if self.what.asked.return_token_ids else {})

    def _echo(self) -> Iterator[dict[str, Any]]:
        """The prompt, once its log-probs are known where they are asked for."""
        found = self._piece(self.echoed)
        if self.ticket.job.top >= 0:
            found["logprobs"] = self._places.table(list(self.ticket.prompt), self.echoed, self.what.model.chat)
        yield found
        self._echo_text, self.echoed = self.echoed, ""

    def _text(self, ids: list[int], done: Completion | None) -> str:
        """The text that is new and will not change any more."""
        stop = self.ticket.job.sampling.stop
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
