"""An OpenAI-compatible server over a local model: chats, texts and log-probs for any client of the protocol.

Our own client, `models/openai/endpoint.py`, gets from it what the local generator would give.
A request with an `Idempotency-Key` is answered once: whoever sends the key again gets the same reply, and nothing is
written twice. (Replies with log-probs are long and cheap; they are not remembered.) Every request has limits, most of
them before it is read: `connections.py`, `models/access.py` and the constants here.

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

from tercet.models.access import HEAD_BYTES, Access, internal_error
from tercet.models.generate import LocalGenerator
from tercet.models.openai import protocol
from tercet.models.openai.batcher import Batcher, BatcherClosed, BatcherFull, GenerationResult
from tercet.models.openai.protocol import CHAT, TEXT, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from fastapi import FastAPI, Request, Response
    from uvicorn import Server

    Message = MutableMapping[str, Any]  # of the web server's, as `Scope` is
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

KEPT, KEPT_BYTES = 10_000, 256 << 20  # replies that are remembered by their Idempotency-Key, and their size
LONGEST_KEY = 256  # characters of an Idempotency-Key
BODY_BYTES = 8 << 20
SHOWN = 200  # characters of a path in the log
BUSY = (429, 503)  # answers that say: come again


@dataclass(frozen=True)
class Settings:
    """How a model is served: its names, the most rows decoded at once, who may ask, the log's file.

    A line of the log: `{"at": 1764.5, "path": "/v1/completions", "key": "", "request": "9f...", "again": false, "id":
    "4c...", "model": "tiny", "gone": false, "prompt_tokens": 9, "completion_tokens": 16, "answer": "0d...", "status":
    200, "seconds": 0.21}`. Equal requests have equal digests under "request", equal answers under "answer"; "again":
    from memory; "gone": the client went away before the answer came.
    """

    names: tuple[str, ...] = ("tercet",)
    rows: int = 16
    access: Access = field(default_factory=Access)
    log: Path | None = None


def app(generator: LocalGenerator, settings: Settings) -> FastAPI:
    """The web application of one model; `app.state.batcher` is to be closed after the last request."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    batcher = Batcher(generator, settings.rows)
    handler = _RequestHandler(batcher, settings)
    found = FastAPI(title="Tercet", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    found.state.batcher = batcher

    async def post(request: Request) -> Response:
        return _response(*await handler.serve(request))

    async def models(_request: Request) -> Response:
        limit = generator.context
        about = {"object": "model", "owned_by": "tercet", "max_model_len": limit}
        return JSONResponse({"object": "list", "data": [{"id": name, **about} for name in settings.names]})

    async def health(_request: Request) -> Response:
        over = batcher.stopping()
        return JSONResponse({"status": "shutting down" if over else "ok"}, 503 if over else 200)

    async def lost(request: Request, error: Exception) -> Response:
        problem = Problem(getattr(error, "status_code", 500), f"{request.method:.20} {request.url.path:.200}: {error}")
        return _response(problem.status, problem.body)

    for path in (CHAT, TEXT):
        found.add_route(path, post, methods=["POST"])
    found.add_route("/v1/models", models, methods=["GET"])
    found.add_route("/health", health, methods=["GET"])
    for status in (404, 405):
        found.add_exception_handler(status, lost)
    found.add_middleware(_Entrance, handler=handler)
    return found


def web_server(served: FastAPI) -> Server:
    """What runs the application, with limits on connections; from now on its end is the batcher's."""
    import uvicorn

    from tercet.models.openai.connections import IDLE_SECONDS, LimitedProtocol

    server = uvicorn.Server(
        uvicorn.Config(
            served, http=LimitedProtocol, ws="none", log_level="warning", lifespan="off", proxy_headers=False,
            server_header=False, timeout_keep_alive=IDLE_SECONDS, h11_max_incomplete_event_size=HEAD_BYTES,
        )
    )  # fmt: skip
    served.state.batcher.stopping = lambda: server.should_exit
    return server


def run(generator: LocalGenerator, settings: Settings, listener: socket) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM: what is being written ends, what waits is refused (503)."""
    served = app(generator, settings)
    server = web_server(served)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]  # the server raises them again at its end
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        served.state.batcher.close()


class _Entrance:
    """Between the connection and the application: refuses what should not be read, and stops what is too long."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]], handler: _RequestHandler) -> None:
        self.app, self.handler = app, handler

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        if problem := self._refusal(headers, scope):
            self.handler.log({"path": scope["path"][:SHOWN], "error": str(problem), "status": problem.status})
            await _response(problem.status, problem.body)(scope, receive, send)
            return
        taken, whole = 0, False

        async def limited() -> Message:
            nonlocal taken, whole
            message = await receive()
            if message["type"] == "http.disconnect" and not whole:
                raise Problem(499, "the client went away before its request had come")
            taken += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if taken > BODY_BYTES:
                raise _too_large()
            return message

        await self.app(scope, limited, send)

    def _refusal(self, headers: list[tuple[str, str]], scope: Message) -> Problem | None:
        about = dict(headers)
        if len(scope["raw_path"]) + len(scope["query_string"]) > HEAD_BYTES:
            return Problem(414, f"the address is too long; at most {HEAD_BYTES} bytes")
        if "content-length" in about and "transfer-encoding" in about:
            return Problem(400, "the request has two lengths: Content-Length and Transfer-Encoding")
        if int(about.get("content-length", 0)) > BODY_BYTES:  # the web server has made sure that it is a number
            return _too_large()
        reached = str((scope.get("server") or ("",))[0])
        if wrong := self.handler.settings.access.refusal(headers, reached, free=scope["path"] == "/health"):
            return Problem(*wrong, "bad_key" if wrong[0] == 401 else "")
        if about.get("content-encoding", "identity") != "identity":
            return Problem(415, "compressed requests are not read; send the JSON as it is")
        return None


def _too_large() -> Problem:
    return Problem(413, f"the request is too large; at most {BODY_BYTES} bytes are read")


def _response(status: int, body: dict[str, Any]) -> Response:
    from fastapi.responses import JSONResponse

    return JSONResponse(body, status, headers={"Retry-After": "1"} if status in BUSY else None)


@dataclass
class _Entry:
    """A request under way, or only its reply once there is one, for which so many connections are `waiting`."""

    digest: str
    work: tuple[protocol.ParsedRequest, Future[GenerationResult]] | None
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: float = field(default_factory=time.time)
    waiting: int = 0
    body: dict[str, Any] | None = None
    size: int = 0  # of the body, about, once it is remembered


class _RequestHandler:
    """Takes requests, submits jobs, remembers replies with a key, writes the log. Runs in the event loop."""

    def __init__(self, batcher: Batcher, settings: Settings) -> None:
        self.batcher, self.settings = batcher, settings
        self._kept: OrderedDict[str, _Entry] = OrderedDict()
        self._kept_bytes = 0

    async def serve(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Status and body of the reply to one request."""
        began, status = time.monotonic(), 200
        facts: dict[str, Any] = {"path": request.url.path, "key": request.headers.get("idempotency-key", "")}
        try:
            body = await self._body(request, facts)
        except Exception as error:
            problem = _problem(error)
            status, body = problem.status, problem.body
            facts["error"] = str(problem)
        self.log(facts | {"status": status, "seconds": time.monotonic() - began})
        return status, body

    async def _body(self, request: Request, facts: dict[str, Any]) -> dict[str, Any]:
        """The answer of a good request; `facts` are filled in for the log."""
        key = facts["key"]
        if len(key) > LONGEST_KEY:
            facts["key"] = ""
            raise Problem(400, f"the Idempotency-Key has {len(key)} characters; at most {LONGEST_KEY}")
        entry = self._entry(request.url.path, await request.body(), facts)
        try:
            body = entry.body or await self._wait(entry, request, facts)
        except Exception as error:
            self._forget(key)
            raise _problem(error) from error
        facts |= {"id": entry.name, "model": body["model"]}
        facts |= {name: body["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
        facts["answer"] = protocol.digest([choice.get("text") or choice.get("message") for choice in body["choices"]])
        if any(choice["logprobs"] for choice in body["choices"]):
            self._forget(key)
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
        except (BatcherClosed, BatcherFull) as error:
            raise _problem(error) from None
        if key:
            self._kept[key] = entry
            while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
                self._forget(next(iter(self._kept)))
        return entry

    def _forget(self, key: str) -> None:
        if entry := self._kept.pop(key, None):
            self._kept_bytes -= entry.size

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
            if self._kept.get(facts["key"]) is entry:
                entry.size = sum(len(completion.text) for completion in answer.result().completions)
                self._kept_bytes += entry.size
        return entry.body

    def log(self, facts: dict[str, Any]) -> None:
        """Append a line to the log, if there is one; JSON escapes what a terminal would obey."""
        if self.settings.log is not None:
            with self.settings.log.open("a", encoding="utf-8") as stream:
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
