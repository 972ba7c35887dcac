"""Attention over a forest: segments of like size as one batch of products, one fused pass between them on the CPU.

With P = softmax(S), S = scale Q K', O = P V, and delta = rowsum(dO * O): dV = P' dO, dP = dO V', dS = P (dP - delta),
dQ = scale dS K, dK = scale dS' Q. Only each token's log-sum-exp is kept; backward computes the scores again. Segments
are padded to a multiple of 32, so few distinct shapes occur and few matrix kernels are built. Where the compiled
kernels cannot work, in float64 for instance, the passes between the products are PyTorch's own operations.

Shape suffixes: S segments, N heads, K key heads, L rows of a segment, R keys it reaches, D head size, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tercet.kernels.native import available, call
from tercet.models.attention import Attention

SCORES = 1 << 24  # scores of one batch of products: 64 MB in float
LEAST = 64  # tokens of a piece at least, where what is seen is bounded and long segments are cut


class Segment(NamedTuple):
    """Tokens `[start, end)` that attend to all tokens of their ancestors, spans from the root on, and causally to
    themselves."""

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...] = ()

    @property
    def above(self) -> int:
        """How many tokens its ancestors have: the position of its first token."""
        return sum(end - start for start, end in self.ancestors)


class SegmentBatch(NamedTuple):
    """Segments, or pieces of them, of one padded size, as token numbers; -1 is padding."""

    rows_SL: Tensor  # int32, of each one's own tokens
    reach_SR: Tensor  # int32, of its path up to the last of them, as far as one of them sees it
    shared_S: Tensor  # int32, how many of them come before the first own one
    base_S: Tensor  # int32, the position of the first of them


class _Piece(NamedTuple):
    """The own tokens `[begin, end)` of a segment; no one sees what lies before `base` on the path."""

    segment: Segment
    begin: int
    end: int
    base: int


def groups(
    segments: Sequence[Segment], heads: int, device: torch.device, past: int = 0, how: Attention | None = None
) -> list[SegmentBatch]:
    """Segments by padded size, cut so that no batch of products has more than `SCORES` scores.

    Each sees, before its ancestors, the `past` keys that follow those of the row. Where `how` bounds what is seen,
    long segments are cut, and what no token of a piece sees is left out.
    """
    found: dict[tuple[int, int], list[_Piece]] = {}
    tokens = segments[-1].end if segments else 0
    before = torch.arange(tokens, tokens + past, dtype=torch.int32)
    for segment in segments:
        for piece in _pieces(segment, past, how):
            reach = past + segment.above + piece.end - piece.base
            found.setdefault((padded(piece.end - piece.begin), padded(reach)), []).append(piece)
    parts = []
    for (rows, reach), same in found.items():
        most = max(1, SCORES // (rows * reach * heads))
        parts += [_group(same[i : i + most], rows, reach, before) for i in range(0, len(same), most)]
    return [SegmentBatch(*(tensor.to(device) for tensor in part)) for part in parts]


def _pieces(segment: Segment, past: int, how: Attention | None) -> Iterator[_Piece]:
    own, above = segment.end - segment.start, past + segment.above
    if how is None or not how.local:
        yield _Piece(segment, 0, own, 0)
        return
    step = padded(max(LEAST, min(how.window or own, how.chunk or own) // 2))
    for begin in range(0, own, step):
        yield _Piece(segment, begin, min(begin + step, own), int(how.first(torch.tensor(above + begin))))


def _group(pieces: Sequence[_Piece], rows: int, reach: int, before: Tensor) -> SegmentBatch:
    own = torch.full((len(pieces), rows), -1, dtype=torch.int32)
    seen = torch.full((len(pieces), reach), -1, dtype=torch.int32)
    shared = torch.tensor([len(before) + one.segment.above + one.begin - one.base for one in pieces], dtype=torch.int32)
    for i, (segment, begin, end, base) in enumerate(pieces):
        spans = (torch.arange(*span, dtype=torch.int32) for span in (*segment.ancestors, segment[:2]))
        path = torch.cat((before, *spans))
        above = len(before) + segment.above
        own[i, : end - begin] = path[above + begin : above + end]
        seen[i, : above + end - base] = path[base : above + end]
    return SegmentBatch(own, seen, shared, torch.tensor([one.base for one in pieces], dtype=torch.int32))


def padded(length: int) -> int:
    """Up to a multiple of 32: few distinct shapes, so that few matrix kernels are built."""
    return -(-length // 32) * 32


def attend(query: Tensor, key: Tensor, value: Tensor, parts: list[SegmentBatch], how: Attention) -> Tensor:
    """Attention of `(N, T, D)` queries over `(K, T, D)` keys and values, with a past `(K, T + past, D)`.

    Returns `(N, T, E)`, tokens outermost in memory; values, and so the output, may have another size than keys have.
    """
    return _Attention.apply(query, key, value, how.sinks, (parts, how))


class _Attention(torch.autograd.Function):
    """The products, batch by batch."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks_N: Tensor | None,
        plan: tuple[list[SegmentBatch], Attention],
    ) -> Tensor:
        parts, how = plan
        heads, tokens, _ = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        output, lse_TN = query.new_empty(tokens, heads, value.shape[2]), query.new_empty(tokens, heads, dtype=wide)
        for part in parts:
            scores = _stacked(query, part, len(key)) @ _heads(key, part.reach_SR).transpose(1, 2)
            _softmax(scores, part, lse_TN, how)
            _scatter(scores @ _heads(value, part.reach_SR), part.rows_SL, output)
        ctx.save_for_backward(query, key, value, output, lse_TN, sinks_N)
        ctx.parts, ctx.how = parts, how._replace(sinks=None)
        return output.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, output, lse_TN, sinks_N = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
        heads, tokens, size = query.shape
        delta_TN = _row_dots(grad, output, lse_TN.dtype)
        grad_query = query.new_empty(tokens, heads, size)
        # in float: keys get one term from each segment that sees them
        grad_key, grad_value = (
            one.new_zeros(one.shape[1], len(one), one.shape[2], dtype=lse_TN.dtype) for one in (key, value)
        )
        for part in ctx.parts:
            asked, upstream = _stacked(query, part, len(key)), _stacked(grad, part, len(key))
            keys, values = _heads(key, part.reach_SR), _heads(value, part.reach_SR)
            # scores are computed again instead of kept; dO V' is the other product that dS needs
            weights, slopes = asked @ keys.transpose(1, 2), upstream @ values.transpose(1, 2)
            _slopes(weights, slopes, part, (lse_TN, delta_TN), ctx.how)
            # a query token lies in one segment, so its gradient is written once; keys serve many segments
            _scatter(slopes @ keys, part.rows_SL, grad_query)
            _collect(slopes.transpose(1, 2) @ asked, part, grad_key)
            _collect(weights.transpose(1, 2) @ upstream, part, grad_value)
        keys, values = (total.to(key.dtype).transpose(0, 1) for total in (grad_key, grad_value))
        grad_sinks = None
        if sinks_N is not None:  # a sink has no value: its dP is zero, and dS = P (dP - delta)
            grad_sinks = -(torch.exp(sinks_N - lse_TN) * delta_TN).sum(0).to(sinks_N.dtype)
        return grad_query.transpose(0, 1), keys, values, grad_sinks, None


