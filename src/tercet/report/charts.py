"""Small SVG charts as text: dots with whiskers, curves, differences against zero, the lineage graph.

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

WIDTH = 340
SERIES = 6  # number of series classes in page.css; later series share them in turn
BOX, TALL, GAP, LANE = 148, 62, 44, 14  # lineage graph: a box, the space between columns, the height of a lane
MAX_POINTS = 240  # a longer curve is averaged in equal bins
MAX_HITS = 60  # tooltips per curve


Point = tuple[float, float]
Spot = tuple[str, int]  # a stage and a column: the box of the stage, or in later columns the lane of its lines


class Dot(NamedTuple):
    """One estimate with its interval, e.g. `Dot("SFT", 0.41, 0.35, 0.47, "SFT 41.0 % (35.0 to 47.0)", 1)`."""

    label: str
    value: float
    low: float
    high: float
    tip: str
    series: int


class Box(NamedTuple):
    """One stage of the lineage graph; `parents` are names of other boxes."""

    name: str
    kind: str
    note: str
    parents: tuple[str, ...]
    tone: str = ""


class Bound(NamedTuple):
    """A value that a curve should not cross, e.g. `Bound(0.2, "alert above 0.2")`."""

    value: float
    text: str


def dots(items: Sequence[Dot], *, text: Callable[[float], str], zero: bool, label: str) -> Markup:
    """Estimates side by side with 95 % whiskers; `zero` keeps 0 on the axis."""
    height, left, right, top, bottom = 210, 42, 6, 12, 30
    width = max(260, left + right + 52 * len(items))
    lows, highs = [d.low for d in items], [d.high for d in items]
    low, high = (min(0.0, *lows), max(highs)) if zero else _padded(min(lows), max(highs))
    marks = ticks(low, high, 5)
    y = _scale(min(low, marks[0]), max(high, marks[-1]), height - bottom, top)
    body = [_grid(marks, y, text, left, width - right)]
    step = (width - left - right) / len(items)
    centres = [left + step * (i + 0.5) for i in range(len(items))]
    path = " ".join(f"{x:.1f},{y(d.value):.1f}" for x, d in zip(centres, items, strict=True))
    body.append(f'<polyline class="thread" points="{path}"/>')
    for x, dot in zip(centres, items, strict=True):
        body.append(f'<g class="c{dot.series % SERIES}"><title>{escape(dot.tip)}</title>')
        body.append(f'<rect class="hit" x="{x - step / 2:.1f}" y="{top}" width="{step:.1f}" height="{height - top}"/>')
        body.append(_whisker(x, y(dot.low), y(dot.high)))
        body.append(marker(dot.series, x, y(dot.value)))
        body.append(f'<text class="name" x="{x:.1f}" y="{height - 10}">{escape(short(dot.label, 11))}</text></g>')
    return _svg("".join(body), width, height, label)


def curve(points: Sequence[Point], *, label: str, tone: int = 0, bound: Bound | None = None) -> Markup:
    """One metric over steps: the raw line, and a running mean in front of it when the line is long.

    `bound` is drawn as a line where it lies near the curve; where it lies far off, words at that edge tell it.
    """
    height, left, right, top, bottom = 150, 46, 10, 10, 24
    points = thin(points, MAX_POINTS)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = _padded(*_reaching(min(ys), max(ys), bound))
    x = _scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, left, WIDTH - right)
    y = _scale(low, high, height - bottom, top)
    body = [_grid(ticks(low, high, 5), y, number, left, WIDTH - right)]
    for step in ticks(min(xs), max(xs), 4) if max(xs) > min(xs) else [min(xs)]:
        if min(xs) <= step <= max(xs) and step == int(step):
            body.append(f'<text class="tick mid" x="{x(step):.1f}" y="{height - 7}">{number(step)}</text>')
    smooth = running_mean(ys) if len(ys) >= 40 else ys
    body.append(f'<g class="c{tone % SERIES}">')
    if smooth is not ys:
        body.append(f'<polyline class="raw" points="{_path(xs, ys, x, y)}"/>')
    body.append(f'<polyline class="line" points="{_path(xs, smooth, x, y)}"/>')
    if len(points) == 1:
        body.append(marker(0, x(xs[0]), y(ys[0])))
    hits = thin(points, MAX_HITS)
    wide = (WIDTH - left - right) / len(hits)
    for step, value in hits:
        tip = f"step {number(step)}: {number(value)}"
        body.append(f'<rect class="hit" x="{x(step) - wide / 2:.1f}" y="{top}" width="{wide:.1f}" ')
        body.append(f'height="{height - bottom - top}"><title>{tip}</title></rect>')
    body.append("</g>")
    if bound:
        body.append(_bound(bound, min(max(y(bound.value), top), height - bottom), low <= bound.value <= high, left))
    return _svg("".join(body), WIDTH, height, label)


def forest(value: float, low: float, high: float, *, reach: float, tone: str) -> Markup:
    """One difference with its interval against zero; `reach` is the largest bound of the table."""
    width, height = 120, 22
    x = _scale(-reach, reach, 4, width - 4)
    y = height / 2
    body = f'<line class="zero" x1="{x(0):.1f}" y1="1" x2="{x(0):.1f}" y2="{height - 1}"/><g class="{tone}">'
    body += f'<line class="whisker" x1="{x(low):.1f}" y1="{y}" x2="{x(high):.1f}" y2="{y}"/>'
    body += f'<circle class="mark" cx="{x(value):.1f}" cy="{y}" r="4"/></g>'
    return Markup(f'<svg class="forest" viewBox="0 0 {width} {height}" width="{width}" aria-hidden="true">{body}</svg>')


def lineage(boxes: Sequence[Box]) -> Markup:
    """Stages from left to right, each right of its parents; a line that skips columns gets a lane of its own."""
    depth = _depths(boxes)
    columns = _columns(boxes, depth)
    tall = {(name, at): TALL + 16 if at == depth[name] else LANE for column in columns for name, at in column}
    height = max(sum(tall[spot] for spot in column) for column in columns)
    place = {}
    for i, column in enumerate(columns):
        y = 8 + (height - sum(tall[spot] for spot in column)) / 2
        for spot in column:
            place[spot] = (8.0 + i * (BOX + GAP), y + tall[spot] / 2)
            y += tall[spot]
    body = [
        _wire(_stops(parent, box.name, depth, place), f"{parent} → {box.name}")
        for box in boxes
        for parent in box.parents
    ]
    for box in boxes:
        x, middle = place[box.name, depth[box.name]]
        y = middle - TALL / 2
        body.append(f'<g class="box {escape(box.tone)}"><title>{escape(box.name)}: {escape(box.note)}</title>')
        body.append(f'<rect x="{x:g}" y="{y:.1f}" width="{BOX}" height="{TALL}" rx="7"/>')
        body.append(f'<text class="boxname" x="{x + 11:g}" y="{y + 20:.1f}">{escape(short(box.name, 17))}</text>')
        body.append(f'<text class="boxnote" x="{x + 11:g}" y="{y + 37:.1f}">{escape(box.kind)}</text>')
        body.append(f'<text class="boxnote" x="{x + 11:g}" y="{y + 52:.1f}">{escape(short(box.note, 22))}</text></g>')
    width = 16 + len(columns) * (BOX + GAP) - GAP
    return _svg("".join(body), width, height + 16, "Lineage of the stages", wide=True)


def marker(index: int, x: float, y: float) -> str:
    """The shape of one series: circle, square, diamond, triangle in turn."""
    shapes = (
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        f'<rect class="mark" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>',
        f'<path class="mark" d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>',
        f'<path class="mark" d="M{x:.1f} {y - 6:.1f}l6.2 10.8h-12.4z"/>',
    )
    return shapes[index % len(shapes)]


def number(value: float) -> str:
    """A number as a reader wants it: 3 significant digits, no needless zeros, `5e-06` as `5e-6`, a true minus sign."""
    if value < 0:
        return f"−{number(-value)}"
    if value == int(value) and value < 1e5:
        return f"{int(value)}"
    if value >= 1e5 or value < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.0f}" if value >= 1000 else f"{float(f'{value:.3g}'):g}"


def short(text: str, most: int) -> str:
    """The text, cut in the middle so that it has at most `most` characters."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2 + (most - 1) % 2
    return text[:head] + "…" + text[len(text) - (most - 1 - head) :]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values that span [low, high], about `most` of them, in steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-12)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * s for s in (1, 2, 5, 10) if span / (power * s) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)] or [low]


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


