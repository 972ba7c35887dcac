"""In which order the segments of a forest pass on their states: parents before children, like lengths side by side.

A recurrent layer reads a row of tokens from left to right, and in a forest what stands to the left may be another
branch. So its scan runs level by level: all roots as padded batches, then their children, each from the state in which
its parent ended. Its short convolution runs once, over segments with the last tokens of their path before them.

Shape suffixes: T tokens of the forest, R rows of all padded batches one after another, S segments of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tercet.models.forest_cpu import Segment

Scan = Callable[[list[Tensor], Tensor | None, bool], tuple[Tensor, Tensor | None]]
SHORTEST = 16  # shorter segments of a level are one batch


class Pick(NamedTuple):
    """Rows of a tensor by number; zeros at `holes`, whose number is 0."""

    rows: Tensor
    holes: Tensor

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Pick:
        """From row numbers, negative where there is no row."""
        return cls(rows.clamp(min=0).to(device), (rows < 0).nonzero()[:, 0].to(device))

    def __call__(self, x: Tensor) -> Tensor:
        """The picked rows."""
        found = x.index_select(0, self.rows)
        return found.index_fill_(0, self.holes, 0.0) if len(self.holes) else found


@dataclass(frozen=True)
class Places:
    """Where the tokens of a forest stand in another row of tokens: each at a place of its own, some at others too."""

    forth: Pick  # which token stands at each place
    own: Pick  # the same, without tokens at places that are not their own
    back: Pick  # the own place of each token
    again: Tensor  # places that are not a token's own,
    tokens: Tensor  # and the tokens there

    @classmethod
    def of(cls, placed: Tensor, own: Tensor, device: torch.device) -> Places:
        """From the token at each place (negative: none) and whether the place is the token's own."""
        ours, again = (own & (placed >= 0)).nonzero()[:, 0], (~own & (placed >= 0)).nonzero()[:, 0]
        back = torch.empty_like(ours)
        back[placed[ours]] = ours
        forth, mine, home = (Pick.of(rows, device) for rows in (placed, placed.where(own, -1), back))
        return cls(forth, mine, home, again.to(device), placed[again].to(device))

    def spread(self, x: Tensor) -> Tensor:
        """From tokens to places."""
        return _Move.apply(x, self.forth, self.back, (self.again, self.tokens))

    def gather(self, x: Tensor) -> Tensor:
        """From each token's own place to tokens."""
        return _Move.apply(x, self.back, self.own, None)


