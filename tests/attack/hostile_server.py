"""A server that means harm: it reads a request and sends whatever bytes a behaviour has for it, by a raw socket."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Behaviour = Callable[["HostileServer", socket.socket], None]
MANY = 40 << 20  # bytes, far beyond what an answer to these questions may have


def good(text: str = "fine", **more: Any) -> dict[str, Any]:
    """A reply as the protocol has it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, **more}


def http(body: bytes | str | Any, *lines: str, status: str = "200 OK", length: str | None = None) -> bytes:
    """A whole reply; a body that is no text becomes JSON."""
    data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    size = str(len(data)) if length is None else length
    head = [f"HTTP/1.1 {status}", *([f"Content-Length: {size}"] if size else []), *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + data


class HostileServer:
    """Serves on a free port of this machine until it is closed; the first words of a prompt choose what it does."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour, self.requests = behaviour, list[bytes]()
        self.closing = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.other: HostileServer | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"

    def serve(self) -> None:
        """Answer connections, each in a thread."""
        while not self.closing.is_set():
            with suppress(OSError):
                connection, _ = self.listener.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        """Read requests and do harm, or good to a prompt that says so."""
        with suppress(OSError, ValueError), connection:
            connection.settimeout(10)
            while not self.closing.is_set():
                request = self.read(connection)
                self.requests.append(request)
                if b"be good" in request:
                    connection.sendall(http(good("good again")))
                else:
                    self.behaviour(self, connection)
                    return

    def read(self, connection: socket.socket) -> bytes:
        """One request."""
        found = b""
        while b"\r\n\r\n" not in found:
            piece = connection.recv(65536)
            if not piece:
                raise ValueError("the client has gone")
            found += piece
        head, _, body = found.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        while len(body) < size:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body


@contextmanager
def hostile(behaviour: Behaviour) -> Iterator[HostileServer]:
    """Such a server, and another one beside it that is told of requests it should never get."""
    server, other = HostileServer(behaviour), HostileServer(sends(http(good("from elsewhere"))))
    server.other = other
    for one in (server, other):
        threading.Thread(target=one.serve, daemon=True).start()
    try:
        yield server
    finally:
        for one in (server, other):
            one.closing.set()
            with suppress(OSError):
                one.listener.shutdown(socket.SHUT_RDWR)
            one.listener.close()


def sends(*pieces: bytes, pause: float = 0.0) -> Behaviour:
    """Sends these bytes and closes."""

    def behave(server: HostileServer, connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)

    return behave


def drips(start: bytes, piece: bytes) -> Behaviour:
    """Sends a start, and then a little of something for as long as anybody listens."""

    def behave(server: HostileServer, connection: socket.socket) -> None:
        connection.sendall(start)
        while not server.closing.wait(0.03):
            connection.sendall(piece)

    return behave


def floods(start: bytes, piece: bytes) -> Behaviour:
    """The same as fast as it goes."""

    def behave(server: HostileServer, connection: socket.socket) -> None:
        connection.sendall(start)
        while not server.closing.is_set():
            connection.sendall(piece)

    return behave


def silent(server: HostileServer, connection: socket.socket) -> None:
    """Says nothing."""
    server.closing.wait(5)


def resets(server: HostileServer, connection: socket.socket) -> None:
    """Breaks off in the middle of an answer."""
    connection.sendall(http(good())[:-30])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def redirects(to: str, status: str = "302 Found") -> Behaviour:
    """Sends the client elsewhere; `OTHER` is another server, `SELF` this one."""

    def behave(server: HostileServer, connection: socket.socket) -> None:
        assert server.other is not None
        where = to.replace("OTHER", server.other.url).replace("SELF", server.url)
        connection.sendall(http("", f"Location: {where}", status=status))

    return behave


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OPEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
DEEP = "[" * 100_000 + "]" * 100_000
ZEROS = gzip.compress(b" " * (200 << 20), 9)
ESCAPES = "\x1b[2J\x1b]8;;http://evil\x07\u202e\x9b31m"


def usage(prompt: str, completion: str) -> bytes:
    """A good answer with these counts."""
    text = json.dumps({"choices": good()["choices"]})
    return http(f'{text[:-1]}, "usage": {{"prompt_tokens": {prompt}, "completion_tokens": {completion}}}}}')


def refuses(message: Any, status: str = "400 Bad Request", *lines: str) -> Behaviour:
    """An error object."""
    return sends(http({"error": message}, *lines, status=status))


def later(value: str, status: str = "429 Too Many Requests") -> Behaviour:
    """Asks for a pause."""
    return sends(http({"error": {"message": "later"}}, f"Retry-After: {value}", status=status))


def says(text: str) -> bytes:
    """An answer with a text that is written as JSON here."""
    return http(f'{{"choices": [{{"index": 0, "finish_reason": "stop", "message": {{"content": {text}}}}}]}}')


# What it does, and what may come of it: "answer" (a good one), "error" (of that request), "stop" (of everything).
ATTACKS: dict[str, tuple[Behaviour, str]] = {
    "a body without end": (floods(OPEN, b" " * 65536), "error"),
    "a body of 40 MB with its length": (sends(http(b" " * MANY)), "error"),
    "a body that promises an exabyte": (sends(http(good(), length=str(10**18))), "error"),
    "a body by single bytes": (drips(OPEN, b" "), "error"),
    "headers by single bytes": (drips(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), "error"),
    "a status line by single bytes": (drips(b"HTTP/1.1 200 ", b"O"), "error"),
    "silence": (silent, "error"),
    "closed at once": (sends(), "error"),
    "reset in the body": (resets, "error"),
    "a gzip bomb": (sends(http(ZEROS, "Content-Encoding: gzip")), "error"),
    "a gzip bomb in an error": (sends(http(ZEROS, "Content-Encoding: gzip", status="500 Oops")), "error"),
    "gzip twice": (sends(http(gzip.compress(ZEROS), "Content-Encoding: gzip, gzip")), "error"),
    "brotli that nobody asked for": (sends(http(b"\x0b\x02\x80", "Content-Encoding: br")), "error"),
    "zstd that nobody asked for": (sends(http(b"(\xb5/\xfd", "Content-Encoding: zstd")), "error"),
    "gzip that is none": (sends(http(good(), "Content-Encoding: gzip")), "error"),
    "gzip cut short": (sends(http(gzip.compress(json.dumps(good()).encode())[:-9], "Content-Encoding: gzip")), "error"),
    "good gzip": (sends(http(gzip.compress(json.dumps(good()).encode()), "Content-Encoding: gzip")), "answer"),
    "a header of 10 MB": (sends(http(good(), "X-Large: " + "a" * 10_000_000)), "error"),
    "100,000 headers": (sends(http(good(), *(f"X-{i}: a" for i in range(100_000)))), "error"),
    "headers without end": (floods(b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n" * 1000), "error"),
    "a length that is too short": (sends(http(good(), length="20")), "error"),
    "a length that is too long": (sends(http(good(), length="900")), "error"),
    "a negative length": (sends(http(good(), length="-1")), "error"),
    "a length in words": (sends(http(good(), length="many")), "error"),
    "two lengths": (sends(http(good(), "Content-Length: 7")), "error"),
    "chunks without end": (floods(CHUNKED, b"1\r\n \r\n" * 4096), "error"),
    "a chunk of 2^64 bytes": (floods(CHUNKED + b"FFFFFFFFFFFFFFFF\r\n", b" " * 65536), "error"),
    "a chunk size that is none": (sends(CHUNKED + b"zz\r\n"), "error"),
    "a chunk extension of 10 MB": (sends(CHUNKED + b"1;a=" + b"b" * 10_000_000 + b"\r\n"), "error"),
    "a redirect to itself": (redirects("SELF/chat/completions", "307 Temporary Redirect"), "stop"),
    "a redirect to another host": (redirects("OTHER/chat/completions", "308 Permanent Redirect"), "stop"),
    "a redirect by 303": (redirects("OTHER", "303 See Other"), "error"),
    "a redirect to a file": (redirects("file:///etc/passwd"), "stop"),
    "a redirect to nonsense": (redirects("http://[::bad/\x00"), "error"),
    "usage of 1e308": (sends(usage("1e308", "1e308")), "answer"),
    "negative usage": (sends(usage("-5", "-100000000")), "answer"),
    "usage that is not a number": (sends(usage("NaN", "Infinity")), "error"),
    "usage of 10^30": (sends(usage("1" + "0" * 30, "1" + "0" * 30)), "answer"),
    "usage in words and booleans": (sends(usage('"many"', "true")), "answer"),
    "a number of 5,000 digits": (sends(usage("1" * 5000, "1")), "error"),
    "JSON 100,000 deep": (sends(http(DEEP)), "error"),
    "a message 100,000 deep": (sends(says(DEEP)), "error"),
    "an error 100,000 deep": (sends(http(f'{{"error": {DEEP}}}', status="400 Bad")), "error"),
    "an error 900 deep": (
        sends(http(f'{{"error": {{"message": {DEEP[99_100:100_900]}}}}}', status="400 Bad")),
        "error",
    ),
    "two values of one key": (sends(http('{"choices": 1, ' + json.dumps(good())[1:])), "answer"),
    "half a surrogate pair": (sends(says('"a \\ud800 b"')), "error"),
    "half a pair in a key": (sends(http('{"\\udfff": 1, ' + json.dumps(good())[1:])), "error"),
    "a whole pair": (sends(says('"\\ud83d\\ude00"')), "answer"),
    "bytes that are no UTF-8": (sends(says('"\xff\xfe"').replace("ÿþ".encode(), b"\xff\xfeab")), "error"),
    "a surrogate in bytes": (sends(http(json.dumps(good("XYZ")).encode().replace(b"XYZ", b"\xed\xa0\x80"))), "error"),
    "UTF-16": (sends(http(json.dumps(good()).encode("utf-16"))), "error"),
    "NUL in an answer": (sends(says('"a\\u0000b"')), "answer"),
    "control characters in an answer": (sends(http(good(ESCAPES))), "answer"),
    "a million choices": (sends(http({"choices": [{}] * 1_000_000})), "error"),
    "10,000 choices": (sends(http({"choices": [{"index": i} for i in range(10_000)]})), "error"),
    "choices under keys": (sends(http({"choices": {"0": good()}})), "error"),
    "no choices": (sends(http({"choices": []})), "error"),
    "choices whose number is a list": (sends(http({"choices": [{"index": [0]}]})), "error"),
    "a text that is a number": (sends(says("5")), "error"),
    "a reason of a megabyte": (sends(http(good() | {"choices": [{"finish_reason": "x" * 900_000}]})), "error"),
    "HTTP/0.9": (sends(b"<html>hello</html>\r\n"), "error"),
    "noise": (sends(bytes(range(256)) * 400), "error"),
    "TLS where there is none": (sends(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500), "error"),
    "a flood of 100 Continue": (floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "error"),
    "early hints without end": (drips(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"), "error"),
    "a change of protocol": (sends(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), "error"),
    "status 999": (sends(http(good(), status="999 Odd")), "error"),
    "status in words": (sends(http(good(), status="fine indeed")), "error"),
    "nothing, with status 204": (sends(http("", status="204 No Content", length="")), "error"),
    "a header with a line feed in it": (sends(http(good(), "X: a\n b", "Y\x00: c")), "error"),
    "cookies": (sends(http(good(), *(f"Set-Cookie: c{i}={'v' * 900}; Path=/" for i in range(80)))), "answer"),
    "later: in 10^9 seconds": (later("1000000000"), "error"),
    "later: in the year 9999": (later("Fri, 31 Dec 9999 23:59:59 GMT"), "error"),
    "later: in a year beyond all": (later("Fri, 31 Dec 99999999999999999999 23:59:59 GMT"), "error"),
    "later: never": (later("inf", "503 Busy"), "error"),
    "later: not a number": (later("nan"), "error"),
    "later: a megabyte": (later("9" * 90_000), "error"),
    "an error with control characters": (refuses({"message": f"unsupported {ESCAPES}"}), "error"),
    "an error with half a pair": (sends(http('{"error": {"message": "\\ud800"}}', status="400 Bad")), "error"),
    "an error of odd shapes": (refuses({"message": {"a": []}, "detail": [{"loc": {"a": 1}}], "param": 5}), "error"),
    "an error of other shapes": (refuses({"detail": [{"loc": 5}]}), "error"),
    "an error of 40 MB": (sends(http(b"x" * MANY, status="500 Oops")), "error"),
    "an event stream": (sends(http('data: {"choices": []}\n\n', "Content-Type: text/event-stream")), "error"),
    "a byte order mark": (sends(http(b"\xef\xbb\xbf" + json.dumps(good()).encode())), "error"),
    "an answer after the answer": (sends(http(good()) + http(good("second"))), "answer"),
}
