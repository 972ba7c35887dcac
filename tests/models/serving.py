"""A server over models in a thread, and what tests ask it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2

from tercet.models.openai.serve import Settings, app, web_server
from tercet.models.openai.served import ServedModel


@contextmanager
def serving(models: Sequence[ServedModel], routes: Sequence[Any] = (), **settings: Any) -> Iterator[tuple[str, Any]]:
    """The URL of a running server, and its application."""
    web = app(models, Settings(**settings), routes)
    server = web_server(web)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", web
        finally:
            server.should_exit = True
            thread.join()
            web.state.batcher.close()


def post(url: str, path: str, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a reply."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx2.post(f"{url}{path}", content=content, headers=headers, timeout=60)
    return response.status_code, response.json()


def said(text: str, **fields: Any) -> dict[str, Any]:
    """A chat of one turn."""
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


def streamed(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream, which must end as the protocol has it."""
    with httpx2.stream("POST", f"{url}{path}", json=body | {"stream": True}, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def joined(chunks: Sequence[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a client puts together of the pieces of one choice."""
    parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    deltas = [part["delta"] if "delta" in part else {"content": part["text"]} for part in parts]
    tables = [part["logprobs"] for part in parts if part["logprobs"]]
    merged: dict[str, list[Any]] = {}
    for table in tables:
        for name, values in table.items():
            merged.setdefault(name, []).extend(values)
    return {
        "text": "".join(delta.get("content") or "" for delta in deltas),
        "logprobs": merged or None,
        "finish_reason": parts[-1]["finish_reason"],
        "token_ids": [token for part in parts for token in part.get("token_ids", ())],
        "prompt_token_ids": parts[0].get("prompt_token_ids"),
    }
