"""The page on a running server: its routes stand behind the entrance, and servers elsewhere answer through it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from serving import joined, said, serving, streamed
from tercet.models.access import Access
from tercet.models.generate import LocalGenerator
from tercet.models.openai.served import ServedModel
from tercet.play import columns
from tercet.play.routes import free, routes
from tercet.play.servers import RemoteServer

Page = Callable[..., Any]


@pytest.fixture(scope="module")
def generator(sharp_folder: Path) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32", rows=16)


@pytest.fixture
def model(generator: LocalGenerator) -> list[ServedModel]:
    return [ServedModel.of(generator, "sft")]


@pytest.fixture
def elsewhere(model: list[ServedModel]) -> Iterator[str]:
    with serving(model, access=Access("its-own-key")) as (url, _):
        yield url


def asked_of(text: str, **fields: Any) -> dict[str, Any]:
    return said(text, **{"model": "sft", "max_tokens": 12, "temperature": 0, **fields})


def answer(url: str, body: dict[str, Any]) -> str:
    """The text of a stream that ends as it should."""
    found = joined(streamed(url, "/chat/completions", body))
    assert found["finish_reason"] in ("stop", "length")
    return str(found["text"])


def test_the_page_is_free_of_the_key_and_what_it_asks_is_not(model, playground):
    with serving(model, routes(playground), access=Access("secret"), free=free()) as (url, _):
        root = url.removesuffix("/v1")
        assert httpx2.get(f"{root}/").status_code == 200
        assert httpx2.get(f"{root}/play/main.js").status_code == 200
        assert httpx2.get(f"{root}/play/config").status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx2.get(f"{root}/play/config", headers=key).status_code == 200
        assert httpx2.get(f"{root}/", headers={"Host": "evil.example"}).status_code == 421
        assert (
            httpx2.post(f"{root}/play/keep", json={}, headers=key | {"Origin": "http://evil.example"}).status_code
            == 403
        )


def test_a_server_elsewhere_answers_through_ours_and_its_key_stays_here(model, playground, elsewhere):
    column = columns.server("other", elsewhere, "sft", 0)
    page = replace(playground, servers=[RemoteServer(column, "its-own-key")])
    with serving(model, routes(page)) as (url, _):
        remote = f"{url.removesuffix('/v1')}/play/servers/0"
        body = asked_of("Tell me about the sea.", return_token_ids=True, top_k=0)
        assert answer(remote, body) == answer(url, body) != ""
        found = httpx2.post(f"{remote}/chat/completions", json={**body, "model": "anything"}, timeout=60)
        assert found.json()["model"] == "sft"
        refused = httpx2.post(f"{remote}/chat/completions", json=asked_of("x", temperature=9))
        assert refused.status_code == 400
        assert "temperature" in refused.json()["error"]["message"]
        assert "its-own-key" not in httpx2.get(f"{url.removesuffix('/v1')}/play/config").text


def test_a_server_that_is_gone_or_refuses_the_key_is_said(model, playground, elsewhere):
    gone = columns.server("gone", "http://127.0.0.1:9/v1", "m", 0)
    wrong = columns.server("wrong", elsewhere, "sft", 1)
    page = replace(playground, servers=[RemoteServer(gone), RemoteServer(wrong, "another")])
    with serving(model, routes(page)) as (url, _):
        root = url.removesuffix("/v1")
        found = [httpx2.post(f"{root}/play/servers/{i}/chat/completions", json=asked_of("x")) for i in (0, 1)]
        assert [one.status_code for one in found] == [502, 401]
        assert "cannot be reached" in found[0].json()["error"]["message"]
        assert httpx2.post(f"{root}/play/servers/2/chat/completions", json=asked_of("x")).status_code == 404


def test_twenty_visitors_at_once_lose_nothing(model, playground):
    with serving(model, routes(playground)) as (url, _), ThreadPoolExecutor(20) as pool:
        asked = [asked_of(f"Tell me about {i} things.", seed=i) for i in range(20)]
        together = list(pool.map(lambda body: answer(url, body), asked))
        assert together[:4] == [answer(url, body) for body in asked[:4]]
