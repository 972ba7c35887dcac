"""The lineage graph as SVG: stages from top to bottom, each below those it was made from.

A row holds at most `MOST` stages, so the graph grows downwards with a run and stays as wide as a page.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from tercet.report.charts import Point, drawing
from tercet.report.labels import fit

MOST = 5  # stages of a row
BOX, TALL, GAP, LANE, MARGIN = 172, 62, 40, 14, 8  # a box, the space below a row, the width of a lane

Spot = tuple[str, int]  # a stage and a row: the box of the stage, or in later rows the lane of its lines


class Box(NamedTuple):
    """One stage of the lineage graph; `parents` are names of other boxes."""

    name: str
    kind: str
    note: str
    parents: tuple[str, ...]
    tone: str = ""


def lineage(boxes: Sequence[Box]) -> Markup:
    """Stages from top to bottom; a line that skips rows gets a lane of its own in each."""
    depth = _depths(boxes)
    rows = _rows(boxes, depth)
    wide = {(name, at): BOX + 16 if at == depth[name] else LANE for row in rows for name, at in row}
    width = max(sum(wide[spot] for spot in row) for row in rows)
    place = {}
    for i, row in enumerate(rows):
        x = MARGIN + (width - sum(wide[spot] for spot in row)) / 2
        for spot in row:
            place[spot] = (x + wide[spot] / 2, float(MARGIN + i * (TALL + GAP)))
            x += wide[spot]
    body = [
        _wire(_stops(parent, box.name, depth, place), f"{parent} → {box.name}")
        for box in boxes
        for parent in box.parents
    ]
    body += [_box(box, *place[box.name, depth[box.name]]) for box in boxes]
    height = 2 * MARGIN + len(rows) * (TALL + GAP) - GAP
    return drawing("".join(body), width + 2 * MARGIN, height, "Lineage of the stages", wide=True)


def _box(box: Box, middle: float, y: float) -> str:
    x, room = middle - BOX / 2, BOX - 22
    # Notes are letters of 11 in regular weight, about a tenth narrower than the widths we know.
    lines = ((box.name, "boxname", 13, 20), (box.kind, "boxnote", 10, 37), (box.note, "boxnote", 10, 52))
    texts = "".join(
        f'<text class="{name}" x="{x + 11:g}" y="{y + down:.1f}">{escape(fit(text, size, room))}</text>'
        for text, name, size, down in lines
    )
    rect = f'<rect x="{x:g}" y="{y:.1f}" width="{BOX}" height="{TALL}" rx="7"/>'
    title = f"<title>{escape(box.name)}: {escape(box.note)}</title>"
    return f'<g class="box {escape(box.tone)}">{title}{rect}{texts}</g>'


def _depths(boxes: Sequence[Box]) -> dict[str, int]:
    """Row of every box: below its parents; boxes without parents stand just above their first child.

    Where a row is full, a box with parents goes further down, one without further up.
    """
    depth: dict[str, int] = {}
    taken: Counter[int] = Counter()

    def put(name: str, row: int, step: int) -> None:
        while taken[row] >= MOST:
            row += step
        depth[name] = row
        taken[row] += 1

    for box in boxes:  # parents come before children
        if box.parents:
            put(box.name, 1 + max(depth[parent] for parent in box.parents), 1)
        else:
            depth[box.name] = 0
    for box in boxes:
        if not box.parents:
            children = [depth[child.name] for child in boxes if box.name in child.parents]
            put(box.name, min(children, default=1) - 1, -1)
    first = min(depth.values(), default=0)
    return {name: row - first for name, row in depth.items()}


def _rows(boxes: Sequence[Box], depth: dict[str, int]) -> list[list[Spot]]:
    """Boxes and lanes by row, ordered within each row by the mean place of what they come from and lead to."""
    spots = {(box.name, depth[box.name]): [(parent, depth[box.name] - 1) for parent in box.parents] for box in boxes}
    for name, last in [before for found in list(spots.values()) for before in found]:
        for at in range(depth[name] + 1, last + 1):  # the lanes of a line that skips rows
            spots.setdefault((name, at), [(name, at - 1)])
    near: dict[Spot, list[Spot]] = {spot: list(found) for spot, found in spots.items()}
    for spot, found in spots.items():
        for before in found:
            near[before].append(spot)
    rows = [[spot for spot in spots if spot[1] == i] for i in range(max(depth.values()) + 1)]
    # Five sweeps to and fro move every spot towards its neighbours; that untangles most crossings.
    for sweep in (rows, rows[::-1], rows, rows[::-1], rows):
        for row in sweep:
            rank = {spot: i - (len(other) - 1) / 2 for other in rows for i, spot in enumerate(other)}
            row.sort(key=lambda s: math.fsum(rank[n] for n in near[s]) / max(1, len(near[s])))
    return rows


def _stops(parent: str, child: str, depth: dict[str, int], place: dict[Spot, Point]) -> list[Point]:
    """From the lower edge of the parent, along its lanes, to the upper edge of the child."""
    lanes = [place[parent, at] for at in range(depth[parent], depth[child])]
    edges = [point for x, y in lanes for point in ((x, y), (x, y + TALL))]
    return [*edges[1:], place[child, depth[child]]]


def _wire(stops: Sequence[Point], tip: str) -> str:
    x, y = stops[0]
    path = f"M{x:g} {y:.1f}"
    for to_x, to_y in stops[1:]:
        bend = (to_y - y) / 2
        path += f"C{x:g} {y + bend:.1f} {to_x:g} {to_y - bend:.1f} {to_x:g} {to_y:.1f}"
        x, y = to_x, to_y
    arrow = f"M{x - 3.5:g} {y - 6:.1f}h7l-3.5 6z"
    lines = f'<path class="wire" d="{path}"/><path class="tip" d="{arrow}"/>'
    return f'<g class="edge"><title>{escape(tip)}</title>{lines}</g>'
