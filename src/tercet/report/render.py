"""HTML from templates: escaping, style, scripts, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tercet.report import charts, samples
from tercet.report.collect import Object
from tercet.report.compare import amount

HERE = Path(__file__).parent


def render(template: str, page: Object, *assets: str, **more: Any) -> str:
    """The page as HTML; `assets` name its styles and scripts, "page" for `page.css` and `page.js`.

    Every text is escaped; only our own drawings, styles and scripts are marked as safe.
    """
    loader = FileSystemLoader(HERE)
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {one.__name__: one for one in (amount, charts.number, count, paid, duration, first_line)}
    style, script = (
        Markup("\n".join((HERE / f"{name}.{kind}").read_text(encoding="utf-8") for name in assets))
        for kind in ("css", "js")
    )
    return env.get_template(template).render(page, style=style, script=script, **more)


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
