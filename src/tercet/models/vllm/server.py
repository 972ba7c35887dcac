"""The server of an engine in a process of its own; `client.py` is the other side.

    GET /health        which engine this is, its dtype and how many updates it has seen
    POST /write        prompts as token ids -> a line for each prompt as it is finished
    PUT /weights/U/I   part I of update U
    POST /update       put the parts of an update in -> the engine's checksum
    POST /checksum     of the weights it has

Whoever reaches the port could change the weights, so every start makes a new key and puts it into a file that only its
owner can read; clients read it there. Who may ask is decided by the head of a request (`models/access.py`); the body
comes after that, and both have their time.
"""

from __future__ import annotations

import io
import json
import queue
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.models.access import HEAD_BYTES, access, engine_key_file, internal_error, remove_key, write_key
from tercet.models.vllm.client import BEAT, ENGINE_HEADER, PART, unpacked
from tercet.models.vllm.requests import MOST_PARTS, ChecksumBody, RequestError, UpdateBody, WriteBody, checked
from tercet.models.vllm.weights import EngineError
from tercet.rows import Completion

if TYPE_CHECKING:
    from tercet.models.vllm.generator import VllmGenerator

Send = Callable[[dict[str, Any]], None]
Work = Callable[[Any, Send], dict[str, Any]]
LARGEST = 2 * PART  # bytes of a part of the weights
LARGEST_TEXT = 256 << 20  # bytes of a request with prompts
CONNECTIONS = 64  # at once; each takes a thread
HEAD_SECONDS = 10.0  # in which the head of a request must come
BODY_SECONDS, SLOWEST = 30.0, 1 << 20  # in which its body must come: so many, and one for so many bytes
TAKE_SECONDS = 300.0  # in which a client must take the next piece of a reply
DRAINED, DRAIN_SECONDS = 1 << 20, 1.0  # what is read of a request that was refused
UPLOAD_SECONDS = 600.0  # after which the parts of an update that is not finished are forgotten


class EngineServer(ThreadingHTTPServer):
    """One engine behind a port. The port is taken when it is made, and answers from `start` on."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # connections that wait to be taken
    engine: VllmGenerator  # or another with its `dtype`, `version`, `write`, `update` and `checksum`

    def __init__(self, host: str, port: int, key_file: Path | None = None, names: Sequence[str] = ()) -> None:
        """The key is put into `key_file`, in the cache when absent; `names`: other names in a client's URL."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except (OSError, OverflowError) as error:
            self.server_close()
            raise EngineError(f"cannot listen on {host}, port {port}: {error}; choose another port") from None
        self.name = secrets.token_hex(8)
        self.key_file = key_file or engine_key_file(f"http://localhost:{self.server_address[1]}")
        self.access = access(host, names, write_key(self.key_file))
        self.parts: tuple[str, dict[int, bytes]] = ("", {})  # of the one update that is arriving
        self.arrived = 0.0  # when its last part came
        self.lock = threading.Lock()
        self.places = threading.BoundedSemaphore(CONNECTIONS)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}"

    def start(self, engine: VllmGenerator) -> None:
        """Serve an engine until `shutdown` or Ctrl-C."""
        self.engine = engine
        self.server_activate()
        self.serve_forever()

    def server_close(self) -> None:
        """Give the port and the key back."""
        super().server_close()
        if hasattr(self, "access"):
            remove_key(self.key_file, self.access.key)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, or say that there are too many."""
        if self.places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread is to be had
                self.places.release()
                raise
            return
        with suppress(OSError):
            request.settimeout(0.0)
            request.send(b"HTTP/1.0 503 -\r\nRetry-After: 1\r\n\r\n" + b'{"error": "too many connections; come again"}')
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The work of one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or took too long is nothing to talk about."""
        if (error := sys.exception()) and not isinstance(error, OSError):
            internal_error(error)

    def service_actions(self) -> None:
        """Twice a second: forget the parts of an update that was never finished."""
        with self.lock:
            if self.parts[1] and time.monotonic() - self.arrived > UPLOAD_SECONDS:
                self.parts = ("", {})

    def write(self, body: WriteBody, send: Send) -> dict[str, Any]:
        """The work of `/write`."""

        def done(i: int, group: list[Completion]) -> None:
            send({"prompt": i, "written": [asdict(one) for one in group]})

        self.engine.write(body.prompts, body.sampling.sampling, done, body.streams)
        return {}

    def update(self, body: UpdateBody, send: Send) -> dict[str, Any]:
        """The work of `/update`."""
        with self.lock:
            name, parts = self.parts
            if name != body.update or sorted(parts) != list(range(body.parts)):
                raise EngineError(
                    f"{len(parts) if name == body.update else 0} of an update's {body.parts} parts are here: another "
                    f"update came between, the parts came over more than {UPLOAD_SECONDS:g} s, or the server was "
                    "started anew; send them again"
                )
            self.parts = ("", {})
        weights = unpacked([parts.pop(i) for i in sorted(parts)])
        found = self.engine.update(weights.items(), in_flight=body.in_flight)
        return {"checksum": found, "engine": self.name}

    def checksum(self, body: ChecksumBody, send: Send) -> dict[str, Any]:
        """The work of `/checksum`."""
        return {"checksum": self.engine.checksum()}

    def keep(self, update: str, number: int, part: bytes) -> None:
        """Keep a part of an update, and forget those of an update that was never finished."""
        with self.lock:
            if self.parts[0] != update:
                self.parts = (update, {})
            self.parts[1][number] = part
            self.arrived = time.monotonic()


class _Gone(Exception):  # noqa: N818  not an error
    """The client went away."""


