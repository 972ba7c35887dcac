"""The docs site as a browser sees it. Needs `make site` and what tests/report/looked.py names; takes about a minute.

With `TERCET_ATTACK=full` all pages are looked at, else those of each kind.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "report"))
from looked import findings, needs_browser  # noqa: E402

BUILT = ROOT / "site"
FULL = os.environ.get("TERCET_ATTACK") == "full"
PAGES = ("index", "start", "how/own-data", "verbs", "recipe")
# What the theme hides or shortens by intent, and finds again by other means.
THEMES = ("md-visually-hidden", "md-skip", "md-option", "md-ellipsis")


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that keeps no log."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of the built site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(BUILT))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


needs_site = pytest.mark.skipif(not (BUILT / "index.html").is_file(), reason="not built: make site")


@needs_site
def test_no_page_of_the_site_loads_from_another_host() -> None:
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    pages = BUILT.rglob("*.html")
    found = [f"{page.name}: {tag}" for page in pages for tag in loads.findall(page.read_text(encoding="utf-8"))]
    styles = BUILT.rglob("*.css")
    found += [f"{file.name}" for file in styles if re.search(r"url\([\"']?(?:https?:)?//", file.read_text("utf-8"))]
    assert not found, "\n".join(found)


@needs_site
@needs_browser
@pytest.mark.slow
def test_pages_of_the_site_look_right_on_phone_and_screen_in_both_themes(site: str) -> None:
    pages = sorted(page.relative_to(BUILT).as_posix() for page in BUILT.rglob("*.html"))
    found = findings(*(f"{site}{page}" for page in pages if FULL or page.removesuffix(".html") in PAGES))
    found = [one for one in found if not any(name in one for name in THEMES)]
    assert not found, "\n".join(found)
