"""Between a connection and our server's application: refuses what should not be read, and stops what is too long.

Pages of named origins may ask from a browser (CORS): their questions beforehand are answered here, without a key.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tercet.models.access import HEAD_BYTES, Access
from tercet.models.openai.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    from fastapi import Response

    Message = MutableMapping[str, Any]  # of the web server's, as `Scope` is
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

BODY_BYTES = 8 << 20
SHOWN = 200  # characters of a path in the log
BUSY = (429, 503)  # answers that say: come again
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key",
    "Access-Control-Max-Age": "600",
}


class Entrance:
    """Answers one request after another, each by `app` where nothing speaks against it."""

    def __init__(
        self,
        app: Callable[[Message, Receive, Send], Awaitable[None]],
        access: Access,
        free: frozenset[str],
        log: Callable[[dict[str, Any]], None],
    ) -> None:
        """Paths in `free` need no key."""
        self.app, self.access, self.free, self.log = app, access, free, log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        about = dict(headers)
        origin = about.get("origin", "").strip()
        if origin in self.access.origins:
            send = _told(send, origin)
        if problem := self._refusal(headers, scope):
            self.log({"path": scope["path"][:SHOWN], "error": str(problem), "status": problem.status})
            await respond(problem.status, problem.body)(scope, receive, send)
        elif scope["method"] == "OPTIONS" and origin in self.access.origins:
            await respond(204, None, PREFLIGHT)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        taken, whole, begun = 0, False, False

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

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, limited, sent)
        except Problem as problem:  # of a route beside our own, whose body could not be read
            if not begun:
                await respond(problem.status, problem.body)(scope, receive, send)

    def _refusal(self, headers: list[tuple[str, str]], scope: Message) -> Problem | None:
        about = dict(headers)
        if len(scope["raw_path"]) + len(scope["query_string"]) > HEAD_BYTES:
            return Problem(414, f"the address is too long; at most {HEAD_BYTES} bytes")
        if "content-length" in about and "transfer-encoding" in about:
            return Problem(400, "the request has two lengths: Content-Length and Transfer-Encoding")
        with suppress(ValueError):  # the web server has made sure that it is a number
            if int(about.get("content-length", 0)) > BODY_BYTES:
                return _too_large()
        reached = str((scope.get("server") or ("",))[0])
        free = scope["path"] in self.free or scope["method"] == "OPTIONS"
        if wrong := self.access.refusal(headers, reached, free=free):
            return Problem(*wrong, "invalid_api_key" if wrong[0] == 401 else "")
        if about.get("content-encoding", "identity") != "identity":
            return Problem(415, "compressed requests are not read; send the JSON as it is")
        return None


def _told(send: Send, origin: str) -> Send:
    """Answers that a page of this origin may read."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
            more.append((b"access-control-expose-headers", b"X-Queue-Position"))
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return tell


def _too_large() -> Problem:
    return Problem(413, f"the request is too large; at most {BODY_BYTES} bytes are read")


def respond(status: int, body: dict[str, Any] | None, headers: dict[str, str] | None = None) -> Response:
    """A response with a JSON body, or none; who should come again is told when."""
    from fastapi import Response
    from fastapi.responses import JSONResponse

    more = dict(headers or {}) | ({"Retry-After": "1"} if status in BUSY else {})
    return Response(status_code=status, headers=more) if body is None else JSONResponse(body, status, more)
