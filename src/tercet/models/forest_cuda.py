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

from tercet.models.forest_cpu import Segment

BLOCK = 128  # FlexAttention's own block; rows filled up to a multiple have no ragged last one
MOST_SIZE = 256  # of a head, for FlashAttention


class Sequences(NamedTuple):
    """Where each sequence of a forest without branches begins, and the last ends (int32); the longest one's length."""

    bounds: Tensor
    longest: int


class Layout:
    """The segments of a forest in a row of `size` tokens, as the kernels read them."""

    def __init__(self, segments: Sequence[Segment], size: int, device: torch.device) -> None:
        self.segments, self.size, self.device = segments, size, device

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of `(1, N, T, D)` queries; returns `(1, T, N, D)`."""
        half = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= MOST_SIZE
        if half and self.sequences is not None and (flash := flash_attention()) is not None:
            flat = [x[0].transpose(0, 1) for x in (query, key, value)]
            return flash(flat[0], flat[1], flat[2], self.sequences, scaling)[None]
        shared = key.shape[1] != query.shape[1]
        call = _flex(compiled=query.is_cuda)
        found = call(query, key, value, block_mask=self.block_mask, scale=scaling, enable_gqa=shared)
        return found.transpose(1, 2)

    @cached_property
    def sequences(self) -> Sequences | None:
        """The forest as sequences side by side, or None where a trunk has two leaves and its keys serve twice.

        A trunk and its only leaf stand one behind the other, and are one causal sequence.
        """
        bounds = [0]
        for start, _, trunk_start, trunk_end in self.segments:
            if trunk_end > trunk_start:
                if (trunk_start, trunk_end) != (bounds[-1], start):
                    return None
            elif start > bounds[-1]:
                bounds.append(start)
        bounds.append(self.size)
        longest = max(end - start for start, end in pairwise(bounds))
        return Sequences(torch.tensor(bounds, dtype=torch.int32).to(self.device, non_blocking=True), longest)

    @cached_property
    def block_mask(self) -> Any:
        """Which blocks of keys a block of queries sees in whole, in part, not at all, as FlexAttention reads it.

        Counted from the segments, B x S x B products, instead of by trying all T x T pairs.
        """
        from torch.nn.attention.flex_attention import BlockMask

        segments = torch.tensor(self.segments, dtype=torch.int32).reshape(-1, 4)
        table_S4 = segments.to(self.device, non_blocking=True)
        seen_BB = visible_pairs(table_S4, self.size)
        full_BB = seen_BB == BLOCK * BLOCK
        rows, whole = (_in_order(chosen) for chosen in ((seen_BB > 0) & ~full_BB, full_BB))
        lengths = (self.size, self.size)
        return BlockMask.from_kv_blocks(*rows, *whole, BLOCK, _allowed(table_S4, self.size), lengths)


def visible_pairs(table_S4: Tensor, size: int) -> Tensor:
    """How many pairs of query and key see each other in each pair of blocks, (B, B)."""
    start_S, end_S, trunk_start_S, trunk_end_S = table_S4.unbind(1)
    edges_B = torch.arange(0, size, BLOCK, device=table_S4.device, dtype=table_S4.dtype)

    def overlap(from_S: Tensor, to_S: Tensor) -> Tensor:
        inside = torch.minimum(to_S[:, None], edges_B + BLOCK) - torch.maximum(from_S[:, None], edges_B)
        return inside.clamp(min=0).float()  # at most 128, and sums at most 128 x 128: exact, in TF32 too

    own_SB, trunk_SB = overlap(start_S, end_S), overlap(trunk_start_S, trunk_end_S)
    earlier_BB = (own_SB.T @ own_SB).tril(-1)  # of blocks before the query's own, all that belongs to the segment
    return earlier_BB + own_SB.T @ trunk_SB + torch.diag((own_SB * (own_SB + 1) / 2).sum(0))


def _allowed(table_S4: Tensor, size: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, for the blocks seen in part; three numbers per query, none per key."""
    lengths_S = (table_S4[:, 1] - table_S4[:, 0]).long()
    columns = (table_S4[:, i].repeat_interleave(lengths_S, output_size=size) for i in (0, 2, 3))
    start_T, trunk_start_T, trunk_end_T = columns  # each a tensor of its own: kernels read aligned ones

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= start_T[query]) & (key <= query)
        return own | ((key >= trunk_start_T[query]) & (key < trunk_end_T[query]))

    return allowed


def _in_order(chosen_BB: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, (1, 1, B), and which ones first, (1, 1, B, B)."""
    order = torch.argsort(chosen_BB.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen_BB.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


@cache
def _flex(*, compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    call: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return call


@cache
def flash_attention() -> Callable[[Tensor, Tensor, Tensor, Sequences, float], Tensor] | None:
    """Attention `(T, N, D)` of sequences side by side: torch's own, else flash-attn's where that is installed."""
    if torch.version.hip is None and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        from torch.nn.attention.varlen import varlen_attn

        return torch_varlen(varlen_attn)
    if importlib.util.find_spec("flash_attn") is None:
        return None
    from flash_attn import flash_attn_varlen_func

    def attend_sequences(query: Tensor, key: Tensor, value: Tensor, of: Sequences, scaling: float) -> Tensor:
        return flash_attn_varlen_func(
            query, key, value, of.bounds, of.bounds, of.longest, of.longest, softmax_scale=scaling, causal=True
        )

    return attend_sequences


def torch_varlen(varlen_attn: Callable[..., Any]) -> Callable[[Tensor, Tensor, Tensor, Sequences, float], Tensor]:
    """`varlen_attn` of torch 2.11 and later: keys shared by several heads have to be announced from 2.12 on."""
    announced = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def attend_sequences(query: Tensor, key: Tensor, value: Tensor, of: Sequences, scaling: float) -> Tensor:
        shared = {"enable_gqa": key.shape[1] != query.shape[1]} if announced else {}
        bounds, longest = of
        options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), **shared}
        return varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)

    return attend_sequences
