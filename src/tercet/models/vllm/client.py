"""The client of an engine in another process: write, update and checksum over plain HTTP.

The other side is `server.py`. Prompts and completions travel as token ids in JSON, weights as safetensors in parts. A
reply is JSON lines: an empty line while the engine works, one line for each prompt that is finished, last `{"end": …}`
or `{"error": …}`; so a client knows a server that was killed from one that works, and never waits for ever.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from tercet.models.access import AccessError, engine_key_file, read_key
from tercet.models.vllm.weights import EngineError, Weights, checksum
from tercet.outside import USERINFO, has_userinfo
from tercet.rows import Completion, Completions, Done, Sampling

Ids = Sequence[int]
Line = dict[str, Any]  # of a reply
PART = 256 << 20  # bytes of weights in one request
BEAT = 5.0  # seconds after which a server without a result sends an empty line
MOST_LINE = 256 << 20  # bytes of one line of a reply, or of a reply that is no lines
SILENCE = 60.0  # seconds without a line after which it counts as dead
BROKEN = "it broke off in the middle of an answer"
ENGINE_HEADER = "X-Engine"  # header: which start of the server is meant


class RemoteEngine:
    """An engine behind a URL, with the methods of `VllmGenerator` that training needs. Any thread may call them."""

    def __init__(self, url: str, client: httpx2.Client, about: Mapping[str, Any]) -> None:
        """`open` makes one; `about` is the server's reply about itself."""
        self.url, self._client = url, client
        self.dtype, self._engine = str(about["dtype"]), str(about["engine"])

    @classmethod
    def open(cls, url: str, *, key_file: Path | None = None, patience: float = 0.0) -> RemoteEngine:
        """Find the server at `http://HOST:PORT`; one that is still loading is waited for, `patience` seconds.

        Its key is read from `key_file`, or from where `tercet engine` on this machine puts it.
        """
        url = url.rstrip("/")
        if has_userinfo(url):
            raise EngineError(f"engine_url: {USERINFO}")
        try:
            key = _Key(key_file or engine_key_file(url))
            client = httpx2.Client(
                base_url=url,
                auth=key,
                timeout=httpx2.Timeout(SILENCE, connect=10.0),
                headers={"Accept-Encoding": "identity"},
                event_hooks={"response": [_refuse_packed]},
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise EngineError(f"{url}: {error}; expected the engine server's address, http://HOST:PORT") from None
        end = time.monotonic() + patience
        while True:
            try:
                return cls(url, client, _about(url, client))
            except EngineError as error:
                if not isinstance(error.__cause__, httpx2.ConnectError | AccessError) or time.monotonic() >= end:
                    client.close()
                    raise
            time.sleep(0.5)

    @property
    def version(self) -> int:
        """How many updates the engine has seen."""
        return int(_about(self.url, self._client)["version"])

    def write(
        self, prompts: Sequence[Ids], sampling: Sampling, done: Done | None = None, streams: Sequence[int] | None = None
    ) -> Completions:
        """What the server's engine writes; see `VllmGenerator.write`."""
        results: Completions = [[] for _ in prompts]

        def finished(line: Line) -> None:
            try:
                i = range(len(results)).index(line["prompt"])
                results[i] = [completion(one) for one in line["written"]]
            except (KeyError, TypeError, ValueError) as error:
                raise EngineError(_lost(self.url, f"a reply of another shape, {error!r:.80}")) from None
            if done is not None:
                done(i, results[i])

        ids = [list(prompt) for prompt in prompts]
        names = None if streams is None else list(streams)
        self._ask("write", {"prompts": ids, "sampling": asdict(sampling), "streams": names}, finished)
        if not all(results):
            raise EngineError(_lost(self.url, f"{results.count([])} of {len(results)} prompts have no answer"))
        return results

    def update(self, weights: Weights, *, in_flight: bool = False) -> str:
        """Send all weights in the engine's dtype and replace its own; the checksum. See `VllmGenerator.update`.

        The server keeps what has come in its memory until everything is there, and then replaces all at once.
        """
        name, parts = secrets.token_hex(8), 0
        for part in packed(weights, self.dtype, PART):
            with _connected(self.url):
                _checked(self.url, self._client.put(f"/weights/{name}/{parts}", content=part))
            parts += 1
        end = self._ask("update", {"update": name, "parts": parts, "in_flight": in_flight}, mine=False)
        self._engine = end["engine"]  # a server that was started again now holds the right weights
        return str(end["checksum"])

    def checksum(self, weights: Weights | None = None) -> str:
        """`checksum` of the engine's own weights, or of others cast to the engine's dtype."""
        if weights is not None:
            return checksum(weights, self.dtype)
        return str(self._ask("checksum", {})["checksum"])

    def close(self) -> None:
        """Close the connection; the server goes on."""
        self._client.close()

    def _ask(
        self, verb: str, body: Mapping[str, Any], finished: Callable[[Line], None] | None = None, *, mine: bool = True
    ) -> dict[str, Any]:
        """Send a request, pass its lines to `finished`, and return what is in the last one."""
        headers = {ENGINE_HEADER: self._engine} if mine else {}
        with _connected(self.url), self._client.stream("POST", f"/{verb}", json=body, headers=headers) as reply:
            if reply.status_code != 200:
                reply.read()
                _checked(self.url, reply)
            for text in _lines(reply):
                line = _line(self.url, text)
                if "error" in line:
                    raise EngineError(f"{self.url}: {line['error']}")
                if "end" in line:
                    return dict(line["end"])
                if line and finished:
                    finished(line)
        raise EngineError(_lost(self.url, BROKEN))


class _Key(httpx2.Auth):
    """Sends the key with every request. It is read each time: a server that is started again has a new one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Put the key into the request."""
        request.headers["Authorization"] = f"Bearer {read_key(self.path)}"
        yield request


def packed(weights: Weights, dtype: str, limit: int) -> Iterator[bytes]:
    """Weights in `dtype` as safetensors of about `limit` bytes; a larger matrix is cut into rows, `FIRST_ROW NAME`."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights:
        row = max(1, weight[:1].numel()) * getattr(torch, dtype).itemsize
        rows = max(1, limit // row)
        for start in range(0, len(weight), rows):
            piece = weight.detach()[start : start + rows]
            if part and size + len(piece) * row > limit:
                yield write_tensors(part)
                part, size = {}, 0
            part[f"{start} {name}"] = piece.to("cpu", getattr(torch, dtype), copy=True).contiguous()
            size += len(piece) * row
    yield write_tensors(part)


def unpacked(parts: Iterator[bytes] | Sequence[bytes]) -> dict[str, Tensor]:
    """The weights that `packed` packed."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for part in parts:
        for key, piece in read_tensors(part).items():
            start, _, name = key.partition(" ")
            pieces.setdefault(name, {})[int(start)] = piece
    return {
        name: torch.cat([found[start] for start in sorted(found)]) if len(found) > 1 else found[0]
        for name, found in pieces.items()
    }


def completion(body: Mapping[str, Any]) -> Completion:
    """The completion of a reply."""
    return Completion(**{**body, "token_ids": tuple(body["token_ids"]), "logps": tuple(body["logps"])})


def _refuse_packed(reply: httpx2.Response) -> None:
    """A packed reply was not asked for, and has no limit before it is unpacked."""
    if packing := reply.headers.get("Content-Encoding", ""):
        raise httpx2.RemoteProtocolError(f"a reply packed as {packing!r:.40}")


def _lines(reply: httpx2.Response) -> Iterator[bytes]:
    """The lines of a reply, none of them longer than its limit."""
    parts: list[bytes] = []
    size = 0
    for piece in reply.iter_raw():
        size += len(piece)
        parts.append(piece)
        if b"\n" in piece:
            *whole, rest = b"".join(parts).split(b"\n")
            yield from whole
            parts, size = [rest], len(rest)
        elif size > MOST_LINE:
            raise httpx2.RemoteProtocolError(f"a line of more than {MOST_LINE:,} bytes")
    yield b"".join(parts)


def _line(url: str, text: bytes) -> Line:
    try:
        return dict(json.loads(text.strip() or b"{}"))
    except (ValueError, TypeError, RecursionError):
        raise EngineError(_lost(url, BROKEN)) from None


def _about(url: str, client: httpx2.Client) -> dict[str, Any]:
    with _connected(url):
        reply = client.get("/health")
    found: dict[str, Any] = _checked(url, reply)
    if not isinstance(found, dict) or not {"engine", "dtype", "version"} <= found.keys():
        raise EngineError(f"{url}: something else than an engine server answers there; check the URL")
    return found


def _checked(url: str, reply: httpx2.Response) -> Any:
    try:
        body = reply.json()
    except ValueError:
        body = {}
    if reply.status_code != 200:
        error = body.get("error") if isinstance(body, dict) else ""
        raise EngineError(f"{url}: {error or f'answers with HTTP {reply.status_code}; is it an engine server?'}")
    return body


@contextmanager
def _connected(url: str) -> Iterator[None]:
    """Turn a lost connection into one error that says what to do."""
    try:
        yield
    except httpx2.TransportError as error:
        raise EngineError(_lost(url, f"{type(error).__name__}: {error}")) from error
    except AccessError as error:
        elsewhere = "that of a server on another machine is copied here and named in placement.engine_key_file"
        raise EngineError(_lost(url, f"{error}; {elsewhere}")) from error


def _lost(url: str, why: str) -> str:
    return (
        f"{url}: the engine server does not answer ({why}). It was killed, ran out of memory or never ran: see its "
        "log, start it again with `tercet engine MODEL --port PORT`, and run the same command again: a run goes on "
        "from its last checkpoint"
    )