def _stacked(tensor: Tensor, part: SegmentBatch, num_keys: int) -> Tensor:
    """`(S K, G L, D)` of a `(N, T, D)` tensor: heads that share keys are rows of one product."""
    found = _heads(tensor, part.rows_SL)
    return found.view(len(part.rows_SL) * num_keys, -1, tensor.shape[2])


def _heads(tensor: Tensor, rows_SL: Tensor) -> Tensor:
    """Rows `(S N, L, D)` of a `(N, T, D)` tensor by token number; zeros for padding."""
    heads, _, size = tensor.shape
    segments, rows = rows_SL.shape
    if available(tensor):
        out, steps = tensor.new_empty(segments * heads, rows, size), (tensor.stride(1), tensor.stride(0))
        call("gather", tensor.dtype, tensor, rows_SL, out, segments, heads, rows, size, *steps)
        return out
    found = tensor.transpose(0, 1)[rows_SL.clamp(min=0).long()].masked_fill((rows_SL < 0)[..., None, None], 0.0)
    return found.transpose(1, 2).contiguous().view(segments * heads, rows, size)


def _softmax(scores: Tensor, part: SegmentBatch, lse_TN: Tensor, how: Attention) -> None:
    """Scores `(S K, G L, R)` become weights in place; each token's log-sum-exp is kept."""
    shape = (len(part.rows_SL), lse_TN.shape[1], part.rows_SL.shape[1], part.reach_SR.shape[1])
    if available(scores) and how.plain:
        call("attention_softmax", scores.dtype, scores, part.rows_SL, part.shared_S, lse_TN, *shape, how.scaling)
        return
    if available(scores):
        sinks_N = lse_TN.new_empty(0) if how.sinks is None else how.sinks.detach().float().contiguous()
        places = (part.rows_SL, part.shared_S, _first(part, how), sinks_N)
        call("attention_softmax_with", scores.dtype, scores, *places, lse_TN, *shape, how.scaling, how.softcap or 0.0)
        return
    unseen = _unseen(part, how)
    wide = how.capped(scores.view(shape).to(lse_TN.dtype) * how.scaling).masked_fill_(unseen, -torch.inf)
    lse = wide.logsumexp(-1)
    if how.sinks is not None:
        lse = torch.logaddexp(lse, how.sinks.detach().to(lse.dtype)[:, None])
    scores.view(shape).copy_(wide.sub_(lse[..., None]).exp_().masked_fill_(unseen, 0.0))
    inside = part.rows_SL >= 0
    lse_TN[part.rows_SL[inside].long()] = lse.transpose(1, 2)[inside]


