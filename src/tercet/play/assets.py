"""The files of the page: styles and modules as they are served, and all of them in one file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tercet.outside import mended, unicode_only

HERE = Path(__file__).parent / "page"
STYLE = Path(__file__).parents[1] / "report" / "page.css"
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
FROZEN = ("dom", "tokens", "verdicts", "traces", "turns", "frozen")  # modules of the frozen page, in this order
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"
POLICY = f"{NOTHING}; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"
IMPORT = re.compile(r"^import [^;]*;\n", re.M)
EXPORT = re.compile(r"^export ", re.M)
MOST_FROZEN = 8 << 20


@cache
def page() -> bytes:
    """The page itself; everything on it comes from the modules."""
    return (HERE / "index.html").read_bytes()


@cache
def assets() -> dict[str, tuple[bytes, str]]:
    """Every other file by its name, with its media type."""
    found = {file.name: (file.read_bytes(), KINDS[file.suffix]) for file in HERE.iterdir() if file.suffix in KINDS}
    return {"page.css": (STYLE.read_bytes(), KINDS[".css"]), **found}


def frozen(state: dict[str, Any]) -> str:
    """One HTML file that shows the answers, verdicts and traces of a state, and asks nobody for anything."""
    style = "\n".join(assets()[name][0].decode() for name in ("page.css", "play.css"))
    script = "\n".join(_plain(assets()[f"{name}.js"][0].decode()) for name in FROZEN)
    data = json.dumps(mended(state), ensure_ascii=True).replace("<", "\\u003c")
    policy = f"{NOTHING}; style-src {_digest(style)}; script-src {_digest(script)}"
    title = html.escape(unicode_only(str(state.get("title") or "Answers"))[:200])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body class="play frozen">
<div id="page"></div>
<script type="application/json" id="state">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def _plain(module: str) -> str:
    """A module as a part of one script: without what joins modules."""
    return EXPORT.sub("", IMPORT.sub("", module))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
