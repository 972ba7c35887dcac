"""An answer that must be JSON is JSON, whatever the model would like to write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models.serving import joined, post, said, serving, streamed

from tercet.models.generate import LocalGenerator
from tercet.models.openai import grammar
from tercet.models.openai.served import ServedModel

CARD = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
CHAT = "/chat/completions"


def promised(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "card", "schema": schema, "strict": True}}


@pytest.fixture(scope="module")
def generator(sharp_folder: Path) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32", rows=16)


@pytest.fixture(scope="module")
def url(generator: LocalGenerator) -> Iterator[str]:
    pytest.importorskip("llguidance")
    with serving([ServedModel.of(generator, "tiny")]) as (found, _):
        yield found


def test_a_schema_is_kept_by_every_sample_beside_others_that_are_free(url: str) -> None:
    body = said("Any card", temperature=1.0, n=6, seed=3, max_tokens=64, response_format=promised(CARD))
    _, reply = post(url, CHAT, body)
    cards = [json.loads(choice["message"]["content"]) for choice in reply["choices"]]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"stop"}
    assert all(card["colour"] in ("red", "blue") and 0 <= card["count"] <= 99 for card in cards)
    assert len({json.dumps(card) for card in cards}) > 1
    assert joined(streamed(url, CHAT, body), 2)["text"] == reply["choices"][2]["message"]["content"]


def test_an_object_is_begun_and_whole_where_it_ends(url: str) -> None:
    for seed in range(3):
        body = said("An object", temperature=1.0, seed=seed, max_tokens=120, response_format={"type": "json_object"})
        (choice,) = post(url, CHAT, body)[1]["choices"]
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_log_probs_are_the_models_own_also_where_tokens_are_struck_out(url: str, generator: LocalGenerator) -> None:
    more = {"logprobs": True, "return_token_ids": True, "response_format": promised(CARD)}
    (choice,) = post(url, CHAT, said("Any card", temperature=0, max_tokens=20, **more))[1]["choices"]
    expected = generator.logps(choice["prompt_token_ids"], choice["token_ids"])
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "schema", [{"type": "cat"}, {"$ref": "http://elsewhere/x"}, {"enum": ["x" * 70_000]}], ids=["type", "ref", "long"]
)
def test_a_schema_that_cannot_be_promised_is_refused(url: str, schema: dict[str, Any]) -> None:
    status, reply = post(url, CHAT, said("a", response_format=promised(schema)))
    assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, "response_format", "unsupported_value")


def test_without_the_package_json_is_refused_and_text_is_not(
    generator: LocalGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "find_spec", lambda _name: None)
    with serving([ServedModel.of(generator, "tiny")]) as (url, _):
        status, reply = post(url, CHAT, said("a", response_format={"type": "json_object"}))
        assert (status, reply["error"]["param"]) == (400, "response_format")
        assert "pip install 'tercet[json]'" in reply["error"]["message"]
        assert post(url, CHAT, said("a", response_format={"type": "text"}))[0] == 200
