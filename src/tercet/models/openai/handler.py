"""One request after another: read, given to the worker, answered whole or in pieces, written to the log.

A request with an `Idempotency-Key` is answered once: whoever sends the key again gets the same reply, and nothing is
written twice. Replies with log-probs are long and cheap, and streams are gone when they are sent: neither is
remembered. Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.models.access import internal_error
from tercet.models.openai import protocol
from tercet.models.openai.batcher import Batcher, BatcherClosed, BatcherFull
from tercet.models.openai.entrance import respond
from tercet.models.openai.jobs import Ticket
from tercet.models.openai.problems import Problem
from tercet.models.openai.replies import head, reply
from tercet.models.openai.served import ServedModel
from tercet.models.openai.streams import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request, Response

KEPT, KEPT_BYTES = 10_000, 256 << 20  # replies that are remembered by their Idempotency-Key, and their size
LONGEST_KEY = 256  # characters of an Idempotency-Key
SAID = 1.0  # seconds between two comments on the place in the queue
PLACE = "X-Queue-Position"


@dataclass
class _Entry:
    """A request under way, or only its reply once there is one, for which so many connections are `waiting`."""

    digest: str
    work: tuple[protocol.ParsedRequest, list[Ticket]] | None
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: float = field(default_factory=time.time)
    waiting: int = 0
    body: dict[str, Any] | None = None
    size: int = 0  # of the body, about, once it is remembered


class RequestHandler:
    """Takes requests, submits jobs, remembers replies with a key, writes the log."""

    def __init__(self, models: Mapping[str, ServedModel], batcher: Batcher, log: Path | None) -> None:
        self.models, self.batcher, self._log = models, batcher, log
        self._kept: OrderedDict[str, _Entry] = OrderedDict()
        self._kept_bytes = 0

    async def serve(self, request: Request) -> Response:
        """The reply to one request."""
        began, key = time.monotonic(), request.headers.get("idempotency-key", "")
        facts: dict[str, Any] = {"path": request.url.path, "key": key}
        status, headers = 200, dict[str, str]()
        try:
            if len(key) > LONGEST_KEY:
                facts["key"] = ""
                raise Problem(400, f"the Idempotency-Key has {len(key)} characters; at most {LONGEST_KEY}")
            data = await request.body()
            body = protocol.read(data)
            facts["request"] = protocol.digest([request.url.path, body])
            if body.get("stream") is True:
                return await self._stream(body, facts, began)
            body = await self._body(request, body, facts)
            headers[PLACE] = str(facts.pop("place", 0))
        except Exception as error:
            problem = _problem(error)
            status, body = problem.status, problem.body
            facts["error"] = str(problem)
        self.log(facts | {"status": status, "seconds": time.monotonic() - began})
        return respond(status, body, headers)

    async def _parsed(self, path: str, body: dict[str, Any]) -> protocol.ParsedRequest:
        asked = protocol.checked(path, body)
        if asked.model not in self.models:
            error = f"no model {asked.model!r:.80} here; served: {', '.join(self.models)}"
            raise Problem(404, error, "model_not_found", "model")
        model = self.models[asked.model]
        await asyncio.to_thread(lambda: model.chat)  # which may have to be opened
        if asked.response_format.type == "json_schema":  # which may take long to look through
            return await asyncio.to_thread(protocol.request, asked, model)
        return protocol.request(asked, model)

    async def _stream(self, body: dict[str, Any], facts: dict[str, Any], began: float) -> Response:
        """A response that sends the answer as it is written; the log gets its line at the end."""
        from fastapi.responses import StreamingResponse

        what = await self._parsed(facts["path"], body)
        loop, entry = asyncio.get_running_loop(), _Entry(facts["request"], None)
        changed = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the server has stopped meanwhile
                loop.call_soon_threadsafe(changed.set)

        tickets = self._submit(what, wake)
        stream = Stream(what, tickets, head(what, entry.name, entry.created, chunk=True), changed)
        facts |= {"id": entry.name, "model": what.asked.model, "again": False}

        async def pieces() -> AsyncIterator[str]:
            status = 200
            try:
                async for piece in self._with_places(stream):
                    yield piece
            except Exception as error:
                problem = _problem(error)
                status, facts["error"] = problem.status, str(problem)
                yield f"data: {json.dumps(problem.body)}\n\n"
            finally:
                facts["gone"] = not all(ticket.answer.done() for ticket in tickets)
                for ticket in tickets:
                    ticket.cancel()
                facts["prompt_tokens"] = sum(len(job.ids) for job in what.jobs)
                facts.update(completion_tokens=stream.wrote, status=499 if facts["gone"] else status)
                self.log(facts | {"seconds": time.monotonic() - began})

        headers = {PLACE: str(self.batcher.place(tickets[-1])), "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(pieces(), media_type="text/event-stream", headers=headers)

    async def _with_places(self, stream: Stream) -> AsyncIterator[str]:
        """The events of a stream, and before the first token a comment wherever its place in the queue changes."""
        said = 0
        while place := self.batcher.place(stream.tickets[-1]):
            if place != said:
                yield f": queue {place}\n\n"
                said = place
            with suppress(TimeoutError):
                await asyncio.wait_for(stream.changed.wait(), SAID)
                break
        async for event in stream.events():
            yield event

    def _submit(self, what: protocol.ParsedRequest, wake: Any = lambda: None) -> list[Ticket]:
        try:
            return self.batcher.submit(what.jobs, wake)
        except (BatcherClosed, BatcherFull) as error:
            raise _problem(error) from None

    async def _body(self, request: Request, body: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """The answer of a good request; `facts` are filled in for the log."""
        key = facts["key"]
        entry = await self._entry(body, facts)
        try:
            found = entry.body or await self._wait(entry, request, facts)
        except Exception as error:
            self._forget(key)
            raise _problem(error) from error
        facts |= {"id": entry.name, "model": found["model"]}
        facts |= {name: found["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
        facts["answer"] = protocol.digest([choice.get("text") or choice.get("message") for choice in found["choices"]])
        if any(choice["logprobs"] for choice in found["choices"]):
            self._forget(key)
        return found

    async def _entry(self, body: dict[str, Any], facts: dict[str, Any]) -> _Entry:
        """The request that came before under the same key, or a new one, given to the worker."""
        key = facts["key"]
        if (known := self._known(facts)) is not None:
            return known
        what = await self._parsed(facts["path"], body)
        if (known := self._known(facts)) is not None:  # it came while the tokenizer was opened
            return known
        entry = _Entry(facts["request"], (what, self._submit(what)))
        if key:
            self._kept[key] = entry
            while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
                self._forget(next(iter(self._kept)))
        return entry

    def _known(self, facts: dict[str, Any]) -> _Entry | None:
        key = facts["key"]
        known = self._kept.get(key) if key else None
        facts["again"] = known is not None
        if known is not None and known.digest != facts["request"]:
            raise Problem(400, f"the Idempotency-Key {key!r:.80} came before with another request", "key_reused")
        return known

    def _forget(self, key: str) -> None:
        if entry := self._kept.pop(key, None):
            self._kept_bytes -= entry.size

    async def _wait(self, entry: _Entry, request: Request, facts: dict[str, Any]) -> dict[str, Any]:
        """The reply. When the last client that wants it hangs up, it is given up, unless a key may ask for it again."""
        assert entry.work is not None
        what, tickets = entry.work
        facts["place"] = self.batcher.place(tickets[-1])
        entry.waiting += 1
        answers = asyncio.gather(*(asyncio.wrap_future(ticket.answer) for ticket in tickets), return_exceptions=True)
        gone = asyncio.ensure_future(_hung_up(request))
        first: set[asyncio.Future[Any]] = {answers, gone}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            facts["gone"] = not answers.done()
            if facts["gone"]:
                begun = any(ticket.rows or ticket.over for ticket in tickets)
                if entry.waiting == 1 and not (facts["key"] and begun):
                    for ticket in tickets:
                        ticket.cancel()
                    raise Problem(499, "the client went away before its answer came")
                await asyncio.wait({answers})
        finally:
            entry.waiting -= 1
            gone.cancel()
        if entry.body is None:
            results = [ticket.answer.result() for ticket in tickets]
            entry.body = reply(what, results, entry.name, entry.created)
            entry.work = None  # what is remembered is short
            if self._kept.get(facts["key"]) is entry:
                entry.size = sum(len(completion.text) for result in results for completion in result.completions)
                self._kept_bytes += entry.size
        return entry.body

    def log(self, facts: dict[str, Any]) -> None:
        """Append a line to the log, if there is one; JSON escapes what a terminal would obey."""
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"at": round(time.time(), 3), **facts}) + "\n")


async def _hung_up(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, BatcherClosed):
        return Problem(503, str(error), "shutting_down")
    if isinstance(error, BatcherFull):
        return Problem(429, str(error), "queue_full")
    return Problem(500, f"the model failed: {internal_error(error)}")
