"""Servers elsewhere as columns: our server asks them, so that the page talks to nobody but its own server.

Only the servers that were named at the start can be asked, only for answers, and what they send has limits.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from tercet.play.columns import Column

if TYPE_CHECKING:
    import httpx2
    from fastapi import Response

PATHS = ("chat/completions", "completions")
SECONDS = 600.0  # for a whole answer
QUIET_SECONDS = 120.0  # without a byte
MOST_BYTES = 32 << 20  # of an answer
MOST_REFUSAL = 1 << 16
OWN = ("return_token_ids", "continue_final_message", "add_generation_prompt", "top_k")  # what only vLLM and we know


class RemoteServer:
    """One server elsewhere. `key` is sent to it and to nobody else."""

    def __init__(self, column: Column, key: str = "") -> None:
        self.column, self._key = column, key

    async def answer(self, path: str, body: dict[str, Any]) -> Response:
        """The server's own reply to a request of the page, as it comes."""
        from fastapi.responses import JSONResponse, Response, StreamingResponse

        client, response = await self._send(path, body)
        if response is None or response.status_code != 200:
            text = "the server cannot be reached" if response is None else await _refusal(response)
            status = 502 if response is None or response.status_code >= 500 else response.status_code
            await client.aclose()
            return JSONResponse({"error": {"message": f"{self.column.name}: {text}", "type": "server_error"}}, status)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            data = b"".join([piece async for piece in _limited(client, response)])
            return Response(data, 200, media_type="application/json")
        return StreamingResponse(_limited(client, response), 200, media_type="text/event-stream")

    async def _send(self, path: str, body: dict[str, Any]) -> tuple[httpx2.AsyncClient, httpx2.Response | None]:
        import httpx2

        asked = {name: value for name, value in body.items() if name not in OWN} | {"model": self.column.model}
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client = httpx2.AsyncClient(timeout=httpx2.Timeout(QUIET_SECONDS, connect=10.0), headers=headers)
        request = client.build_request("POST", f"{self.column.remote.rstrip('/')}/{path}", json=asked)
        try:
            return client, await client.send(request, stream=True)
        except httpx2.HTTPError:
            return client, None


async def _limited(client: httpx2.AsyncClient, response: httpx2.Response) -> AsyncIterator[bytes]:
    """The pieces of an answer; it is cut where it is too long, and ends when the page hangs up."""
    import asyncio

    taken = 0
    try:
        async with asyncio.timeout(SECONDS):
            async for piece in response.aiter_bytes():
                taken += len(piece)
                if taken > MOST_BYTES:
                    return
                yield piece
    except (TimeoutError, OSError):
        return
    finally:
        await response.aclose()
        await client.aclose()


async def _refusal(response: httpx2.Response) -> str:
    """What a server says of a request that it does not take."""
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MOST_REFUSAL:
            break
    await response.aclose()
    try:
        return str(json.loads(data)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"answered with status {response.status_code}"