class _Move(torch.autograd.Function):
    """A pick whose gradient is a pick as well: nothing is added up row by row but what stands at several places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Pick, back: Pick, more: tuple[Tensor, Tensor] | None) -> Tensor:
        ctx.back, ctx.more = back, more
        return forth(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        found: Tensor = ctx.back(grads[0])
        if ctx.more is not None and len(ctx.more[0]):
            again, tokens = ctx.more
            found.index_add_(0, tokens, grads[0].index_select(0, again))
        return found, None, None, None


class StateBatch(NamedTuple):
    """Segments of one level and of like length; `parents_S` numbers the states of the level above, None for roots."""

    segments: int
    length: int
    parents_S: Tensor | None


@dataclass
class StatePlan:
    """How the recurrent layers of one forest compute; made once for all of them."""

    levels: list[list[StateBatch]]
    batches: Places  # tokens in the rows of all batches
    spans: list[tuple[int, int]]
    parents: list[int | None]
    device: torch.device
    _windows: dict[int, Places] = field(default_factory=dict)

    def windows(self, width: int) -> Places:
        """Tokens in segments that have the last `width - 1` tokens of their path before them, zeros where it starts."""
        if width not in self._windows:
            parts, own = [], []
            for number, (start, end) in enumerate(self.spans):
                before = self._before(number, width - 1)
                parts += [torch.tensor([-1] * (width - 1 - len(before)) + before), torch.arange(start, end)]
                own += [torch.zeros(width - 1, dtype=torch.bool), torch.ones(end - start, dtype=torch.bool)]
            self._windows[width] = Places.of(torch.cat(parts).long(), torch.cat(own), self.device)
        return self._windows[width]

    def _before(self, number: int, count: int) -> list[int]:
        """The last `count` tokens of a segment's path before it, fewer where the path is shorter."""
        found: list[int] = []
        parent = self.parents[number]
        while parent is not None and len(found) < count:
            start, end = self.spans[parent]
            found = [*range(max(start, end - count + len(found)), end), *found]
            parent = self.parents[parent]
        return found

    def scan(self, scan: Scan, inputs: Iterable[Tensor]) -> Tensor:
        """Run `scan(inputs, states, wanted)` level by level on `(T, ...)` inputs; its output `(T, ...)`.

        It gets `(S, length, ...)` inputs that end in rows of zeros, which must leave a state as it is; the states of
        the parents, or None; and whether to return the states at the end.
        """
        sizes = [batch.segments * batch.length for level in self.levels for batch in level]
        parts = zip(*(self.batches.spread(one).split(sizes) for one in inputs), strict=True)
        outputs: list[Tensor] = []
        above: Tensor | None = None
        for depth, level in enumerate(self.levels):
            wanted = depth + 1 < len(self.levels)
            ends: list[Tensor] = []
            for batch in level:
                given = [part.unflatten(0, (batch.segments, batch.length)) for part in next(parts)]
                start = None if above is None or batch.parents_S is None else above.index_select(0, batch.parents_S)
                output, end = scan(given, start, wanted)
                outputs.append(output.flatten(0, 1))
                ends += [] if end is None else [end]
            above = torch.cat(ends) if wanted else None
        return self.batches.gather(torch.cat(outputs))


def state_plan(segments: Sequence[Segment], device: torch.device) -> StatePlan:
    """The plan of a forest's segments, with its indices on `device`."""
    filled = [segment for segment in segments if segment.end > segment.start]
    number = {segment.end: i for i, segment in enumerate(filled)}
    spans = [(segment.start, segment.end) for segment in filled]
    # the parent is the segment in which the path above ends
    parents = [number[segment.ancestors[-1][1]] if segment.ancestors else None for segment in filled]
    levels: list[list[StateBatch]] = []
    placed: list[Tensor] = []
    states: dict[int, int] = {}  # of each segment of the level above, the number of its state
    for groups in _levels(spans, parents):
        levels.append([])
        for group in groups:
            length = max(end - start for start, end in (spans[i] for i in group))
            above = [states[parent] for i in group if (parent := parents[i]) is not None]
            levels[-1].append(StateBatch(len(group), length, torch.tensor(above, device=device) if above else None))
            placed += [_filled(spans[i], length) for i in group]
        states = {i: place for place, i in enumerate(i for group in groups for i in group)}
    rows_R = torch.cat(placed)
    places = Places.of(rows_R, torch.ones(len(rows_R), dtype=torch.bool), device)
    return StatePlan(levels, places, spans, parents, device)


def _levels(spans: Sequence[tuple[int, int]], parents: Sequence[int | None]) -> list[list[list[int]]]:
    """Segments by depth, and within a depth by size: a batch wastes at most a third of its rows, or `SHORTEST`."""
    depths: list[int] = []
    levels: list[dict[int, list[int]]] = []
    for i, ((start, end), parent) in enumerate(zip(spans, parents, strict=True)):
        depth = 0 if parent is None else depths[parent] + 1
        depths.append(depth)
        if depth == len(levels):
            levels.append({})
        levels[depth].setdefault(_size(end - start), []).append(i)
    return [list(level.values()) for level in levels]


def _size(length: int) -> int:
    """Two sizes for each doubling: 16, 24, 32, 48, 64, ..."""
    power = 1 << (max(length, SHORTEST) - 1).bit_length()
    return power * 3 // 4 if SHORTEST < length <= power * 3 // 4 else power


def _filled(span: tuple[int, int], length: int) -> Tensor:
    start, end = span
    rows = torch.full((length,), -1)
    rows[: end - start] = torch.arange(start, end)
    return rows
