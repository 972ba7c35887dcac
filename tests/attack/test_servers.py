"""Our two servers under attack: raw bytes on sockets, and what must hold while they come and after."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tercet.models.access import Access, AccessError, access, read_key
from tercet.models.generate import LocalGenerator
from tercet.models.openai import batcher as batcher_module
from tercet.models.openai import connections
from tercet.models.openai import handler as handler_module
from tercet.models.openai.live import Live
from tercet.models.openai.serve import Settings, app, web_server
from tercet.models.openai.served import ServedModel

KEY = "the-key-of-the-test"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
ESCAPE = "\x1b]0;owned\x07\x9b31m"


@contextlib.contextmanager
def running(start: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


@contextlib.contextmanager
def serving(
    generator: LocalGenerator, access: Access, log: Path | None = None, routes: Sequence[Any] = (), **more: Any
) -> Iterator[int]:
    """The port of `tercet serve`."""
    web = app([ServedModel.of(generator, "tiny")], Settings(access=access, log=log, **more), routes)
    server = web_server(web)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def stop() -> None:
            server.should_exit = True

        with running(lambda: server.run(sockets=[listener]), stop):
            yield listener.getsockname()[1]
    web.state.batcher.close()


@pytest.fixture(scope="module")
def generator(tiny_folder: Path) -> LocalGenerator:
    return LocalGenerator.open(tiny_folder, "float32", rows=16)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "log"


@pytest.fixture(scope="module")
def serve_port(generator: LocalGenerator, log: Path) -> Iterator[int]:
    with serving(generator, Access(KEY, ("friend.example",)), log) as port:
        yield port


@pytest.fixture
def server(serve_port: int) -> tuple[int, str]:
    """The port of the server and its key."""
    return serve_port, KEY


def spoken(port: int, *pieces: bytes, pause: float = 0.0, patience: float = 30.0) -> tuple[int, bytes]:
    """Status and body that come for these bytes; status 0 when the connection just ends."""
    with socket.create_connection(("127.0.0.1", port), patience) as client:
        answer = b""
        try:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(pause)
        except OSError:  # it hung up; an answer may have come before
            pass
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1 << 16):
                answer += piece
        return parsed(answer)


def parsed(answer: bytes) -> tuple[int, bytes]:
    if not answer.startswith(b"HTTP/"):  # none, or one to what is no HTTP
        return 0, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def head(verb: str, path: str, **headers: str) -> bytes:
    fields = {"Host": "127.0.0.1", "Connection": "close", **{name.replace("_", "-"): v for name, v in headers.items()}}
    lines = [f"{verb} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value != "-")]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def sane(body: bytes) -> None:
    """An answer has no traceback, no path of ours and no control character in it."""
    assert b"Traceback" not in body
    assert b'File "' not in body
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", body)


# ---- before a request is there: slow, long, many ----

HALF = {
    "nothing at all": [b""],
    "half a first line": [b"POST /v1/ch"],
    "half a header": [head("POST", "/write")[:-8]],
    "headers without their end": [head("POST", "/write")[:-2]],
    "a byte at a time": [bytes([one]) for one in head("GET", "/health") * 20],
    "header after header": [head("GET", "/health")[:-2], *([b"X: y\r\n"] * 400)],
    "half a body": [head("POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Content_Length="99") + b"{"],
    "a body byte by byte": [
        head("POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Content_Length="999"),
        *([b" "] * 400),
    ],
    "a chunk that never ends": [
        head("POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Transfer_Encoding="chunked") + b"ffff\r\n{"
    ],
}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """All times are short."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.5)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", HALF)
def test_who_is_slow_loses_the_connection(name: str, server: tuple[int, str]) -> None:
    pieces = [piece.replace(KEY.encode(), server[1].encode()) for piece in HALF[name]]
    began = time.monotonic()
    status, body = spoken(server[0], *pieces, pause=0.02)
    assert time.monotonic() - began < 12
    assert status in (0, 400, 401, 408, 411, 421)
    sane(body)


