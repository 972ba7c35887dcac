"""Files of public repositories: each is downloaded once, whole and within limits, and then read from a cache.

A file of the Hub (`hf:OWNER/NAME/FILE`) is fetched by huggingface_hub into its cache, a file of GitHub at a pinned
commit (`github:OWNER/NAME/FILE`) by ourselves into Tercet's. Both are compared with their digests when they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.request
from dataclasses import asdict
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from tercet.journal import intact, replacing, stamp
from tercet.rows import RowError, Source

TIMEOUT, DEADLINE = 60.0, 3600.0  # seconds without a byte, and for one file
MOST_BYTES = 16 << 30  # of a download
GITHUB = "https://raw.githubusercontent.com/{name}/{revision}/{file}"
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where downloads are kept: `TERCET_CACHE`, else `~/.cache/tercet`."""
    return Path(os.environ.get("TERCET_CACHE") or Path.home() / ".cache" / "tercet").expanduser()


def download(source: Source) -> Path:
    """The file that a source names, from a cache when it is there; RowError where it cannot be had."""
    where, _, path = source.path.replace("{subset}", source.subset).replace("{split}", source.split).partition(":")
    owner, name, *inside = parts = path.split("/") if path.count("/") > 1 else [""] * 3
    if {"", ".", ".."} & {*parts} or (where == "github" and not source.revision):
        raise RowError(f"{source.path}: expected github:OWNER/NAME/FILE and a pinned revision, or hf:OWNER/NAME/FILE")
    fetch = _from_hub if where == "hf" else _from_github
    try:
        return fetch(source, f"{owner}/{name}", "/".join(inside))
    except (OSError, HTTPException) as error:
        at = f" at revision {source.revision}" if source.revision else ""
        raise RowError(
            f"{where}:{path}{at}: could not be read ({error}); without the network, name a local file for "
            f"{source.path!r} in the mirror"
        ) from error


def _from_hub(source: Source, name: str, file: str) -> Path:
    from tercet.hub import hub_file  # imports huggingface_hub, which takes its time

    return hub_file.fetch(name, file, source.revision or "main", most=MOST_BYTES, seconds=DEADLINE)


def _from_github(source: Source, name: str, file: str) -> Path:
    address = GITHUB.format(name=quote(name), revision=quote(source.revision), file=quote(file))
    kept = hashlib.sha256(json.dumps(asdict(source)).encode()).hexdigest()[:16]
    found = cache_folder() / "files" / kept / file.rpartition("/")[2]
    if not intact(found):
        found.parent.mkdir(parents=True, exist_ok=True)
        with (
            _OPENER.open(address, timeout=TIMEOUT) as answer,
            replacing(found) as partial,
            open(partial, "wb") as kept_as,
        ):
            _copy(answer, kept_as)
        stamp(found)
    return found


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, save from https to anything else."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *rest)
        if following is not None and req.type == "https" != following.type:
            raise OSError(f"redirected from https to {following.type}")
        return following


_OPENER = urllib.request.build_opener(_Redirects)


def _copy(answer: HTTPResponse, kept: IO[bytes]) -> None:
    """All of an answer within the limits of size and time; an OSError where it is cut short."""
    started, size, announced = time.monotonic(), 0, answer.headers.get("Content-Length", "")
    while chunk := answer.read1(_CHUNK):
        size += len(chunk)
        if size > MOST_BYTES:
            raise OSError(f"larger than {MOST_BYTES >> 30} GiB")
        if time.monotonic() - started > DEADLINE:
            raise OSError(f"not complete after {DEADLINE:,.0f} seconds")
        kept.write(chunk)
    if announced.isdecimal() and size < int(announced):
        raise OSError(f"ended after {size:,} of {announced} bytes")
