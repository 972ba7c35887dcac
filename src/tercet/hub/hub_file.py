"""A file of a data set of the Hub, fetched by huggingface_hub: its token, its `HF_ENDPOINT`, its cache.

A broken connection is taken up where it broke. What a file holds is compared with the Hub's own digest, which the cache
has as the name of the file, each time that it is opened; a damaged one is fetched again.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, hf_hub_download
from huggingface_hub.utils import tqdm

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of git's blobs, and SHA-256 of large files
_CHUNK = 1 << 20
_WHY: tuple[tuple[type[Exception], str], ...] = (  # the first that fits
    (errors.GatedRepoError, "its owner lets only some in: accept its terms on its page, then give a token of yours"),
    (
        errors.RepositoryNotFoundError,
        "the Hub has no such data set for you; check the id, and of a private one the token",
    ),
    (errors.RevisionNotFoundError, "the data set has no such revision; name one of its commits"),
    (errors.RemoteEntryNotFoundError, "the data set has no such file at this revision"),
)
_TOKEN = "; a token stands in HF_TOKEN, or is kept by `hf auth login`"


class HubFileError(OSError):
    """The Hub did not give the file; the message says why."""


def fetch(name: str, file: str, revision: str, *, most: int, seconds: float) -> Path:
    """The path of `file` of the data set `name` in the cache; at most so many bytes and seconds are spent on it."""

    bar = type("_DownloadLimit", (_DownloadLimit,), {"limits": (most, seconds)})

    def download(*, again: bool) -> Path:
        options: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "tqdm_class": bar}
        return Path(hf_hub_download(name, file, force_download=again, **options))

    try:
        found = download(again=False)
        if not whole(found):
            found = download(again=True)
    except (OSError, ValueError, errors.HTTPError) as error:
        raise HubFileError(_reason(error)) from error
    if not whole(found):
        raise HubFileError("the Hub sent other bytes than those it names the digest of")
    return found


def whole(file: Path) -> bool:
    """Whether a file of the Hub's cache holds what its digest says; where links are not kept, nobody knows."""
    digest = Path(os.readlink(file)).name if file.is_symlink() else ""
    if not _DIGEST.fullmatch(digest):
        return True
    if not file.is_file():  # a pipe would be waited for
        return False
    try:
        with open(file, "rb") as stream:
            found = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(usedforsecurity=False)
            if len(digest) == 40:  # as git counts it
                found.update(b"blob %d\0" % os.fstat(stream.fileno()).st_size)
            while chunk := stream.read(_CHUNK):
                found.update(chunk)
    except OSError:
        return False
    return found.hexdigest() == digest


class _DownloadLimit(tqdm):
    """In the place of a progress bar: shows nothing, and ends a download that is too large or takes too long."""

    limits = (0, 0.0)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})
        self._begun, self._size = time.monotonic(), 0
        self._check(int(options.get("total") or 0))

    def update(self, n: float | None = 1) -> bool | None:
        """Count bytes, before they are written."""
        self._size += int(n or 0)
        self._check(self._size)
        return None

    def _check(self, size: int) -> None:
        most, seconds = self.limits
        if size > most:
            raise HubFileError(f"larger than {most >> 30} GiB")
        if time.monotonic() - self._begun > seconds:
            raise HubFileError(f"not complete after {seconds:,.0f} seconds")


def _reason(error: Exception) -> str:
    """Why there is no file, without addresses, which may be signed."""
    for kind, text in _WHY:
        if isinstance(error, kind):
            return text + (_TOKEN if "token" in text else "")
    if isinstance(error, HubFileError):
        return str(error)
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return "the Hub refused the token" + _TOKEN
    if constants.HF_HUB_OFFLINE:
        return "it is not whole in the cache, and HF_HUB_OFFLINE forbids to fetch it"
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0].partition('http')[0]:.200}"