def test_a_slow_client_does_not_hold_up_another(server: tuple[int, str]) -> None:
    slow = [socket.create_connection(("127.0.0.1", server[0])) for _ in range(40)]
    for one in slow:
        one.sendall(b"GET /health HT")
    began = time.monotonic()
    assert spoken(server[0], head("GET", "/health", Authorization=f"Bearer {server[1]}"))[0] == 200
    assert time.monotonic() - began < 5
    for one in slow:
        one.close()


def test_a_thousand_connections_are_told_to_come_again_and_then_all_is_well(server: tuple[int, str]) -> None:
    health = head("GET", "/health", Authorization=f"Bearer {server[1]}")
    many = [socket.create_connection(("127.0.0.1", server[0])) for _ in range(400)]
    try:
        more = [socket.create_connection(("127.0.0.1", server[0])) for _ in range(200)]
        many += more
        refused = []
        for one in more[-20:]:
            one.settimeout(5)
            refused.append(one.recv(1 << 12))
        assert all(b" 503 " in answer and b"Retry-After" in answer for answer in refused)
    finally:
        for one in many:
            one.close()
    for _ in range(400):
        time.sleep(0.05)
        if spoken(server[0], health)[0] == 200:
            return
    raise AssertionError("the server never came back")


LONG = {
    "a long header": head("GET", "/health", X="a" * 40_000),
    "a very long header": head("GET", "/health", X="a" * 1_000_000),
    "many headers": head("GET", "/health", **{f"X{i}": "y" * 200 for i in range(90)}),
    "thousands of headers": head("GET", "/health", **{f"X{i}": "y" for i in range(5000)}),
    "a long path": head("GET", "/" + "a" * 60_000),
    "a long method": head("A" * 60_000, "/health"),
    "a long key": head("GET", "/health", Authorization="Bearer " + "k" * 30_000),
    "headers that never end": head("GET", "/health")[:-2] + b"X: y\r\n" * 100_000,
}


@pytest.mark.parametrize("name", LONG)
def test_long_heads_are_refused(name: str, server: tuple[int, str]) -> None:
    status, body = spoken(server[0], LONG[name])
    assert status in (0, 400, 405, 414, 421, 431, 501)
    assert len(body) < 1000
    sane(body)


# ---- who may ask ----

STRANGERS: dict[str, tuple[dict[str, str], int]] = {
    "no host": ({"Host": "-"}, 421),
    "a name that leads here": ({"Host": "evil.example"}, 421),
    "a name that leads here, with the port": ({"Host": "evil.example:8000"}, 421),
    "a name that begins like ours": ({"Host": "localhost.evil.example"}, 421),
    "a name that begins like our address": ({"Host": "127.0.0.1.evil.example"}, 421),
    "a name that ends like ours": ({"Host": "evil.localhost"}, 421),
    "a name with a user": ({"Host": "localhost@evil.example"}, 421),
    "another address": ({"Host": "10.1.2.3"}, 421),
    "every address": ({"Host": "0.0.0.0"}, 421),
    "an empty host": ({"Host": ""}, 421),
    "a page elsewhere": ({"Origin": "http://evil.example"}, 403),
    "a page of another port here": ({"Origin": "http://127.0.0.1:9"}, 403),
    "a page in a frame": ({"Origin": "null"}, 403),
    "a page on disk": ({"Origin": "file://"}, 403),
    "a page that begins like ours": ({"Origin": "http://127.0.0.1.evil.example"}, 403),
    "a page under another scheme": ({"Origin": "https://127.0.0.1"}, 403),
    "no key": ({"Authorization": "-"}, 401),
    "an empty key": ({"Authorization": "Bearer "}, 401),
    "half the key": ({"Authorization": "HALF"}, 401),
    "the key and more": ({"Authorization": "MORE"}, 401),
    "a key that is no text": ({"Authorization": "Bearer \xff\xfe"}, 401),
    "another way to sign in": ({"Authorization": "Basic YTpi"}, 401),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_refused_before_their_body_is_read(name: str, server: tuple[int, str]) -> None:
    headers, wanted = STRANGERS[name]
    key = server[1]
    given = {"Authorization": f"Bearer {key}", "Content_Length": "1000000", **headers}
    given["Authorization"] = {"HALF": f"Bearer {key[:9]}", "MORE": f"Bearer {key}x"}.get(
        given["Authorization"], given["Authorization"]
    )
    began = time.monotonic()
    status, body = spoken(server[0], head("POST", "/v1/chat/completions", **given))  # the body never comes
    assert status in (wanted, 400)
    assert key.encode() not in body
    assert time.monotonic() - began < 5
    sane(body)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:80"},
        {"Host": "[::1]:80"},
        {"Host": "friend.example:9"},
        {"Host": "127.0.0.1:5", "Origin": "http://127.0.0.1:5"},
        {"Origin": "https://friend.example"},
    ],
    ids=str,
)
def test_friends_are_answered(headers: dict[str, str], server: tuple[int, str]) -> None:
    asked = head("GET", "/health", Authorization=f"Bearer {server[1]}", **headers)
    assert spoken(server[0], asked)[0] == 200


