"""Attention over a forest on a card: FlashAttention where no tree branches, FlexAttention where one does.

What the kernels need of the layout is made from the table of segments, once per forest for all its layers, and without
reading a number back from the card, so that the host never waits.

Shape suffixes: T tokens, S segments, B blocks of 128 tokens, N heads, D head size.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tercet.models.attention import Attention
from tercet.models.forest_cpu import Segment

BLOCK = 128  # FlexAttention's own block; rows filled up to a multiple have no ragged last one
MOST_SIZE = 256  # of a head, for FlashAttention


class Sequences(NamedTuple):
    """Where each sequence of a forest without branches begins, and the last ends (int32); the longest one's length."""

    bounds: Tensor
    longest: int


class Layout:
    """The segments of a forest in a row of `size` tokens, as the kernels read them.

    All of them see the `past` keys that follow those of the row.
    """

    def __init__(self, segments: Sequence[Segment], size: int, device: torch.device, past: int = 0) -> None:
        self.segments, self.size, self.device, self.past = segments, size, device, past
        self._near: dict[tuple[int | None, int | None], Any] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention of `(1, N, T, D)` queries; returns `(1, T, N, D)`."""
        half = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= MOST_SIZE
        usual = how.softcap is None and how.sinks is None and how.chunk is None and value.shape[-1] == key.shape[-1]
        if half and usual and self.sequences is not None and (flash := flash_attention()) is not None:
            flat = [x[0].transpose(0, 1) for x in (query, key, value)]
            return flash(flat[0], flat[1], flat[2], self.sequences, how)[None]
        return self._flex(query, key, value, how).transpose(1, 2)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """FlexAttention, `(1, N, T, E)`: caps change the scores, windows the mask, and sinks the sum of weights."""
        from torch.nn.attention.flex_attention import AuxRequest

        options: dict[str, Any] = {"scale": how.scaling, "enable_gqa": key.shape[1] != query.shape[1]}
        options["block_mask"] = self.near_mask(how) if how.local else self.block_mask
        if how.softcap is not None:
            options["score_mod"] = _cap(how.softcap)
        call = _flex(compiled=query.is_cuda)
        if how.sinks is None:
            return call(query, key, value, **options)
        found, aux = call(query, key, value, **options, return_aux=AuxRequest(lse=True))
        return how.sunk(found.transpose(1, 2), aux.lse.transpose(1, 2)).transpose(1, 2)

    @cached_property
    def sequences(self) -> Sequences | None:
        """The forest as sequences side by side, or None where a segment has two children and its keys serve twice.

        A segment and its only child stand one behind the other, and are one causal sequence.
        """
        if self.past:
            return None
        bounds = [0]
        for segment in self.segments:
            if segment.ancestors:
                if segment.ancestors[0][0] != bounds[-1] or segment.above != segment.start - bounds[-1]:
                    return None
            elif segment.start > bounds[-1]:
                bounds.append(segment.start)
        bounds.append(self.size)
        longest = max(end - start for start, end in pairwise(bounds))
        return Sequences(torch.tensor(bounds, dtype=torch.int32).to(self.device, non_blocking=True), longest)

    @cached_property
    def block_mask(self) -> Any:
        """Which blocks of keys a block of queries sees in whole, in part, not at all, as FlexAttention reads it.

        Counted from the segments, B x S x B products, instead of by trying all T x T pairs.
        """
        from torch.nn.attention.flex_attention import BlockMask

        own_S3, above_A3 = self._tables()
        seen_BC = visible_pairs(own_S3, above_A3, self.size, self.past)
        full_BC = seen_BC == BLOCK * BLOCK
        rows, whole = (_in_order(chosen) for chosen in ((seen_BC > 0) & ~full_BC, full_BC))
        lengths = (self.size, self.size + self.past)
        return BlockMask.from_kv_blocks(*rows, *whole, BLOCK, _allowed(own_S3, self.size, self.past), lengths)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Each segment's start, its end, and the end of what is below; each ancestor's segment, start and end."""
        own = [(start, end, last) for (start, end, _), last in zip(self.segments, self._last(), strict=True)]
        above = [(i, *span) for i, segment in enumerate(self.segments) for span in segment.ancestors]
        return self._sent(own), self._sent(above)

    def _sent(self, rows: list[tuple[int, int, int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32).reshape(-1, 3).to(self.device, non_blocking=True)

    def _last(self) -> list[int]:
        """Where what is below each segment ends; trees are laid out depth first."""
        ends = {segment.start: segment.end for segment in self.segments}
        for segment in self.segments:
            for start, _ in segment.ancestors:
                ends[start] = max(ends[start], segment.end)
        return list(ends.values())

    def near_mask(self, how: Attention) -> Any:
        """The same where a layer sees a part of the past only; made once for all layers that see as far.

        Blocks out of every query's sight are left out; all others are masked key by key.
        """
        from torch.nn.attention.flex_attention import BlockMask, and_masks

        if (how.window, how.chunk) not in self._near:
            own_S3, above_A3 = self._tables()
            position_K = self.positions
            first_T = how.first(position_K[: self.size])
            near_BC = _blocks(position_K, -1).amax(1) >= _blocks(first_T, len(position_K)).amin(1)[:, None]
            rows = _in_order((visible_pairs(own_S3, above_A3, self.size, self.past) > 0) & near_BC)
            both = and_masks(_allowed(own_S3, self.size, self.past), _near(position_K, first_T))
            lengths = (self.size, len(position_K))
            self._near[how.window, how.chunk] = BlockMask.from_kv_blocks(*rows, None, None, BLOCK, both, lengths)
        return self._near[how.window, how.chunk]

    @cached_property
    def positions(self) -> Tensor:
        """Each key's position on its own path: of the row's tokens, then of the past."""
        parts = [torch.arange(segment.end - segment.start) + self.past + segment.above for segment in self.segments]
        return torch.cat([*parts, torch.arange(self.past)]).to(self.device, non_blocking=True)


def _near(position_K: Tensor, first_T: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a key lies within a query's sight."""

    def near(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return position_K[key] >= first_T[query]

    return near


def _cap(softcap: float) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Scores between minus and plus `softcap`."""

    def cap(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def _blocks(numbers_T: Tensor, filling: int) -> Tensor:
    """Numbers of tokens by block, `(B, 128)`."""
    return pad(numbers_T, (0, -len(numbers_T) % BLOCK), value=filling).view(-1, BLOCK)


def visible_pairs(own_S3: Tensor, above_A3: Tensor, size: int, past: int = 0) -> Tensor:
    """How many pairs of query and key see each other in each pair of blocks: (B, B), with a past (B, C).

    `own_S3` has each segment's start and end, `above_A3` each ancestor's segment, start and end.
    """
    edges_B = torch.arange(0, size, BLOCK, device=own_S3.device, dtype=own_S3.dtype)

    def overlap(start_S: Tensor, end_S: Tensor) -> Tensor:
        inside = torch.minimum(end_S[:, None], edges_B + BLOCK) - torch.maximum(start_S[:, None], edges_B)
        return inside.clamp(min=0).float()  # at most 128, and sums at most 128 x 128: exact, in TF32 too

    own_SB = overlap(own_S3[:, 0], own_S3[:, 1])
    above_SB = torch.zeros_like(own_SB).index_add_(0, above_A3[:, 0], overlap(above_A3[:, 1], above_A3[:, 2]))
    earlier_BB = (own_SB.T @ own_SB).tril(-1)  # of blocks before the query's own, all that belongs to the segment
    seen_BB = earlier_BB + own_SB.T @ above_SB + torch.diag((own_SB * (own_SB + 1) / 2).sum(0))
    if not past:
        return seen_BB
    edges_C = torch.arange(0, size + past, BLOCK, device=own_S3.device, dtype=own_S3.dtype)
    past_C = (edges_C + BLOCK).clamp(max=size + past) - edges_C.clamp(min=size)
    beside_BC = own_SB.sum(0)[:, None] * past_C.clamp(min=0)
    return beside_BC + pad(seen_BB, (0, len(edges_C) - len(edges_B)))


def _allowed(own_S3: Tensor, size: int, past: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, for the blocks seen in part: it stands at the key or behind, and below its segment.

    Trees lie depth first, so what is below a segment is all that stands between it and one number.
    """
    lengths_S = (own_S3[:, 1] - own_S3[:, 0]).long()
    last_T = own_S3[:, 2].repeat_interleave(lengths_S, output_size=size)

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < last_T[key])

    def allowed_or_past(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= size) | allowed(batch, head, query, key.clamp(max=size - 1))

    return allowed_or_past if past else allowed


def _in_order(chosen_BC: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, (1, 1, B), and which ones first, (1, 1, B, C)."""
    order = torch.argsort(chosen_BC.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen_BC.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


@cache
def _flex(*, compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    call: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return call


@cache
def flash_attention() -> Callable[[Tensor, Tensor, Tensor, Sequences, Attention], Tensor] | None:
    """Attention `(T, N, D)` of sequences side by side: torch's own, else flash-attn's where that is installed."""
    if torch.version.hip is None and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        return torch_varlen(varlen_attn)
    if importlib.util.find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func

    def attend_sequences(query: Tensor, key: Tensor, value: Tensor, of: Sequences, how: Attention) -> Tensor:
        places = (of.bounds, of.bounds, of.longest, of.longest)
        options: dict[str, Any] = {"softmax_scale": how.scaling, "causal": True, "window_size": _window(of, how)}
        return flash_attn_varlen_func(query, key, value, *places, **options)

    return attend_sequences


def torch_varlen(varlen_attn: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor, Sequences, Attention], Tensor]:
    """`varlen_attn` of torch 2.11 and later: keys shared by several heads have to be announced from 2.12 on."""
    announced = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def attend_sequences(query: Tensor, key: Tensor, value: Tensor, of: Sequences, how: Attention) -> Tensor:
        shared = {"enable_gqa": key.shape[1] != query.shape[1]} if announced else {}
        bounds, longest = of
        options: dict[str, Any] = {"scale": how.scaling, "window_size": _window(of, how), **shared}
        return varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)

    return attend_sequences


def _window(of: Sequences, how: Attention) -> tuple[int, int]:
    """How many tokens before and after itself a query sees; -1 for all before."""
    return (-1 if how.window is None or how.window >= of.longest else how.window - 1, 0)
