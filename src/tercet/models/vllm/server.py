"""The server of an engine in a process of its own; `client.py` is the other side.

    GET /health        which engine this is, its dtype and how many updates it has seen
    POST /write        prompts as token ids -> a line for each prompt as it is finished
    PUT /weights/U/I   part I of update U
    POST /update       put the parts of an update in -> the engine's checksum
    POST /checksum     of the weights it has

Needs the standard library only. Whoever reaches the port can change the weights: by default only this machine can, and
the key in TERCET_API_KEY is required where that is set.
"""

from __future__ import annotations

import json
import queue
import re
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tercet.models.vllm.client import BEAT, ENGINE_HEADER, PART, sampling_of, unpacked
from tercet.models.vllm.weights import EngineError
from tercet.rows import Completion

if TYPE_CHECKING:
    from tercet.models.vllm.generator import VllmGenerator

Send = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Send], dict[str, Any]]
LARGEST = 2 * PART  # bytes of a request


class EngineServer(ThreadingHTTPServer):
    """One engine behind a port. The port is taken when it is made, and answers from `start` on."""

    daemon_threads = True
    allow_reuse_address = True
    engine: VllmGenerator  # or another with its `dtype`, `version`, `write`, `update` and `checksum`

    def __init__(self, host: str, port: int, key: str = "") -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except (OSError, OverflowError) as error:
            self.server_close()
            raise EngineError(f"cannot listen on {host}, port {port}: {error}; choose another port") from None
        self.key, self.name = key, secrets.token_hex(8)
        self.parts: tuple[str, dict[int, bytes]] = ("", {})  # of the one update that is arriving
        self.lock = threading.Lock()

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

    def write(self, body: dict[str, Any], send: Send) -> dict[str, Any]:
        """The work of `/write`."""

        def done(i: int, group: list[Completion]) -> None:
            send({"prompt": i, "written": [asdict(one) for one in group]})

        self.engine.write(body["prompts"], sampling_of(body["sampling"]), done, body["streams"])
        return {}

    def update(self, body: dict[str, Any], send: Send) -> dict[str, Any]:
        """The work of `/update`."""
        with self.lock:
            name, parts = self.parts
            if name != body["update"] or len(parts) != body["parts"]:
                raise EngineError(
                    f"{len(parts) if name == body['update'] else 0} of an update's {body['parts']} parts are here: "
                    "another update came between, or the server was started anew; send them again"
                )
            self.parts = ("", {})
        weights = unpacked([parts.pop(i) for i in sorted(parts)])
        found = self.engine.update(weights.items(), in_flight=bool(body["in_flight"]))
        return {"checksum": found, "engine": self.name}

    def checksum(self, body: dict[str, Any], send: Send) -> dict[str, Any]:
        """The work of `/checksum`."""
        return {"checksum": self.engine.checksum()}

    def keep(self, update: str, number: int, part: bytes) -> None:
        """Keep a part of an update, and forget those of an update that was never finished."""
        with self.lock:
            if self.parts[0] != update:
                self.parts = (update, {})
            self.parts[1][number] = part


class _Gone(Exception):  # noqa: N818  not an error
    """The client went away."""


class _Handler(BaseHTTPRequestHandler):
    """One request; a reply ends with its connection."""

    server: EngineServer

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/health":
            engine = self.server.engine
            self._reply(200, {"engine": self.server.name, "dtype": engine.dtype, "version": engine.version})
        else:
            self._lost()

    def do_PUT(self) -> None:
        body = self._body()
        found = re.fullmatch(r"/weights/(\w+)/(\d+)", self.path)
        if body is None or self._refused():
            return
        if found:
            self.server.keep(found[1], int(found[2]), body)
            self._reply(200, {})
        else:
            self._lost()

    def do_POST(self) -> None:
        server = self.server
        work: dict[str, Work] = {"/write": server.write, "/update": server.update, "/checksum": server.checksum}
        text = self._body()
        if text is None or self._refused():
            return
        if self.path not in work:
            self._lost()
        elif self.headers.get(ENGINE_HEADER, server.name) != server.name:
            again = "the engine server was started again and holds its first weights; run the same command again"
            self._reply(409, {"error": again})
        else:
            try:
                body = json.loads(text)
            except ValueError as error:
                self._reply(400, {"error": f"expected JSON: {error}"})
            else:
                self._stream(lambda send: work[self.path](body, send))

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

    def _refused(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        refused = bool(self.server.key) and not secrets.compare_digest(given.encode(), self.server.key.encode())
        if refused:
            self._reply(401, {"error": "the key is missing or wrong; set TERCET_API_KEY as where the server runs"})
        return refused

    def _body(self) -> bytes | None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > LARGEST:
            self._reply(413, {"error": f"a request of {size} bytes; at most {LARGEST}"})
            return None
        return self.rfile.read(size)

    def _lost(self) -> None:
        self._reply(404, {"error": f"{self.command} {self.path} is unknown to this server"})

    def _begin(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        self._begin(status)
        self.wfile.write(json.dumps(body).encode())

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
        lines.put({"error": f"{type(error).__name__}: {error}"})