def _columns(boxes: Sequence[Box], depth: dict[str, int]) -> list[list[Spot]]:
    """Boxes and lanes by column, ordered within each column by the mean place of what they come from and lead to."""
    spots = {(box.name, depth[box.name]): [(parent, depth[box.name] - 1) for parent in box.parents] for box in boxes}
    for name, last in [before for found in list(spots.values()) for before in found]:
        for at in range(depth[name] + 1, last + 1):  # the lanes of a line that skips columns
            spots.setdefault((name, at), [(name, at - 1)])
    links = [(before, spot) for spot, found in spots.items() for before in found]
    columns = [[spot for spot in spots if spot[1] == i] for i in range(max(depth.values()) + 1)]
    # Five sweeps to and fro move every spot towards its neighbours; that untangles most crossings.
    for sweep in (columns, columns[::-1], columns, columns[::-1], columns):
        for found in sweep:
            rank = {spot: i - (len(row) - 1) / 2 for row in columns for i, spot in enumerate(row)}
            near = {s: [a for a, b in links if b == s] + [b for a, b in links if a == s] for s in found}
            found.sort(key=lambda s: math.fsum(rank[n] for n in near[s]) / max(1, len(near[s])))
    return columns


def _depths(boxes: Sequence[Box]) -> dict[str, int]:
    """Column of every box: right of its parents; boxes without parents stand just left of their first child."""
    depth: dict[str, int] = {}
    for box in boxes:  # parents come before children
        depth[box.name] = 1 + max((depth[parent] for parent in box.parents), default=-1)
    for box in boxes:
        children = [depth[child.name] for child in boxes if box.name in child.parents]
        if not box.parents and children:
            depth[box.name] = min(children) - 1
    return depth