def test_two_hosts_are_none(server: tuple[int, str]) -> None:
    asked = head("GET", "/health", Authorization=f"Bearer {server[1]}").replace(b"\r\n", b"\r\nHost: localhost\r\n", 1)
    assert spoken(server[0], asked)[0] in (400, 421)


# ---- bodies ----

LENGTHS = {
    "too large": {"Content_Length": str(1 << 40)},
    "negative": {"Content_Length": "-1"},
    "with an underscore": {"Content_Length": "1_0"},
    "with a sign": {"Content_Length": "+10"},
    "no number": {"Content_Length": "ten"},
    "a number without end": {"Content_Length": "9" * 5000},
    "two kinds of length": {"Content_Length": "10", "Transfer_Encoding": "chunked"},
    "an unknown kind of length": {"Transfer_Encoding": "gzip, chunked"},
}


@pytest.mark.parametrize("name", LENGTHS)
def test_wrong_lengths_are_refused_at_once(name: str, server: tuple[int, str]) -> None:
    asked = head("POST", "/v1/chat/completions", Authorization=f"Bearer {server[1]}", **LENGTHS[name])
    began = time.monotonic()
    status, body = spoken(server[0], asked)
    assert status in (400, 411, 413, 501)
    assert time.monotonic() - began < 5
    sane(body)


def test_chunks_without_end_are_cut(serve_port: int) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    asked = head("POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Transfer_Encoding="chunked")
    assert spoken(serve_port, asked, *([chunk] * 400))[0] in (0, 413)


def test_a_body_of_many_tiny_chunks_is_read_or_cut(serve_port: int) -> None:
    asked = head("POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Transfer_Encoding="chunked")
    assert spoken(serve_port, asked, b"1\r\n \r\n" * 20_000, b"0\r\n\r\n")[0] == 400


def test_a_compressed_body_is_not_unpacked(serve_port: int) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    asked = head(
        "POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Content_Encoding="gzip",
        Content_Length=str(len(bomb)),
    )  # fmt: skip
    assert spoken(serve_port, asked + bomb)[0] == 415


TEXTS: dict[str, dict[str, Any]] = {
    "token ids beyond the vocabulary": {"prompt": [1, 10**6]},
    "token ids below zero": {"prompt": [-1]},
    "token ids of 64 digits": {"prompt": [10**64]},
    "token ids of fractions": {"prompt": [1.5]},
    "token ids of booleans": {"prompt": [True, False]},
    "texts and ids in one list": {"prompt": ["a", 1]},
    "lists in lists in lists": {"prompt": [[[1]]]},
    "no prompt": {"prompt": []},
    "an empty prompt among others": {"prompt": ["a", ""]},
    "a million prompts": {"prompt": ["a"] * 1_000_000},
    "more prompts than the queue holds": {"prompt": ["a"] * 257},
    "a long list of ids": {"prompt": [1] * 1_000_000},
    "nothing to do": {"prompt": "a", "max_tokens": 0},
    "log-probs of everything": {"prompt": "a", "logprobs": 10**6},
    "a schema that is none": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "cat"}}}},
    "a schema of megabytes": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 200] * 10_000}}}
    },
    "a schema that asks for another server": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://elsewhere.example/s"}}}
    },
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_cannot_be_are_refused_in_a_sentence(name: str, serve_port: int) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 2, **TEXTS[name]}).encode()
    began = time.monotonic()
    status, answer = posted((serve_port, KEY), body, "/v1/completions")
    assert (status, len(answer) < 5000) == (400, True)
    assert time.monotonic() - began < 5
    sane(answer)
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


