"""An OpenAI-compatible server over local models: chats, texts and log-probs for any client of the protocol.

Our own client, `models/openai/endpoint.py`, gets from it what the local generator would give. Every request has limits,
most of them before it is read: `connections.py`, `entrance.py`, `models/access.py`.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /v1/models/NAME   GET /health

Another package may add routes (Starlette's) to the application; they stand behind the same entrance, and find the
models under `request.app.state.models` and their worker under `request.app.state.batcher`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from tercet.models.access import Access
from tercet.models.openai.batcher import Batcher
from tercet.models.openai.entrance import Entrance, respond
from tercet.models.openai.handler import RequestHandler
from tercet.models.openai.problems import Problem
from tercet.models.openai.protocol import CHAT, TEXT
from tercet.models.openai.served import ServedModel

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response
    from uvicorn import Server


@dataclass(frozen=True)
class Settings:
    """How models are served: the most rows that each writes at once, how many are in memory, who may ask, the log.

    Paths in `free` need no key, beside /health. A line of the log: `{"at": 1764.5, "path": "/v1/completions", "key":
    "", "request": "9f...", "again": false, "id": "4c...", "model": "tiny", "gone": false, "prompt_tokens": 9,
    "completion_tokens": 16, "answer": "0d...", "status": 200, "seconds": 0.21}`. Equal requests have equal digests
    under "request", equal answers under "answer"; "again": from memory; "gone": the client went away too early.
    """

    rows: int = 16
    kept: int = 4
    access: Access = field(default_factory=Access)
    log: Path | None = None
    free: tuple[str, ...] = ()


def app(models: Sequence[ServedModel], settings: Settings, routes: Sequence[Any] = ()) -> FastAPI:
    """The web application of some models; `app.state.batcher` is to be closed after the last request."""
    from fastapi import FastAPI

    known = {name: model for model in models for name in model.names}
    batcher = Batcher({model.name: model for model in models}, settings.rows, settings.kept)
    handler = RequestHandler(known, batcher, settings.log)
    found = FastAPI(title="Tercet", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    found.state.batcher, found.state.models = batcher, known
    began = int(time.time())

    async def about(name: str) -> dict[str, Any]:
        model = known[name]
        own = {"id": name, "object": "model", "created": began, "owned_by": "tercet"}
        chat = await asyncio.to_thread(lambda: bool(model.chat.template))
        return own | {"max_model_len": model.context, "chat": chat, "loaded": model.name in batcher.loaded}

    async def listed(_request: Request) -> Response:
        return respond(200, {"object": "list", "data": [await about(name) for name in known]})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if name in known:
            return respond(200, await about(name))
        error = f"no model {name!r:.80} here; served: {', '.join(known)}"
        return respond(404, Problem(404, error, "model_not_found", "model").body)

    async def health(_request: Request) -> Response:
        over = batcher.stopping()
        return respond(503 if over else 200, {"status": "shutting down" if over else "ok", **batcher.load})

    async def lost(request: Request, error: Exception) -> Response:
        problem = Problem(getattr(error, "status_code", 500), f"{request.method:.20} {request.url.path:.200}: {error}")
        return respond(problem.status, problem.body)

    for path in (CHAT, TEXT):
        found.add_route(path, handler.serve, methods=["POST"])
    found.add_route("/v1/models", listed, methods=["GET"])
    found.add_route("/v1/models/{name:path}", one, methods=["GET"])
    found.add_route("/health", health, methods=["GET"])
    found.router.routes.extend(routes)
    for status in (404, 405):
        found.add_exception_handler(status, lost)
    free = frozenset((*settings.free, "/health"))
    found.add_middleware(Entrance, access=settings.access, free=free, log=handler.log)
    return found


def web_server(served: FastAPI) -> Server:
    """What runs the application, with limits on connections; from now on its end is the batcher's."""
    from tercet.models.openai.connections import limited_server

    server = limited_server(served)
    served.state.batcher.stopping = lambda: server.should_exit
    return server


def run(models: Sequence[ServedModel], settings: Settings, listener: socket, routes: Sequence[Any] = ()) -> None:
    """Serve on a bound socket until SIGINT or SIGTERM: what is being written ends, what waits is refused (503)."""
    served = app(models, settings, routes)
    server = web_server(served)
    served.state.batcher.warm([model.name for model in models])
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]  # the server raises them again at its end
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        served.state.batcher.close()
