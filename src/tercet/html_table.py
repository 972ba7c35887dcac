"""A table as HTML for a notebook: escaped, without colours of its own, so that it reads on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tercet.outside import printable


def text(value: object) -> str:
    """A value as text of a page: nothing in it is a tag, and nothing a terminal would obey."""
    return escape(printable(str(value)))


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The first column to the left, the others to the right; it scrolls where it is wider than its place."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    title = f'<caption style="text-align:left;font-weight:bold">{text(caption)}</caption>'
    return f'<div style="overflow-x:auto"><table>{title}{"".join(lines)}</table></div>'


def _row(tag: str, cells: Sequence[object]) -> str:
    sides = ("left", *["right"] * (len(cells) - 1))
    made = (f'<{tag} style="text-align:{side}">{text(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True))
    return f"<tr>{''.join(made)}</tr>"
