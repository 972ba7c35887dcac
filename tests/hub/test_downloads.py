"""Files of public repositories: downloaded once, within limits, and then from the cache."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tercet import hub
from tercet.hub import downloads
from tercet.rows import RowError, Source

FILES = {
    "/a/b/abc/short.txt": b"ends",
    "/a/b/abc/long.txt": b"x" * 99,
    "/a/b/abc/shots/one.txt": b"Q: 1?\nA: 1",
}


class Handler(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012  (the server makes the instances)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = FILES.get(self.path)
        self.send_response(200 if body else 404)
        if "short" in self.path:
            self.send_header("Content-Length", "99")
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A server in the place of GitHub; gives what it was asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{{name}}/{{revision}}/{{file}}"
    monkeypatch.setattr(downloads, "GITHUB", address)
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    Handler.asked.clear()
    yield Handler.asked
    server.shutdown()
    server.server_close()


def test_a_file_of_a_repository_is_read_once_and_then_from_the_cache(served: list[str]) -> None:
    source = Source("github:a/b/shots/{subset}.txt", subset="one", revision="abc")
    for _ in range(2):
        assert hub.records([source], {}) == [{"text": "Q: 1?\nA: 1", "_subset": "one"}]
    assert served == ["/a/b/abc/shots/one.txt"]


def test_what_cannot_be_read_says_what_to_do_and_leaves_nothing(served: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        RowError,
        match=r"github:a/b/gone.txt at revision abc: could not be read .*name a local file for 'github:a/b/gone",
    ):
        hub.records([Source("github:a/b/gone.txt", revision="abc")], {})
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    with pytest.raises(RowError, match="a pinned revision"):
        hub.records([Source("github:a/b/gone.txt")], {})


@pytest.mark.parametrize(
    ("file", "says"),
    [("short.txt", "ended after 4 of 99 bytes"), ("long.txt", "larger than 0 GiB"), ("gone.txt", "404")],
)
def test_a_download_that_is_cut_short_or_too_large_is_not_kept(served, monkeypatch, file: str, says: str) -> None:
    monkeypatch.setattr(downloads, "MOST_BYTES", 50)
    with pytest.raises(RowError, match=says):
        hub.records([Source(f"github:a/b/{file}", revision="abc")], {})
    assert not [path for path in downloads.cache_folder().rglob("*") if path.is_file()]


def test_a_download_that_drips_ends(served, monkeypatch) -> None:
    monkeypatch.setattr(downloads, "DEADLINE", -1.0)
    with pytest.raises(RowError, match="not complete after"):
        hub.records([Source("github:a/b/long.txt", revision="abc")], {})


@pytest.mark.parametrize(
    "path", ["github:a", "github:a/b", "github:a/b/..", "github:a/../c", "github:a/b/x/../y", "hf:a//b"]
)
def test_a_public_path_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(RowError, match="expected github:OWNER/NAME/FILE"):
        hub.records([Source(path, revision="abc")], {})


def test_a_redirect_away_from_https_is_refused() -> None:
    secure = urllib.request.Request("https://a.b/c")
    with pytest.raises(OSError, match="redirected from https to http"):
        downloads._Redirects().redirect_request(secure, None, 302, "Found", {}, "http://a.b/c")
    assert (
        downloads._Redirects().redirect_request(secure, None, 302, "Found", {}, "https://d.e/c").full_url
        == "https://d.e/c"
    )
