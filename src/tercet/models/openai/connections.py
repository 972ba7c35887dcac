"""Connections to our OpenAI-compatible server, with limits that hold before a request is there to be looked at.

A client that connects and is silent, or sends a byte now and then, holds its place for a stated time only; beyond
`CONNECTIONS` places everybody is told to come again. Built on uvicorn's own protocol, which has none of these limits.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tercet.models.access import HEAD_BYTES
from tercet.models.openai.problems import Problem

CONNECTIONS = 512  # at once; each takes a descriptor
HEAD_SECONDS, BODY_SECONDS = 10.0, 60.0  # from the connection to the end of the headers; from there to the end
TAKE_SECONDS = 60.0  # in which a client must take the next piece of a reply
IDLE_SECONDS = 5  # between two requests
UNREAD_BYTES = 1 << 20  # of a request that was answered already, before the connection is cut


class LimitedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._phase: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or say that there are too many."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self._end(503, f"{CONNECTIONS} connections are open, the most that are taken; come again")
        else:
            self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._timer, self._taking):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, in the time that is left."""
        if self.conn.our_state is h11.DONE:  # the rest of a request that was refused unread
            self._unread += len(data)
            if self._unread > UNREAD_BYTES:
                self.transport.abort()
                return
        if not self.transport.is_closing():
            super().data_received(data)
            self._time()

    def on_response_complete(self) -> None:
        """Begin again with the next request."""
        super().on_response_complete()
        self._time()

    def pause_writing(self) -> None:
        """The client takes its reply too slowly for now."""
        super().pause_writing()
        self._taking = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken some."""
        super().resume_writing()
        if self._taking is not None:
            self._taking.cancel()

    def _time(self) -> None:
        """Give headers and body their time, from where each begins: h11's state of the other side says where we are."""
        phase = self.conn.their_state
        if phase is self._phase:
            return
        self._phase = phase
        if self._timer is not None:
            self._timer.cancel()
        seconds = {h11.IDLE: HEAD_SECONDS, h11.SEND_BODY: BODY_SECONDS}.get(phase)
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self._end(408, "the request did not come in time")
        else:
            self.transport.abort()

    def _end(self, status: int, message: str) -> None:
        """Answer what was not read, and hang up."""
        body = json.dumps(Problem(status, message).body).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Retry-After: 1\r\nConnection: close\r\n\r\n".encode() + body)
        self.transport.close()


def limited_server(site: Any) -> uvicorn.Server:
    """What runs a web application (ASGI), with the limits of this module."""
    return uvicorn.Server(
        uvicorn.Config(
            site, http=LimitedProtocol, ws="none", log_level="warning", lifespan="off", proxy_headers=False,
            server_header=False, timeout_keep_alive=IDLE_SECONDS, h11_max_incomplete_event_size=HEAD_BYTES,
        )
    )  # fmt: skip