def _stops(parent: str, child: str, depth: dict[str, int], place: dict[Spot, Point]) -> list[Point]:
    """From the right edge of the parent, along its lanes, to the left edge of the child."""
    lanes = [place[parent, at] for at in range(depth[parent], depth[child])]
    edges = [point for x, y in lanes for point in ((x, y), (x + BOX, y))]
    return [*edges[1:], place[child, depth[child]]]


def _wire(stops: Sequence[Point], tip: str) -> str:
    x, y = stops[0]
    path = f"M{x:g} {y:.1f}"
    for to_x, to_y in stops[1:]:
        bend = (to_x - x) / 2
        path += f"C{x + bend:g} {y:.1f} {to_x - bend:g} {to_y:.1f} {to_x:g} {to_y:.1f}"
        x, y = to_x, to_y
    arrow = f"M{x - 6:g} {y - 3.5:.1f}l6 3.5l-6 3.5z"
    lines = f'<path class="wire" d="{path}"/><path class="tip" d="{arrow}"/>'
    return f'<g class="edge"><title>{escape(tip)}</title>{lines}</g>'


def _grid(marks: Sequence[float], y: Callable[[float], float], text: Callable[[float], str], x0: int, x1: int) -> str:
    lines = [
        f'<line class="grid" x1="{x0}" y1="{y(m):.1f}" x2="{x1}" y2="{y(m):.1f}"/>'
        f'<text class="tick" x="{x0 - 6}" y="{y(m) + 3.5:.1f}">{escape(text(m))}</text>'
        for m in marks
    ]
    return "".join(lines)


def _reaching(low: float, high: float, bound: Bound | None) -> tuple[float, float]:
    """The range of a curve, with the bound in it where that leaves the curve most of the height."""
    near = bound is not None and low - 1.2 * (high - low) <= bound.value <= high + 1.2 * (high - low)
    return (min(low, bound.value), max(high, bound.value)) if bound and near else (low, high)


def _bound(bound: Bound, y: float, inside: bool, left: int) -> str:
    """The line of a bound with its words; only the words, with an arrow, where it lies outside."""
    line = f'<line class="bound" x1="{left}" y1="{y:.1f}" x2="{WIDTH - 10}" y2="{y:.1f}"/>' if inside else ""
    words = bound.text if inside else f"{'↑' if y < 50 else '↓'} {bound.text}"
    at = f'x="{WIDTH - 10}" y="{y - 4 if y > 24 else y + 11:.1f}"'
    return f'{line}<text class="tick bound" {at}>{escape(words)}</text>'


def _whisker(x: float, low: float, high: float) -> str:
    lines = ((x, low, x, high), *((x - 5, y, x + 5, y) for y in (low, high)))  # the whisker and its two caps
    return "".join(
        f'<line class="whisker" x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>' for a, b, c, d in lines
    )


def _path(xs: Sequence[float], ys: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - (0.0 if low == 0 else pad), high + pad


def _svg(body: str, width: float, height: float, label: str, *, wide: bool = False) -> Markup:
    """Assemble one drawing, as `wide` as it is drawn or as the page; `body` holds only numbers and escaped text."""
    own = f' width="{width:g}"' if wide else ""
    box = f'class="chart"{own} viewBox="0 0 {width:g} {height:g}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(label)}">{body}</svg>')
