"""An OpenAI-compatible server with real sockets that knows what it means to say and often fails to say it.

What goes wrong is a function of the prompt and of how often it has been asked, so every run is the same.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[str, int], str]  # (prompt, attempt from 0) -> "" for a good answer, or what goes wrong
FAULTS = ("500", "429", "503", "reset", "cut", "slow", "drip", "truncated", "html", "empty", "many", "headless", "null")


def meant(prompt: str, sample: int = 0) -> str:
    """What the server wants to answer."""
    return f"{prompt[::-1]} #{sample}"


class FlakyServer(ThreadingHTTPServer):
    """Serves on a free port of this machine; use as a context manager."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, fault: Fault = lambda prompt, attempt: "", key: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.key = fault, key
        self.bos, self.echoes = "", True
        self.likely: list[tuple[str, float]] = []
        self.choice: dict[str, Any] = {}  # laid over every choice
        self.refuse: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda body: None  # the error of a 400
        self.most = 1000  # choices of a reply, whatever was asked for
        self.bodies: list[dict[str, Any]] = []
        self.marks: list[tuple[str, str]] = []  # prompt and Idempotency-Key
        self.asked: Counter[str] = Counter()
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> FlakyServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is what these tests are about."""

    def register(self, body: dict[str, Any]) -> tuple[str, int]:
        """Note a request; its prompt and how often it was asked before."""
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with self.lock:
            self.bodies.append(body)
            self.asked[prompt] += 1
            return prompt, self.asked[prompt] - 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    server: FlakyServer

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, attempt = self.server.register(body)
        self.server.marks.append((prompt, self.headers.get("Idempotency-Key", "")))
        fault = self.server.fault(prompt, attempt)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self.send(401, json.dumps({"error": {"message": f"bad key {self.headers.get('Authorization')}"}}))
        elif error := self.server.refuse(body):
            self.send(400, json.dumps({"error": error}))
        elif fault in FAULTS:
            getattr(self, f"fail_{fault}")(self.good(body, prompt), body.get("n", 1))
        elif fault:  # a status and a message
            self.send(int(fault[:3]), json.dumps({"error": {"message": fault[4:]}}))
        else:
            self.send(200, json.dumps(self.good(body, prompt)))

    def send(self, status: int, text: str, headers: dict[str, str] | None = None, missing: int = 0) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) - missing])
        self.wfile.flush()

    def good(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
        n = min(body.get("n", 1), self.server.most)
        choices = [self.one(body, prompt, sample) for sample in range(n)]
        wrote = sum(len(meant(prompt, sample).split()) for sample in range(n))
        return {"choices": choices[::-1], "usage": {"prompt_tokens": len(prompt), "completion_tokens": wrote}}

    def one(self, body: dict[str, Any], prompt: str, sample: int) -> dict[str, Any]:
        text = meant(prompt, sample)
        choice: dict[str, Any] = {"index": sample, "finish_reason": "stop"}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            tops = [{"token": token, "logprob": logp} for token, logp in self.server.likely]
            choice["logprobs"] = {"content": [{"top_logprobs": tops}]} if body.get("logprobs") else None
        else:
            choice["text"] = text
            choice["logprobs"] = self.echo(prompt) if body.get("echo") and self.server.echoes else None
        return {**choice, **self.server.choice}

    def echo(self, prompt: str) -> dict[str, Any]:
        """Words are tokens; a word of k letters has log-prob -k/8, and one of up to three letters is the likeliest."""
        tokens = [*([self.server.bos] if self.server.bos else []), *re.findall(r"\s*\S+|\s+$", prompt), " next"]
        logps = [None, *[-len(token.strip()) / 8 for token in tokens[1:]]]
        best = [None, *[{token: -len(token.strip()) / 8, "and": -0.375} for token in tokens[1:]]]
        starts = [sum(map(len, tokens[:place])) for place in range(len(tokens))]  # off by the BOS, as vLLM's are
        return {"tokens": tokens, "token_logprobs": logps, "top_logprobs": best, "text_offset": starts}

    def fail_500(self, good: dict[str, Any], n: int) -> None:
        self.send(500, '{"error": "out of order"}')

    def fail_429(self, good: dict[str, Any], n: int) -> None:
        self.send(429, '{"error": {"message": "too many requests"}}', {"Retry-After": "7"})

    def fail_503(self, good: dict[str, Any], n: int) -> None:
        self.send(503, "busy", {"Retry-After": formatdate(usegmt=True)})  # a date that is now

    def fail_reset(self, good: dict[str, Any], n: int) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def fail_cut(self, good: dict[str, Any], n: int) -> None:
        self.send(200, json.dumps(good), missing=20)
        self.close_connection = True

    def fail_slow(self, good: dict[str, Any], n: int) -> None:
        self.server.closing.wait(20.0)
        self.send(200, json.dumps(good))

    def fail_drip(self, good: dict[str, Any], n: int) -> None:
        """Every byte comes in time, the whole never does."""
        self.send(200, json.dumps(good) + " " * 100, missing=100)
        while not self.server.closing.wait(0.05):
            self.wfile.write(b" ")
            self.wfile.flush()

    def fail_truncated(self, good: dict[str, Any], n: int) -> None:
        self.send(200, json.dumps(good)[:-9])

    def fail_html(self, good: dict[str, Any], n: int) -> None:
        self.send(200, "<html><body>Bad gateway</body></html>", {"Content-Type": "text/html"})

    def fail_empty(self, good: dict[str, Any], n: int) -> None:
        self.send(200, json.dumps({"choices": []}))

    def fail_many(self, good: dict[str, Any], n: int) -> None:
        wrong = {"index": n, "finish_reason": "stop", "message": {"content": "somebody else's answer"}}
        self.send(200, json.dumps({"choices": [*good["choices"], wrong]}))

    def fail_headless(self, good: dict[str, Any], n: int) -> None:
        self.send(200, json.dumps({"choices": [{"index": place, "finish_reason": "stop"} for place in range(n)]}))

    def fail_null(self, good: dict[str, Any], n: int) -> None:
        choices = [{"index": place, "finish_reason": "stop", "message": {"content": None}} for place in range(n)]
        self.send(200, json.dumps({"choices": choices}))