def _slopes(weights: Tensor, slopes: Tensor, part: SegmentBatch, kept: tuple[Tensor, Tensor], how: Attention) -> None:
    """In place: scores become the weights again, and dO V' the gradients of the scores; `kept` are lse and delta."""
    shape = (len(part.rows_SL), kept[0].shape[1], part.rows_SL.shape[1], part.reach_SR.shape[1])
    if available(weights) and how.plain:
        places = (part.rows_SL, part.shared_S, *kept)
        call("attention_slopes", weights.dtype, weights, slopes, *places, *shape, how.scaling)
        return
    if available(weights):
        near = (part.rows_SL, part.shared_S, _first(part, how), *kept)
        call("attention_slopes_with", weights.dtype, weights, slopes, *near, *shape, how.scaling, how.softcap or 0.0)
        return
    lse, delta = (one[part.rows_SL.clamp(min=0).long()].transpose(1, 2)[..., None] for one in kept)
    capped = how.capped(weights.view(shape).to(lse.dtype) * how.scaling)
    wide = (capped - lse).exp_().masked_fill_(_unseen(part, how), 0.0)
    found = (slopes.view(shape) - delta).mul_(wide).mul_(how.scaling)
    slopes.view(shape).copy_(found if how.softcap is None else found.mul_(1 - (capped / how.softcap) ** 2))
    weights.view(shape).copy_(wide)


def _first(part: SegmentBatch, how: Attention) -> Tensor:
    """Where in its reach each row's first key lies `(S, L)`, int32: its position less the base's."""
    rows_L = torch.arange(part.rows_SL.shape[1], dtype=torch.int32, device=part.rows_SL.device)
    base_S1 = part.base_S[:, None]
    return (how.first(base_S1 + part.shared_S[:, None] + rows_L) - base_S1).clamp_(min=0).contiguous()


def _unseen(part: SegmentBatch, how: Attention) -> Tensor:
    """Which of the keys a row does not see `(S, 1, L, R)`: all of them where it is padding."""
    rows, reach = part.rows_SL.shape[1], part.reach_SR.shape[1]
    counts_L = torch.arange(1, rows + 1, device=part.rows_SL.device)
    seen_SL = (part.shared_S[:, None] + counts_L).masked_fill(part.rows_SL < 0, 0)
    places_R = torch.arange(reach, device=part.rows_SL.device)
    unseen = places_R >= seen_SL[..., None]
    if how.local:
        unseen |= places_R < _first(part, how)[..., None]
    return unseen[:, None]


def _row_dots(grad: Tensor, output: Tensor, wide: torch.dtype) -> Tensor:
    """rowsum(dO * O) `(T, N)` of gradients `(N, T, D)` and outputs `(T, N, D)`."""
    tokens, heads, size = output.shape
    if not available(grad):
        return (grad.transpose(0, 1).to(wide) * output).sum(-1)
    delta_TN = output.new_empty(tokens, heads, dtype=wide)
    steps = (grad.stride(1), grad.stride(0), heads * size, size)
    call("row_dots", grad.dtype, grad, output, delta_TN, tokens, heads, size, *steps)
    return delta_TN


def _scatter(found: Tensor, rows_SL: Tensor, out: Tensor) -> None:
    """Rows `(S N, L, D)` to their places in `(T, N, D)`."""
    _, heads, size = out.shape
    segments, rows = rows_SL.shape
    if available(out):
        call("scatter", out.dtype, found, rows_SL, out, segments, heads, rows, size)
    else:
        inside = rows_SL >= 0
        out[rows_SL[inside].long()] = found.view(segments, heads, rows, size).transpose(1, 2)[inside]


def _collect(found: Tensor, part: SegmentBatch, total: Tensor) -> None:
    """The same where places are shared: added up."""
    _, heads, size = total.shape
    segments, reach = part.reach_SR.shape
    if available(found):
        call("scatter_add", found.dtype, found, part.reach_SR, total, segments, heads, reach, size)
    else:
        inside = part.reach_SR >= 0
        rows = found.view(segments, heads, reach, size).transpose(1, 2)[inside]
        total.index_add_(0, part.reach_SR[inside].long(), rows.to(total.dtype))