class _Incoming(io.RawIOBase):
    """What a connection sends, as long as it has time and may be long; `allow` begins anew."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def allow(self, size: int, seconds: float) -> None:
        """So many bytes, in so many seconds."""
        self.left, self.end = size, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """What comes next; the end once there is too much; a TimeoutError, always when the time is over."""
        if (rest := self.end - time.monotonic()) <= 0:
            raise TimeoutError("the request did not come in time")
        self.connection.settimeout(rest)
        found = self.connection.recv_into(buffer, min(len(buffer), max(self.left, 0))) if self.left > 0 else 0
        self.left -= found
        return found


class _Handler(BaseHTTPRequestHandler):
    """One request; a reply ends with its connection."""

    server: EngineServer
    server_version, sys_version = "tercet", ""

    def setup(self) -> None:
        super().setup()
        self.incoming = _Incoming(self.connection)
        self.incoming.allow(2 * HEAD_BYTES, HEAD_SECONDS)  # what is longer is told so
        self.rfile = io.BufferedReader(self.incoming, 1 << 12)

    def handle(self) -> None:
        """Nobody who is too slow, or goes away, is answered."""
        with suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        if self._refused(0):
            return
        if self.path == "/health":
            engine = self.server.engine
            self._reply(200, {"engine": self.server.name, "dtype": engine.dtype, "version": engine.version})
        else:
            self._lost()

    def do_PUT(self) -> None:
        found = re.fullmatch(r"/weights/(\w{1,64})/(\d{1,5})", self.path, re.ASCII)
        if self._refused(LARGEST):
            return
        if found and int(found[2]) < MOST_PARTS:
            if (body := self._body()) is not None:
                self.server.keep(found[1], int(found[2]), body)
                self._reply(200, {})
        else:
            self._lost()

    def do_POST(self) -> None:
        server = self.server
        work: dict[str, tuple[Any, Work]] = {
            "/write": (WriteBody, server.write),
            "/update": (UpdateBody, server.update),
            "/checksum": (ChecksumBody, server.checksum),
        }
        if self._refused(LARGEST_TEXT):
            return
        if self.path not in work:
            self._lost()
        elif self.headers.get(ENGINE_HEADER, server.name) != server.name:
            again = "the engine server was started again and holds its first weights; run the same command again"
            self._reply(409, {"error": again})
        elif (text := self._body()) is not None:
            kind, function = work[self.path]
            try:
                body = checked(kind, text)
            except RequestError as error:
                self._reply(400, {"error": str(error)})
            else:
                self._stream(lambda send: function(body, send))

    def _stream(self, work: Callable[[Send], dict[str, Any]]) -> None:
        """Lines of a reply as they come, with empty ones between, so that the client knows that the server is alive."""
        lines: queue.Queue[dict[str, Any]] = queue.Queue()
        gone = threading.Event()

        def send(line: dict[str, Any]) -> None:
            if gone.is_set():
                raise _Gone
            lines.put(line)

        threading.Thread(target=_run, args=(work, send, lines), daemon=True).start()
        self._begin(200)
        line: dict[str, Any] = {}
        try:
            while "end" not in line and "error" not in line:
                try:
                    line = lines.get(timeout=BEAT)
                except queue.Empty:
                    line = {}
                self.wfile.write((json.dumps(line) if line else "").encode() + b"\n")
                self.wfile.flush()
        except OSError:
            gone.set()

    def _refused(self, most: int) -> bool:
        """Answer a request that is not to be read: too large, or from whom it should not come."""
        reached = str(self.connection.getsockname()[0])
        size = self.headers.get("Content-Length", "0")
        wrong = self.server.access.refusal(self.headers.items(), reached)
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"[0-9]{1,15}", size):
            wrong = 411, "the length of a request must stand in Content-Length"
        elif int(size) > most:
            wrong = 413, f"a request of {size} bytes; at most {most}"
        elif wrong and wrong[0] == 401:
            wrong = 401, f"the key is missing or wrong; it is in {self.server.key_file.name} where the server runs"
        if wrong:
            self._reply(wrong[0], {"error": wrong[1]})
        return bool(wrong)

    def _body(self) -> bytes | None:
        """The body; None when the client went away within it."""
        size = int(self.headers.get("Content-Length", "0"))
        self.incoming.allow(size, BODY_SECONDS + size / SLOWEST)
        body = self.rfile.read(size)
        self.connection.settimeout(TAKE_SECONDS)  # for each piece of the reply
        return body if len(body) == size else None

    def _lost(self) -> None:
        self._reply(404, {"error": f"{self.command} {self.path:.200} is unknown to this server"})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses, in our own words."""
        self.close_connection = True
        self._reply(code, {"error": f"no request of HTTP that this server knows (status {int(code)})"})

    def _begin(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        """Answer. Of a request that is refused a little more is read: a connection closed before loses the answer."""
        self._begin(status)
        self.wfile.write(json.dumps(body).encode())
        if status >= 400:
            self.connection.shutdown(socket.SHUT_WR)
            self.incoming.allow(DRAINED, DRAIN_SECONDS)
            while self.incoming.read(1 << 16):
                pass

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def _run(work: Callable[[Send], dict[str, Any]], send: Send, lines: queue.Queue[dict[str, Any]]) -> None:
    """Do the work; its end, or what went wrong, is the last line."""
    try:
        lines.put({"end": work(send)})
    except EngineError as error:
        lines.put({"error": str(error)})
    except _Gone:
        pass
    except Exception as error:
        lines.put({"error": f"the engine failed: {internal_error(error)}"})
