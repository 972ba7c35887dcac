"""An OpenAI-compatible server over a local model: chats, texts and log-probs for any client of the protocol.

Our own client, `models/openai/endpoint.py`, gets from it what the local generator would give.
A request with an `Idempotency-Key` is answered once: whoever sends the key again gets the same reply, and nothing is
written twice. (Replies with log-probs are long and cheap; they are not remembered.)

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /health
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from tercet.models.generate import LocalGenerator
from tercet.models.openai import protocol
from tercet.models.openai.batcher import Batcher, BatcherClosed, GenerationResult
from tercet.models.openai.protocol import CHAT, TEXT, Problem

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

KEPT = 10_000  # replies that are remembered by their Idempotency-Key


@dataclass(frozen=True)
class Settings:
    """How a model is served: its names, the most rows decoded at once, the key that is asked for, the log's file.

    A line of the log: `{"at": 1764.5, "path": "/v1/completions", "key": "", "request": "9f...", "again": false, "id":
    "4c...", "model": "tiny", "gone": false, "prompt_tokens": 9, "completion_tokens": 16, "answer": "0d...", "status":
    200, "seconds": 0.21}`. Equal requests have equal digests under "request", equal answers under "answer"; "again":
    from memory; "gone": the client went away before the answer came.
    """

    names: tuple[str, ...] = ("tercet",)
    rows: int = 16
    key: str = field(default="", repr=False)
    log: Path | None = None


def app(generator: LocalGenerator, settings: Settings) -> FastAPI:
    """The web application of one model; `app.state.batcher` is to be closed after the last request."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    batcher = Batcher(generator, settings.rows)
    handler = _RequestHandler(batcher, settings)
    found = FastAPI(title="Tercet", docs_url=None, redoc_url=None, openapi_url=None)
    found.state.batcher = batcher

    async def post(request: Request) -> Response:
        status, body = await handler.serve(request)
        return JSONResponse(body, status)

    async def models(request: Request) -> Response:
        if wrong := handler.refusal(request):
            return JSONResponse(wrong.body, wrong.status)
        limit = generator.context
        about = {"object": "model", "owned_by": "tercet", "max_model_len": limit}
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in settings.names]})

    async def health(_request: Request) -> Response:
        over = batcher.stopping()
        return JSONResponse({"status": "shutting down" if over else "ok"}, 503 if over else 200)

    async def lost(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        return JSONResponse(Problem(status, f"{request.method} {request.url.path}: {error}").body, status)

    for path in (CHAT, TEXT):
        found.add_route(path, post, methods=["POST"])
    found.add_route("/v1/models", models, methods=["GET"])
    found.add_route("/health", health, methods=["GET"])
    for status in (404, 405, 500):
        found.add_exception_handler(status, lost)
    return found


def run(generator: LocalGenerator, settings: Settings, listener: socket) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM: what is being written ends, what waits is refused (503)."""
    import uvicorn

    served = app(generator, settings)
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning", lifespan="off"))
    batcher: Batcher = served.state.batcher
    batcher.stopping = lambda: server.should_exit
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]  # the server raises them again at its end
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        batcher.close()


@dataclass
class _Entry:
    """A request under way, or only its reply once there is one, for which so many connections are `waiting`."""

    digest: str
    work: tuple[protocol.ParsedRequest, Future[GenerationResult]] | None
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: float = field(default_factory=time.time)
    waiting: int = 0
    body: dict[str, Any] | None = None


class _RequestHandler:
    """Takes requests, submits jobs, remembers replies with a key, writes the log. Runs in the event loop."""

    def __init__(self, batcher: Batcher, settings: Settings) -> None:
        self.batcher, self.settings = batcher, settings
        self._kept: OrderedDict[str, _Entry] = OrderedDict()

    async def serve(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Status and body of the reply to one request."""
        began, status = time.monotonic(), 200
        facts: dict[str, Any] = {"path": request.url.path, "key": request.headers.get("idempotency-key", "")}
        try:
            if wrong := self.refusal(request):
                raise wrong
            body = await self._body(request, facts)
        except Problem as problem:
            status, body = problem.status, problem.body
            facts["error"] = str(problem)
        self._log({"at": round(time.time(), 3), **facts, "status": status, "seconds": time.monotonic() - began})
        return status, body

    def refusal(self, request: Request) -> Problem | None:
        """Why a request is not even read: its API key is missing or wrong."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.settings.key and not secrets.compare_digest(given.encode(), self.settings.key.encode()):
            return Problem(401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`", "bad_key")
        return None

    async def _body(self, request: Request, facts: dict[str, Any]) -> dict[str, Any]:
        """The answer of a good request; `facts` are filled in for the log."""
        key = facts["key"]
        entry = self._entry(request.url.path, await request.body(), facts)
        try:
            body = entry.body or await self._wait(entry, request, facts)
        except Exception as error:
            self._kept.pop(key, None)
            raise _problem(error) from error
        facts |= {"id": entry.name, "model": body["model"]}
        facts |= {name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
        facts["answer"] = protocol.digest([choice.get("text") or choice.get("message") for choice in body["choices"]])
        if any(choice["logprobs"] for choice in body["choices"]):
            self._kept.pop(key, None)
        return body

    def _entry(self, path: str, data: bytes, facts: dict[str, Any]) -> _Entry:
        """The request that came before under the same key, or a new one, given to the batcher."""
        body, key = protocol.read(data), facts["key"]
        facts["request"] = protocol.digest([path, body])
        known = self._kept.get(key) if key else None
        facts["again"] = known is not None
        if known is not None:
            if known.digest != facts["request"]:
                raise Problem(400, f"the Idempotency-Key {key!r:.80} came before with another request", "key_reused")
            return known
        what = protocol.request(path, body, self.batcher.generator, self.settings.names)
        try:
            entry = _Entry(facts["request"], (what, self.batcher.submit(what.job)))
        except BatcherClosed as error:
            raise _problem(error) from None
        if key:
            self._kept[key] = entry
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return entry

    async def _wait(self, entry: _Entry, request: Request, facts: dict[str, Any]) -> dict[str, Any]:
        """The reply. When the last client that wants it hangs up while it is still in the queue, it is taken out."""
        assert entry.work is not None
        what, job = entry.work
        entry.waiting += 1
        answer = asyncio.wrap_future(job)
        gone = asyncio.ensure_future(_hung_up(request))
        first: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            facts["gone"] = not answer.done()
            if facts["gone"]:
                if entry.waiting == 1 and job.cancel():
                    raise Problem(499, "the client went away before its turn came")
                await asyncio.wait({answer})
        finally:
            entry.waiting -= 1
            gone.cancel()
        if entry.body is None:
            entry.body = protocol.reply(what, answer.result(), entry.name, entry.created, self.batcher.generator)
            entry.work = None  # what is remembered is short
        return entry.body

    def _log(self, facts: dict[str, Any]) -> None:
        if self.settings.log is not None:
            with self.settings.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(facts) + "\n")


async def _hung_up(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, BatcherClosed):
        return Problem(503, str(error), "shutting_down")
    return Problem(500, f"the model failed: {type(error).__name__}: {error}")
