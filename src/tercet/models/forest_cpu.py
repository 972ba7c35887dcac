"""Attention over a forest on the CPU: segments of like size as one batch of products, one fused pass between them.

With P = softmax(S), S = scale Q K', O = P V, and delta = rowsum(dO * O): dV = P' dO, dP = dO V', dS = P (dP - delta),
dQ = scale dS K, dK = scale dS' Q. Only each token's log-sum-exp is kept; backward computes the scores again. Segments
are padded to a multiple of 32, so few distinct shapes occur and few matrix kernels are built.

Shape suffixes: S segments, N heads, K key heads, L rows of a segment, R keys it reaches, D head size, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tercet.kernels.native import call

SCORES = 1 << 24  # scores of one batch of products: 64 MB in float


Segment = tuple[int, int, int, int]
"""Tokens `[start, end)` that attend to `[trunk_start, trunk_end)` and causally to themselves, in this order."""


class Group(NamedTuple):
    """Segments of one padded size, as token numbers; -1 is padding."""

    rows_SL: Tensor  # int32, of each segment's own tokens
    reach_SR: Tensor  # int32, of its trunk's tokens and its own
    shared_S: Tensor  # int32, how many of them are the trunk's


def groups(segments: Sequence[Segment], heads: int) -> list[Group]:
    """Segments by padded size, cut so that no batch of products has more than `SCORES` scores."""
    found: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments:
        start, end, trunk_start, trunk_end = segment
        size = _round(end - start), _round(end - start + trunk_end - trunk_start)
        found.setdefault(size, []).append(segment)
    parts = []
    for (rows, reach), same in found.items():
        most = max(1, SCORES // (rows * reach * heads))
        parts += [_group(same[i : i + most], rows, reach) for i in range(0, len(same), most)]
    return parts


def _group(segments: Sequence[Segment], rows: int, reach: int) -> Group:
    own = torch.full((len(segments), rows), -1, dtype=torch.int32)
    seen = torch.full((len(segments), reach), -1, dtype=torch.int32)
    shared = torch.tensor([trunk_end - trunk_start for _, _, trunk_start, trunk_end in segments], dtype=torch.int32)
    for i, (start, end, trunk_start, trunk_end) in enumerate(segments):
        tokens = torch.arange(start, end, dtype=torch.int32)
        trunk = torch.arange(trunk_start, trunk_end, dtype=torch.int32)
        own[i, : len(tokens)] = tokens
        seen[i, : len(trunk) + len(tokens)] = torch.cat((trunk, tokens))
    return Group(own, seen, shared)


def _round(length: int) -> int:
    return -(-length // 32) * 32


def attend(query: Tensor, key: Tensor, value: Tensor, parts: list[Group], scaling: float) -> Tensor:
    """Attention of `(N, T, D)` queries over `(K, T, D)` keys and values; `(N, T, D)`, tokens outermost in memory."""
    return _Attention.apply(query, key, value, parts, scaling)


class _Attention(torch.autograd.Function):
    """The products, batch by batch."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[Group], scaling: float) -> Tensor:
        heads, tokens, size = query.shape
        output, lse_TN = query.new_empty(tokens, heads, size), query.new_empty(tokens, heads, dtype=torch.float32)
        for part in parts:
            scores = _scores(part, query, key)
            _softmax(scores, part, lse_TN, scaling)
            _scatter(scores @ _heads(value, part.reach_SR), part.rows_SL, output)
        ctx.save_for_backward(query, key, value, output, lse_TN)
        ctx.parts, ctx.scaling = parts, scaling
        return output.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, lse_TN = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
        heads, tokens, size = query.shape
        delta_TN = torch.empty_like(lse_TN)
        steps = (grad.stride(1), grad.stride(0), heads * size, size)
        call("row_dots", query.dtype, grad, output, delta_TN, tokens, heads, size, *steps)
        grad_query = query.new_empty(tokens, heads, size)
        grad_key, grad_value = _gradients(key), _gradients(value)
        for part in ctx.parts:
            asked, upstream = _stacked(query, part, key.shape[0]), _stacked(grad, part, key.shape[0])
            keys, values = _heads(key, part.reach_SR), _heads(value, part.reach_SR)
            weights, slopes = asked @ keys.transpose(1, 2), upstream @ values.transpose(1, 2)
            segments, rows = part.rows_SL.shape
            shape = (segments, heads, rows, part.reach_SR.shape[1])
            places = (part.rows_SL, part.shared_S, lse_TN, delta_TN)
            call("attention_slopes", query.dtype, weights, slopes, *places, *shape, ctx.scaling)
            _scatter(slopes @ keys, part.rows_SL, grad_query)
            _collect(slopes.transpose(1, 2) @ asked, part, grad_key)
            _collect(weights.transpose(1, 2) @ upstream, part, grad_value)
        keys, values = (total.to(key.dtype).transpose(0, 1) for total in (grad_key, grad_value))
        return grad_query.transpose(0, 1), keys, values, None, None


def _scores(part: Group, query: Tensor, key: Tensor) -> Tensor:
    """Unscaled scores `(S K, G L, R)`: heads that share keys are rows of one product."""
    return _stacked(query, part, key.shape[0]) @ _heads(key, part.reach_SR).transpose(1, 2)


def _stacked(tensor: Tensor, part: Group, num_keys: int) -> Tensor:
    """`(S K, G L, D)` of a `(N, T, D)` tensor."""
    found = _heads(tensor, part.rows_SL)
    return found.view(len(part.rows_SL) * num_keys, -1, tensor.shape[2])


def _heads(tensor: Tensor, rows_SL: Tensor) -> Tensor:
    """Rows `(S N, L, D)` of a `(N, T, D)` tensor by token number; zeros for padding."""
    heads, _, size = tensor.shape
    segments, rows = rows_SL.shape
    out = tensor.new_empty(segments * heads, rows, size)
    call("gather", tensor.dtype, tensor, rows_SL, out, segments, heads, rows, size, tensor.stride(1), tensor.stride(0))
    return out


def _softmax(scores: Tensor, part: Group, lse_TN: Tensor, scaling: float) -> None:
    segments, rows = part.rows_SL.shape
    shape = (segments, lse_TN.shape[1], rows, part.reach_SR.shape[1])
    call("attention_softmax", scores.dtype, scores, part.rows_SL, part.shared_S, lse_TN, *shape, scaling)


def _scatter(found: Tensor, rows_SL: Tensor, out: Tensor) -> None:
    """Rows `(S N, L, D)` to their places in `(T, N, D)`."""
    _, heads, size = out.shape
    call("scatter", out.dtype, found, rows_SL, out, len(rows_SL), heads, rows_SL.shape[1], size)


def _gradients(like: Tensor) -> Tensor:
    """Where gradients of keys `(T, K, D)` are added up: in float, since a trunk's tokens get many."""
    heads, tokens, size = like.shape
    return like.new_zeros(tokens, heads, size, dtype=torch.float32)


def _collect(found: Tensor, part: Group, total: Tensor) -> None:
    _, heads, size = total.shape
    segments, reach = part.reach_SR.shape
    call("scatter_add", found.dtype, found, part.reach_SR, total, segments, heads, reach, size)
