"""HTTP with a server that is not trusted: what it sends has a limit, and so has the time that it takes.

An answer is asked for as it is or as gzip, and unpacked no further than its limit. Redirects are not followed, so no
other host is sent the key, and no cookie is kept. Headers end at the 100 KiB that httpcore reads of them.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from tercet.models.openai.payloads import PassingFailure

CONNECT = 10.0  # seconds of the time of an answer that connecting may take
MOST_BYTES = 64 << 20  # of any answer
LEAST_BYTES, TOKEN_BYTES = 1 << 20, 1024  # an answer may have the first, and the second for each token that it is about
PIECE = 1 << 16  # bytes that are sent before the time is looked at again


@dataclass(frozen=True)
class HttpAnswer:
    """What came back: the status, the header that asks for a pause, and the unpacked body."""

    status: int
    retry_after: str
    content: bytes


class Wire:
    """Connections to one server. Any thread may ask; `client` is open so that its headers can be looked at."""

    def __init__(self, url: str, headers: Mapping[str, str], connections: int) -> None:
        self._clock = _Deadline()
        self.client = httpx2.Client(
            base_url=url,
            headers={**headers, "Accept-Encoding": "gzip"},
            limits=httpx2.Limits(max_connections=connections),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
        # Timeouts of httpx begin again with every byte, and it has no public place for what reads the bytes.
        for transport in filter(None, (self.client._transport, *self.client._mounts.values())):
            pool = vars(transport)["_pool"]
            pool._network_backend = _BoundedBackend(pool._network_backend, self._clock)

    def post(self, path: str, data: bytes, headers: Mapping[str, str], *, seconds: float, tokens: int) -> HttpAnswer:
        """The answer to one request, which is about so many tokens; `PassingFailure` where none came in time."""
        most = min(MOST_BYTES, LEAST_BYTES + TOKEN_BYTES * max(0, tokens))
        return self._ask("POST", path, seconds, most, content=data, headers=dict(headers))

    def get(self, path: str, *, seconds: float) -> HttpAnswer:
        """The same without a body: what stands at a path."""
        return self._ask("GET", path, seconds, LEAST_BYTES)

    def _ask(self, method: str, path: str, seconds: float, most: int, **sent: Any) -> HttpAnswer:
        self._clock.start(seconds)
        timeout = httpx2.Timeout(seconds, connect=min(seconds, CONNECT))
        content = bytearray()
        try:
            with self.client.stream(method, path, timeout=timeout, **sent) as response:
                for piece in response.iter_raw():
                    content += piece
                    if len(content) > most:
                        raise PassingFailure(_too_large(most))
        except httpx2.RequestError as error:
            away = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            late = "" if self._clock.left() > 0 else f" (not whole after {seconds:g} s)"
            raise PassingFailure(f"{type(error).__name__}: {error}{late}", reached=not away) from error
        packing = response.headers.get("Content-Encoding", "")
        return HttpAnswer(
            response.status_code, response.headers.get("Retry-After", ""), _unpacked(bytes(content), packing, most)
        )

    def close(self) -> None:
        """Give the connections back."""
        self.client.close()


def _unpacked(content: bytes, packing: str, most: int) -> bytes:
    """A body without its compression, never more than `most` bytes of it."""
    if packing.strip().lower() in ("", "identity"):
        return content
    if packing.strip().lower() not in ("gzip", "x-gzip"):
        raise PassingFailure(f"the answer is compressed as {packing!r:.40}, which was not asked for")
    reader = zlib.decompressobj(wbits=31)
    try:
        found = reader.decompress(content, most + 1)
    except zlib.error as error:
        raise PassingFailure(f"the answer is not the gzip that it says it is ({error})") from None
    if len(found) > most:
        raise PassingFailure(_too_large(most))
    if not reader.eof:
        raise PassingFailure("the answer is gzip that was cut short")
    return found


def _too_large(most: int) -> str:
    return f"the answer is larger than the {most:,} bytes that one to this question may have"


class _Deadline(threading.local):
    """When the request of this thread must be over."""

    end = 0.0

    def start(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()

    def cut(self, timeout: float | None) -> float:
        """A timeout that ends with the request; an error where that is over."""
        left = self.left()
        if left <= 0:
            raise httpx2.ReadTimeout("the time for this request is over")
        return left if timeout is None else min(timeout, left)


class _BoundedStream:
    """A connection of httpcore's on which no reading or writing lasts longer than its request may."""

    def __init__(self, stream: Any, clock: _Deadline) -> None:
        self._stream, self._clock = stream, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return bytes(self._stream.read(max_bytes, self._clock.cut(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE):
            self._stream.write(buffer[start : start + PIECE], self._clock.cut(timeout))

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> _BoundedStream:
        found = self._stream.start_tls(ssl_context, server_hostname, self._clock.cut(timeout))
        return _BoundedStream(found, self._clock)


class _BoundedBackend:
    """What opens such connections, in the place of httpcore's own."""

    def __init__(self, own: Any, clock: _Deadline) -> None:
        self._own, self._clock = own, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def connect_tcp(self, *args: Any, timeout: float | None = None, **more: Any) -> _BoundedStream:
        return _BoundedStream(self._own.connect_tcp(*args, timeout=self._clock.cut(timeout), **more), self._clock)
