"""Small SVG charts as text: dots with whiskers, curves, differences against zero.

Hand-written SVG rather than a plotting library: plotly inlines 4 MB of script, while these follow the page's CSS
variables (dark mode, phone) and weigh a few kB each. Colours come from the classes `c0`..`c5` of `page.css`; every
series also has its own marker shape. Drawings are 260 to 340 units wide, so their text stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

from tercet.report.labels import distinct, fit, number, text_width, ticks

WIDTH = 340
SERIES = 6  # number of series classes in page.css; later series share them in turn
TICK, NAME = 11, 12  # sizes of texts, as page.css has them
MAX_POINTS = 240  # a longer curve is averaged in equal bins
MAX_HITS = 60  # tooltips per curve
LARGEST = 1e300  # beyond it a value is drawn at the edge: the difference of two larger ones is no number

Point = tuple[float, float]
Map = Callable[[float], float]  # from values to places


class Dot(NamedTuple):
    """One estimate with its interval, e.g. `Dot("SFT", 0.41, 0.35, 0.47, "SFT 41.0 % (35.0 to 47.0)", 1)`."""

    label: str
    value: float
    low: float
    high: float
    tip: str
    series: int


class Bound(NamedTuple):
    """A value that a curve should not cross, e.g. `Bound(0.2, "alert above 0.2")`."""

    value: float
    text: str


def dots(items: Sequence[Dot], *, percent: bool, label: str) -> Markup:
    """Estimates side by side with 95 % whiskers; shares are written in percent, with 0 on the axis."""
    height, right, top, bottom = 210, 6, 12, 30
    lows, highs = [d.low for d in items], [d.high for d in items]
    low, high = (min(0.0, *lows), max(highs)) if percent else _padded(min(lows), max(highs))
    marks = ticks(low, high, 5)
    texts = distinct(marks, percent=percent)
    left = 10 + max(text_width(text, TICK) for text in texts)
    wide = max(260, left + right + 52 * len(items))
    step = (wide - left - right) / len(items)
    two = any(text_width(dot.label, NAME) > step - 6 for dot in items)  # lines of names, which then stand by turns
    bottom += 15 * two
    y = _scale(min(low, marks[0]), max(high, marks[-1]), height - bottom, top)
    body = [_grid(marks, texts, y, left, wide - right)]
    centres = [left + step * (i + 0.5) for i in range(len(items))]
    path = " ".join(f"{x:.1f},{y(d.value):.1f}" for x, d in zip(centres, items, strict=True))
    body.append(f'<polyline class="thread" points="{path}"/>')
    for i, (x, dot) in enumerate(zip(centres, items, strict=True)):
        room = min(2 * x, 2 * (wide - x), (1 + two) * step) - 6
        body.append(f'<g class="c{dot.series % SERIES}"><title>{escape(dot.tip)}</title>')
        body.append(f'<rect class="hit" x="{x - step / 2:.1f}" y="{top}" width="{step:.1f}" height="{height - top}"/>')
        body.append(_whisker(x, y(dot.low), y(dot.high)))
        body.append(marker(dot.series, x, y(dot.value)))
        name = escape(fit(dot.label, NAME, room))
        body.append(f'<text class="name" x="{x:.1f}" y="{height - 10 - 15 * (two and i % 2 == 0)}">{name}</text></g>')
    return drawing("".join(body), wide, height, label)


def curve(points: Sequence[Point], *, label: str, tone: int = 0, bound: Bound | None = None) -> Markup:
    """One metric over steps: the raw line, and a running mean in front of it when the line is long.

    `bound` is drawn as a line where it lies near the curve, with its words above the plot; where it lies far off, an
    arrow before the words says in which direction.
    """
    right, bottom, top = 14, 24, 24 if bound else 10
    height = 140 + top
    points = thin([(step, max(-LARGEST, min(value, LARGEST))) for step, value in points], MAX_POINTS)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = _padded(*_reaching(min(ys), max(ys), bound))
    y = _scale(low, high, height - bottom, top)
    marks = ticks(low, high, 5)
    texts = distinct(marks)
    left = 10 + max(text_width(text, TICK) for text in texts)
    ends = (min(xs), max(xs)) if len(points) > 1 else (xs[0] - 1, xs[0] + 1)
    x = _scale(*ends, left, WIDTH - right)
    body = [_grid(marks, texts, y, left, WIDTH - right), *_steps(xs, x, height - 7)]
    smooth = running_mean(ys) if len(ys) >= 40 else ys
    body.append(f'<g class="c{tone % SERIES}">')
    if smooth is not ys:
        body.append(f'<polyline class="raw" points="{_path(xs, ys, x, y)}"/>')
    body.append(f'<polyline class="line" points="{_path(xs, smooth, x, y)}"/>')
    if len(points) == 1:
        body.append(marker(0, x(xs[0]), y(ys[0])))
    body += [*_hits(points, x, (left, WIDTH - right), (top, height - bottom)), "</g>"]
    if bound:
        body.append(_bound(bound, y, (low, high), (left, WIDTH - right)))
    return drawing("".join(body), WIDTH, height, label)


def _steps(xs: Sequence[float], x: Map, y: float) -> list[str]:
    """The numbers below a curve: whole steps, each inside the drawing."""
    marks = [step for step in ticks(min(xs), max(xs), 4) if min(xs) <= step <= max(xs) and step == int(step)]
    found = []
    for step, text in zip(marks, distinct(marks), strict=True):
        middle = min(x(step), WIDTH - text_width(text, TICK) / 2)
        found.append(f'<text class="tick mid" x="{middle:.1f}" y="{y}">{text}</text>')
    return found


def _hits(points: Sequence[Point], x: Map, across: Point, down: Point) -> list[str]:
    """Places that say their value when they are pointed at."""
    hits = thin(points, MAX_HITS)
    wide, tall = (across[1] - across[0]) / len(hits), down[1] - down[0]
    found = []
    for step, value in hits:
        tip = f"step {number(step, 6)}: {number(value)}"
        found.append(f'<rect class="hit" x="{x(step) - wide / 2:.1f}" y="{down[0]}" width="{wide:.1f}" ')
        found.append(f'height="{tall}"><title>{tip}</title></rect>')
    return found


def forest(value: float, low: float, high: float, *, reach: float, tone: str) -> Markup:
    """One difference with its interval against zero; `reach` is the largest bound of the table."""
    width, height = 120, 22
    x = _scale(-reach, reach, 4, width - 4)
    y = height / 2
    body = f'<line class="zero" x1="{x(0):.1f}" y1="1" x2="{x(0):.1f}" y2="{height - 1}"/><g class="{tone}">'
    body += f'<line class="whisker" x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}"/>'
    body += f'<circle class="mark" cx="{x(value):.1f}" cy="{y}" r="4"/></g>'
    return Markup(f'<svg class="forest" viewBox="0 0 {width} {height}" width="{width}" aria-hidden="true">{body}</svg>')


def marker(index: int, x: float, y: float) -> str:
    """The shape of one series: circle, square, diamond, triangle in turn."""
    shapes = (
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        f'<rect class="mark" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>',
        f'<path class="mark" d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>',
        f'<path class="mark" d="M{x:.1f} {y - 6:.1f}l6.2 10.8h-12.4z"/>',
    )
    return shapes[index % len(shapes)]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: equal bins, each with its last step and its mean value."""
    if len(points) <= most:
        return list(points)
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    bins = [points[a:b] for a, b in pairwise(edges)]
    return [(group[-1][0], math.fsum(p[1] for p in group) / len(group)) for group in bins]


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over a window of a tenth of the line; the window shrinks at the ends."""
    half = max(2, len(values) // 20)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [math.fsum(window) / len(window) for window in windows]


def _grid(marks: Sequence[float], texts: Sequence[str], y: Map, x0: float, x1: float) -> str:
    lines = [
        f'<line class="grid" x1="{x0:.1f}" y1="{y(mark):.1f}" x2="{x1:.1f}" y2="{y(mark):.1f}"/>'
        f'<text class="tick" x="{x0 - 6:.1f}" y="{y(mark) + 3.5:.1f}">{escape(text)}</text>'
        for mark, text in zip(marks, texts, strict=True)
    ]
    return "".join(lines)


def _reaching(low: float, high: float, bound: Bound | None) -> tuple[float, float]:
    """The range of a curve, with the bound in it where that leaves the curve most of the height."""
    near = bound is not None and low - 1.2 * (high - low) <= bound.value <= high + 1.2 * (high - low)
    return (min(low, bound.value), max(high, bound.value)) if bound and near else (low, high)


def _bound(bound: Bound, y: Map, span: Point, across: Point) -> str:
    """The words of a bound above the plot, and its line; an arrow where it lies outside."""
    (low, high), (left, right) = span, across
    arrow = "↑ " if bound.value > high else "↓ " if bound.value < low else ""
    at = f'y1="{y(bound.value):.1f}" x2="{right}" y2="{y(bound.value):.1f}"'
    line = "" if arrow else f'<line class="bound" x1="{left:.1f}" {at}/>'
    return f'{line}<text class="tick bound" x="{right}" y="14">{arrow}{escape(bound.text)}</text>'


def _whisker(x: float, low: float, high: float) -> str:
    lines = ((x, low, x, high), *((x - 5, y, x + 5, y) for y in (low, high)))  # the whisker and its two caps
    return "".join(
        f'<line class="whisker" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>' for a, b, c, d in lines
    )


def _path(xs: Sequence[float], ys: Sequence[float], x: Map, y: Map) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))


def _scale(low: float, high: float, start: float, end: float) -> Map:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - (0.0 if low == 0 else pad), high + pad


def drawing(body: str, width: float, height: float, label: str, *, wide: bool = False) -> Markup:
    """Assemble one drawing, as `wide` as it is drawn or as the page; `body` holds only numbers and escaped text."""
    own = f' width="{width:g}"' if wide else ""
    box = f'class="chart"{own} viewBox="0 0 {width:g} {height:g}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(label)}">{body}</svg>')