TOOLS = {
    "a name that a terminal obeys": {"tools": [{"type": "function", "function": {"name": ESCAPE}}]},
    "thousands of tools": {"tools": [{"type": "function", "function": {"name": "f"}}] * 5000},
    "arguments that are no JSON": {
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "[" * 9000}}]}
        ]
    },
    "a call without a tool": {"messages": [{"role": "tool", "tool_call_id": "x", "content": "a"}]},
    "a thought of the user": {"messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]},
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_that_cannot_be_are_refused_in_a_sentence(name: str, serve_port: int) -> None:
    status, answer = posted((serve_port, KEY), chat(**TOOLS[name]))
    assert (status, len(answer) < 5000) == (400, True)
    sane(answer)


def asked_by_a_page(port: int, origin: str, verb: str = "OPTIONS", **headers: str) -> tuple[int, dict[str, str]]:
    asked = head(verb, "/v1/chat/completions", Origin=origin, **headers)
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(asked)
        answer = client.makefile("rb").read().partition(b"\r\n\r\n")[0].decode("latin-1")
    lines = answer.split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), fields


def test_only_named_origins_may_read_in_a_browser_and_only_with_the_key(generator: LocalGenerator) -> None:
    with serving(generator, Access(KEY, origins=("https://app.example",))) as port:
        status, fields = asked_by_a_page(port, "https://app.example", Access_Control_Request_Method="POST")
        assert (status, fields["access-control-allow-origin"]) == (204, "https://app.example")
        assert "authorization" in fields["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in fields
        status, fields = asked_by_a_page(port, "https://app.example", "POST", Content_Length="0")
        assert (status, fields["access-control-allow-origin"]) == (401, "https://app.example")
        for origin in ("https://app.example.evil", "http://app.example", "https://app.example:8443", "null", "*"):
            status, fields = asked_by_a_page(port, origin)
            assert (status, "access-control-allow-origin" in fields) == (403, False)


@pytest.mark.parametrize(
    "origin", ["*", "app.example", "https://", "https://app.example/path", "https://me@app.example"]
)
def test_origins_that_are_none_are_refused_at_the_start(origin: str) -> None:
    with pytest.raises(AccessError, match="--allow-origin"):
        access("127.0.0.1", (), "", [origin])


def test_a_route_of_another_package_stands_behind_the_same_entrance(generator: LocalGenerator) -> None:
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def read(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body()), "models": list(request.app.state.models)})

    async def page(_request: Request) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/more", read, methods=["POST"]), Route("/page", page)]
    with serving(generator, Access(KEY), routes=routes, free=("/page",)) as port:
        key = {"Authorization": f"Bearer {KEY}"}
        assert spoken(port, head("GET", "/page"))[0] == 200
        assert spoken(port, head("GET", "/page", Host="evil.example"))[0] == 421
        assert spoken(port, head("GET", "/pages"))[0] == 401
        assert spoken(port, head("POST", "/more", Content_Length="2") + b"{}")[0] == 401
        status, body = spoken(port, head("POST", "/more", Content_Length="2", **key) + b"{}")
        assert (status, json.loads(body)) == (200, {"bytes": 2, "models": ["tiny"]})
        large = b"10000\r\n" + b" " * 65536 + b"\r\n"
        status, _ = spoken(port, head("POST", "/more", Transfer_Encoding="chunked", **key), *([large] * 300))
        assert status in (0, 413)


def posted(server: tuple[int, str], body: bytes, path: str = "") -> tuple[int, bytes]:
    port, key = server
    length = str(len(body))
    asked = head("POST", path or "/v1/chat/completions", Authorization=f"Bearer {key}", Content_Length=length)
    return spoken(port, asked + body)


def chat(**fields: Any) -> bytes:
    return json.dumps(CHAT | fields).encode()


BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "no text": b"\xff\xfe\xfd",
    "a list": b"[]",
    "null": b"null",
    "nothing": b"",
    "a hundred thousand lists": b"[" * 100_000,
    "a hundred thousand objects": b'{"a":' * 100_000,
    "two hundred lists": b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}",
    "lists five thousand deep": b'{"prompts": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a number of ten thousand digits": b'{"seed": ' + b"9" * 10_000 + b"}",
    "a huge seed": chat(seed=10**400),
    "a huge count of tokens": chat(max_tokens=10**400),
    "more tokens than there are": chat(max_tokens=1 << 62),
    "a huge n": chat(n=1 << 40),
    "a huge top_k": chat(top_k=1 << 70),
    "a thousand stops": chat(stop=["x"] * 1000),
    "a long stop": chat(stop="x" * 100_000),
    "a hundred thousand turns": chat(messages=[{"role": "user", "content": ""}] * 100_000),
    "a long prompt": chat(messages=[{"role": "user", "content": "x" * 5_000_000}]),
    "not a number": chat(temperature=float("nan")),
    "an infinite temperature": chat(temperature=float("inf")),
    "a temperature of 1e400": chat().replace(b'"temperature": 0', b'"temperature": 1e400'),
    "half a surrogate": chat(messages=[{"role": "user", "content": "\ud800"}]),
    "a field with a name that a terminal obeys": chat(**{ESCAPE: 1}),
    "a field with a long name": chat(**{"x" * 1_000_000: 1}),
    "a role that a terminal obeys": chat(messages=[{"role": ESCAPE, "content": ""}]),
    "a model that a terminal obeys": chat(model=ESCAPE),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_cannot_be_are_refused_in_a_sentence(name: str, server: tuple[int, str], capfd: Any) -> None:
    body = BODIES[name]
    began = time.monotonic()
    status, answer = posted(server, body)
    assert status in (400, 404, 413)
    assert len(answer) < 5000
    assert time.monotonic() - began < 5
    sane(answer)
    found = json.loads(answer)["error"]
    assert len(found if isinstance(found, str) else found["message"]) > 10
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "path",
    [
        "/", "//v1/models", "/v1/../health", "/v1/models/", "/v1/models%2f..", "/%2e%2e/%2e%2e/etc/passwd", "/docs",
        "/openapi.json", "http://evil.example/", "/\x7f\x1b[2J",
        "/?" + "a=b&" * 900,
    ],
    ids=repr,
)  # fmt: skip
def test_other_paths_lead_nowhere(path: str, server: tuple[int, str]) -> None:
    for verb in ("GET", "POST", "PUT", "DELETE", "TRACE", "CONNECT"):
        status, body = spoken(server[0], head(verb, path, Authorization=f"Bearer {server[1]}"))
        assert status in (0, 400, 404, 405, 411, 501)
        sane(body)


