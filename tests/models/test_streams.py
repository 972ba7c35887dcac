"""What comes in pieces is what would have come whole: texts, log-probs, tokens, usage, and errors at any time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.models.serving import joined, post, said, serving, streamed

from tercet.models.backbone import backbone
from tercet.models.generate import LocalGenerator
from tercet.models.openai.jobs import GenerationJob, Ticket, Written
from tercet.models.openai.protocol import checked, request
from tercet.models.openai.served import ServedModel
from tercet.models.openai.streams import Stream
from tercet.rows import Sampling

CHAT, TEXT = "/chat/completions", "/completions"


@pytest.fixture(scope="module")
def generator(sharp_folder: Path) -> LocalGenerator:
    found = LocalGenerator.open(sharp_folder, "float32", rows=16)
    found.policy.key_shapes()  # which takes a pass of its own the first time
    return found


@pytest.fixture(scope="module")
def url(generator: LocalGenerator) -> Iterator[str]:
    with serving([ServedModel.of(generator, "tiny")]) as (found, _):
        yield found


CHATS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 24},
    "drawn": {"temperature": 1.0, "seed": 3, "max_tokens": 24},
    "several": {"temperature": 1.0, "seed": 3, "n": 3, "max_tokens": 12},
    "with a stop string": {"temperature": 1.0, "seed": 3, "max_tokens": 24, "stop": ["e", "th"]},
    "with log-probs": {"temperature": 0.7, "seed": 1, "logprobs": True, "top_logprobs": 3},
    "with token ids": {"temperature": 0.7, "seed": 1, "return_token_ids": True, "logprobs": True},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_in_pieces_is_the_chat_whole(url: str, name: str) -> None:
    body = said("Tell me a thing, é 北", **CHATS[name])
    chunks = streamed(url, CHAT, body)
    _, whole = post(url, CHAT, body)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for choice in whole["choices"]:
        found = joined(chunks, choice["index"])
        assert found["text"] == choice["message"]["content"]
        assert found["finish_reason"] == choice["finish_reason"]
        assert found["logprobs"] == choice["logprobs"]
        assert found["token_ids"] == choice.get("token_ids", [])
        assert found["prompt_token_ids"] == choice.get("prompt_token_ids")


TEXTS: dict[str, dict[str, Any]] = {
    "greedy": {"prompt": "Once upon", "temperature": 0},
    "with log-probs": {"prompt": "Once é", "temperature": 1.0, "seed": 4, "logprobs": 2},
    "echoed": {"prompt": "Once é", "temperature": 0, "logprobs": 2, "echo": True},
    "only echoed": {"prompt": "Once é", "temperature": 0, "logprobs": 2, "echo": True, "max_tokens": 0},
    "two prompts": {"prompt": ["Once", "Twice"], "temperature": 1.0, "seed": 2, "n": 2},
    "token ids": {"prompt": [[70, 80, 90]], "temperature": 0},
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_in_pieces_is_the_text_whole(url: str, name: str) -> None:
    body = {"model": "tiny", "max_tokens": 9, **TEXTS[name]}
    chunks = streamed(url, TEXT, body)
    _, whole = post(url, TEXT, body)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for choice in whole["choices"]:
        found = joined(chunks, choice["index"])
        assert (found["text"], found["finish_reason"]) == (choice["text"], choice["finish_reason"])
        for table in filter(None, (found["logprobs"], choice["logprobs"])):
            del table["text_offset"]  # a broken character has its place only once it is known to be broken
        assert found["logprobs"] == choice["logprobs"]


def test_usage_comes_last_where_it_is_asked(url: str) -> None:
    body = said("a", temperature=0)
    *chunks, last = streamed(url, CHAT, body | {"stream_options": {"include_usage": True}})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], post(url, CHAT, body)[1]["usage"])
    assert all("usage" not in chunk for chunk in streamed(url, CHAT, body))


def test_tokens_come_one_by_one(generator: LocalGenerator) -> None:
    gate = threading.Semaphore(0)
    hook = backbone(generator.policy.model).register_forward_pre_hook(lambda *_: gate.acquire() and None)
    try:
        with serving([ServedModel.of(generator, "tiny")]) as (url, _):
            body = said("a", temperature=0, stream=True, return_token_ids=True, max_tokens=4)
            with httpx2.stream("POST", f"{url}{CHAT}", json=body, timeout=60) as response:
                lines = (line for line in response.iter_lines() if "token_ids" in line)
                assert "prompt_token_ids" in next(lines)
                for _ in range(4):
                    gate.release()
                    assert len(json.loads(next(lines).removeprefix("data: "))["choices"][0]["token_ids"]) == 1
    finally:
        hook.remove()


def test_an_error_in_a_running_stream_is_told_in_it(generator: LocalGenerator) -> None:
    passes = iter([True, True])

    def fail(*_: Any) -> None:
        if not next(passes, False):
            raise RuntimeError("broken")

    hook = backbone(generator.policy.model).register_forward_pre_hook(fail)
    try:
        with (
            serving([ServedModel.of(generator, "tiny")]) as (url, _),
            httpx2.stream("POST", f"{url}{CHAT}", json=said("a", stream=True), timeout=60) as response,
        ):
            lines = [line for line in response.iter_lines() if line]
    finally:
        hook.remove()
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "[DONE]" not in lines[-1]


def test_who_waits_is_told_the_place_in_the_queue(generator: LocalGenerator) -> None:
    gate = threading.Event()
    hook = backbone(generator.policy.model).register_forward_pre_hook(lambda *_: gate.wait(30) and None)
    try:
        with serving([ServedModel.of(generator, "tiny")], rows=1) as (url, web), ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, url, CHAT, said("a"))
            while not web.state.batcher.load["writing"] and web.state.batcher.load["waiting"]:
                pass
            with httpx2.stream("POST", f"{url}{CHAT}", json=said("b", stream=True), timeout=60) as response:
                assert response.headers["x-queue-position"] in ("1", "2")
                lines = response.iter_lines()
                assert next(lines).startswith(": queue ")
                assert httpx2.get(f"{url.removesuffix('/v1')}/health").json()["waiting"] >= 1
                gate.set()
                assert "[DONE]" in list(filter(None, lines))[-1]
            first.result(30)
    finally:
        gate.set()
        hook.remove()


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("plain words end here", ()),
        ("half of é and 北京 and 🎈", ()),
        ("stop words: STOPPED and STOP", ("STOP.",)),
        ("stop words: STOPPED", ("PED",)),
        ("<think>first \n\n</think>then", ()),
    ],
)
def test_no_piece_is_taken_back(generator: LocalGenerator, text: str, stop: tuple[str, ...]) -> None:
    model = ServedModel.of(generator, "tiny")
    asked = checked("/v1/chat/completions", said("a", stream=True, stop=list(stop)))
    ids = generator.chat.tokenizer.encode(text, add_special_tokens=False)
    ticket = Ticket(GenerationJob([1], Sampling(len(ids), stop=stop)))
    row = ticket.rows[0] = Written(0, 0, len(ids), 1, ticket=ticket)
    stream = Stream(request(asked, model), [ticket], {}, asyncio.Event())
    (choice,) = stream._choices
    found = ""
    for token in ids:
        row.token_ids.append(token)
        found += "".join(piece["delta"].get("content", "") for piece in choice.pieces())
        assert generator.chat.completion(row.token_ids, (), stop).text.startswith(found)
    whole = generator.chat.completion(ids, (), stop)
    ticket.finish(0, whole)
    found += "".join(piece["delta"].get("content", "") for piece in choice.pieces())
    assert found == whole.text
