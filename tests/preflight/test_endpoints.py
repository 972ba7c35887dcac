"""A server that a recipe names must answer and have the model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tercet.preflight.endpoints import reached
from tercet.preflight.facts import Facts
from tercet.recipe import Recipe


class Models(BaseHTTPRequestHandler):
    """Lists one model to those who have the key; below /odd it talks of something else."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer right"
        body = b"hello" if self.path.startswith("/odd") else json.dumps({"data": [{"id": "one"}]}).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("TERCET_API_KEY", "right")
    made = HTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def asked(model: str, *, offline: bool = False) -> list[tuple[str, str]]:
    stage = {"server": {"kind": "model", "model": model}}
    recipe = Recipe.model_validate({"name": "r", "base": {"model": "tiny:"}, "stage": stage})
    return [(one.state, one.what) for one in reached(Facts(recipe, {}, {}), ["server"], offline=offline)]


def test_a_server_that_has_the_model_is_well(server):
    assert asked(f"{server}/v1#one") == [("ok", f"{server}/v1 answers and has one")]


def test_a_server_without_the_model_the_key_or_a_life_is_found(server, monkeypatch):
    ((state, what),) = asked(f"{server}/v1#two")
    assert (state, what) == ("cannot work", f"{server}/v1 answers, and has no model 'two': one")
    ((state, what),) = asked(f"{server}/odd#one")
    assert (state, "does not list its models" in what) == ("warning", True)
    monkeypatch.setenv("TERCET_API_KEY", "wrong")
    ((state, what),) = asked(f"{server}/v1#one")
    assert (state, "wants another key (HTTP 401)" in what) == ("cannot work", True)
    ((state, what),) = asked("http://127.0.0.1:1/v1#one")
    assert (state, "does not answer (ConnectError" in what) == ("cannot work", True)


def test_nothing_is_asked_where_the_network_is_forbidden_or_not_needed():
    ((state, what),) = asked("http://127.0.0.1:1/v1#one", offline=True)
    assert (state, what) == ("not tried", "--offline: http://127.0.0.1:1/v1#one")
    assert asked("tiny:") == [("ok", "nothing is fetched or asked over the network")]
