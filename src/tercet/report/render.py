"""HTML from templates: escaping, style, scripts, and how numbers are written."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tercet.report import labels, samples
from tercet.report.collect import Object
from tercet.report.compare import amount

HERE = Path(__file__).parent
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:"


def render(template: str, page: Object, *assets: str, folder: Path = HERE, allow: str = "", **more: Any) -> str:
    """The page as HTML; `assets` name its styles and scripts, "page" for `page.css` and `page.js`.

    Template and assets are those of `folder`, or of this package; `allow` is what the page's policy allows besides.

    Every text is escaped; only our own drawings, styles and scripts are marked as safe. The page's policy lets a
    browser run this style and this script, by their digests, and nothing else; it loads nothing but icons in place.
    """
    loader = FileSystemLoader([folder, HERE])
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {one.__name__: one for one in (amount, labels.number, count, paid, duration, first_line)}
    style, script = (Markup("\n".join(_asset(folder, f"{name}.{kind}") for name in assets)) for kind in ("css", "js"))
    policy = f"style-src {_digest(style)}; script-src {_digest(script)}"
    shown = {"style": style, "script": script, "policy": Markup(f"{NOTHING}; {policy}{allow}")}
    return env.get_template(template).render(page, **shown, **more)


def _asset(folder: Path, name: str) -> str:
    file = folder / name if (folder / name).is_file() else HERE / name
    return file.read_text(encoding="utf-8")


def write(out: Path, html: str) -> None:
    """A page as a file; half a surrogate pair, which an old artifact may hold, is shown as its escape."""
    out.write_text(html, encoding="utf-8", errors="backslashreplace")


def _digest(text: str) -> str:
    """How a Content-Security-Policy names the content of an element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def duration(seconds: float) -> str:
    """A time as text: `8.2 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int | None) -> str:
    """A count with commas; a dash where a summary does not have it."""
    return "–" if number is None else f"{number:,}"


def paid(amount: float) -> str:
    """A cost in the currency of the recipe's price: `nothing`, `0.00042`, `12.4`."""
    return f"{amount:,.3g}" if amount else "nothing"


def first_line(turns: Sequence[Object]) -> str:
    """The start of the last user turn, to recognise a prompt by."""
    return samples.clip(next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), ""))