GARBAGE = {
    "zeros": bytes(1 << 16),
    "noise": os.urandom(1 << 16),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n",
    "a lone line feed": b"\n" * 10_000,
    "a folded header": head("GET", "/health").replace(b"\r\nConnection", b"\r\n Connection"),
    "a header without a colon": head("GET", "/health").replace(b"Connection: close", b"Connection"),
    "a zero in a header": head("GET", "/health", X="\0"),
    "websocket": head("GET", "/health", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Key="eA=="),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_request_is_no_trouble(name: str, server: tuple[int, str], capfd: Any) -> None:
    status, body = spoken(server[0], GARBAGE[name])
    assert status in (0, 200, 400, 401, 408, 421, 431, 501, 505)
    sane(body.partition(b"\r\n")[0])
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_resets_its_connection_is_no_trouble(server: tuple[int, str], capfd: Any) -> None:
    for piece in (
        b"",
        b"GET /",
        head("GET", "/health"),
        head("POST", "/v1/chat/completions", Content_Length="100") + b"{",
    ):
        with socket.create_connection(("127.0.0.1", server[0])) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(piece)
    assert spoken(server[0], head("GET", "/health", Authorization=f"Bearer {server[1]}"))[0] == 200
    assert "Traceback" not in capfd.readouterr().err


# ---- inside ----


def test_an_error_inside_is_told_by_number_and_its_rest_stands_in_the_log(
    generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError(f"secret {ESCAPE}")

    monkeypatch.setattr(Live, "turn", broken)
    with serving(generator, Access()) as port:
        status, body = posted((port, ""), chat())
    assert (status, b"secret" in body) == (500, False)
    sane(body)
    number = re.search(rb"error (\w{8})", body)
    assert number
    logged = next(record.getMessage() for record in caplog.records if number[1].decode() in record.getMessage())
    assert "RuntimeError: secret" in logged
    assert "\x1b" not in logged


def test_the_log_has_every_refusal_and_nothing_a_terminal_obeys(serve_port: int, log: Path) -> None:
    spoken(serve_port, head("GET", "/v1/models", Idempotency_Key="a\x1bb", Host="evil.example"))
    posted((serve_port, KEY), chat(model=ESCAPE))
    text = log.read_text()
    assert "evil" not in text
    assert "\x1b" not in text
    assert {421, 404} <= {json.loads(line)["status"] for line in text.splitlines()}


def test_a_queue_that_is_full_says_come_again(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    turn = Live.turn

    def waiting(self: Live, queue: Any) -> Any:
        if queue:
            gate.wait(30)
        return turn(self, queue)

    monkeypatch.setattr(Live, "turn", waiting)
    monkeypatch.setattr(batcher_module, "WAITING", 4)
    with serving(generator, Access()) as port, ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(posted, (port, ""), chat(seed=i)) for i in range(40)]
        end = time.monotonic() + 20
        while sum(one.done() for one in asked) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        gate.set()
        found = [one.result() for one in asked]
    statuses = {status for status, _ in found}
    assert statuses == {200, 429}
    assert json.loads(next(body for status, body in found if status == 429))["error"]["code"] == "queue_full"


def test_remembered_replies_are_bounded_in_bytes(generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_module, "KEPT_BYTES", 20)
    with serving(generator, Access()) as port:
        ids = []
        for key in ("a", "b", "c", "d", "a"):
            body = chat(max_tokens=16)
            asked = head("POST", "/v1/chat/completions", Content_Length=str(len(body)), Idempotency_Key=key)
            ids.append(json.loads(spoken(port, asked + body)[1])["id"])
    assert len(set(ids)) == 5  # the first was forgotten


def test_a_long_idempotency_key_is_refused(serve_port: int) -> None:
    body = chat()
    asked = head(
        "POST", "/v1/chat/completions", Authorization=f"Bearer {KEY}", Content_Length=str(len(body)),
        Idempotency_Key="k" * 9000,
    )  # fmt: skip
    assert spoken(serve_port, asked + body)[0] == 400


# ---- keys and uploads ----


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "a.example"])
def test_serve_without_a_key_listens_to_this_machine_only(
    host: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tercet.cli.main import main

    monkeypatch.delenv("TERCET_API_KEY", raising=False)
    assert main(["serve", "tiny:", "--host", host, "--port", "0", "--store", str(tmp_path / "runs")]) == 2
    assert "set a key in TERCET_API_KEY or --key-file FILE" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_key_files_that_others_can_read_or_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    path.parent.mkdir()
    path.write_text(f"{KEY}\n", encoding="ascii")
    path.chmod(0o600)
    assert read_key(path) == KEY
    for mode in (0o604, 0o640, 0o622, 0o777):
        path.chmod(mode)
        with pytest.raises(AccessError, match="so others can read the key"):
            read_key(path)
    link, empty, folder = tmp_path / "link", tmp_path / "empty", tmp_path / "dir"
    path.chmod(0o600)
    link.symlink_to(path)
    empty.touch(0o600)
    folder.mkdir(0o700)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "long").write_bytes(b"a" * 10_000)
    (tmp_path / "odd").write_bytes(b"\xff\x1b[2J")
    for name in ("long", "odd"):
        (tmp_path / name).chmod(0o600)
    for wrong in (link, empty, folder, tmp_path / "pipe", tmp_path / "long", tmp_path / "odd", tmp_path / "none"):
        with pytest.raises(AccessError):
            read_key(wrong)
