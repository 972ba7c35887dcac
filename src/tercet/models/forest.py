"""One layout for every loss: trees of a shared trunk (prompt) and leaves (completions) on one flat row of tokens.

A leaf token attends to its whole trunk and to its own leaf's past; positions continue from the trunk. So each prompt
token is computed once, nothing is padded, and the same code trains SFT (one leaf), DPO (two) and GRPO (sixteen).

Works with any causal LM whose attention goes through transformers' attention interface; others are refused.
Shape suffixes: T tokens of the batch, P predicted tokens, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from tercet.kernels.native import available
from tercet.models import forest_cpu
from tercet.models.forest_cuda import Layout

NAME = "forest"


class ForestError(ValueError):
    """A model or a batch that the forest layout cannot carry."""


class Leaf(NamedTuple):
    """One completion: token ids, and which of them are trained on."""

    token_ids: Sequence[int]
    mask: Sequence[bool]


class Tree(NamedTuple):
    """A trunk and its leaves. SFT: empty trunk, one leaf. Example: `Tree([5, 9], [Leaf([7, 2], [True, True])])`."""

    trunk: Sequence[int]
    leaves: Sequence[Leaf]

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes for this tree."""
        return len(self.trunk) + sum(len(leaf.token_ids) for leaf in self.leaves)


class Segment(NamedTuple):
    """Tokens `[start, end)` that attend to `[trunk_start, trunk_end)` and causally to themselves."""

    start: int
    end: int
    trunk_start: int
    trunk_end: int


class Owners(NamedTuple):
    """Which leaf each of P losses belongs to, how many losses each leaf has (L,), and how many leaves have any."""

    leaf_P: Tensor
    counts_L: Tensor
    leaves: int


@dataclass
class Forest:
    """A flat batch of trees. `leaf_P` says which leaf (counted over the batch) each predicted token belongs to."""

    input_ids: Tensor  # (T,)
    position_ids: Tensor  # (T,)
    segments: list[Segment]
    predict_P: Tensor  # index into T of the hidden state that predicts the token
    targets_P: Tensor
    leaf_P: Tensor
    num_leaves: int
    last_L: Tensor  # index into T of each leaf's last token
    num_tokens: int  # without the filling at the end
    counts_L: Tensor  # trained tokens of each leaf
    num_trained: int  # leaves with a trained token
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    padded_masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    groups: list[forest_cpu.Group] | None = None  # for the CPU
    layout: Layout | None = None  # for a card

    def to(self, device: torch.device) -> Forest:
        """The same forest on another device."""
        return self.moved(lambda tensor: tensor.to(device))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Forest:
        """The same forest with its tensors where `move` brings them."""
        moved: dict[str, Any] = {
            k: move(getattr(self, k))
            for k in ("input_ids", "position_ids", "predict_P", "targets_P", "leaf_P", "last_L", "counts_L")
        }
        return replace(self, masks={}, padded_masks={}, layout=None, **moved)

    @property
    def owners(self) -> Owners:
        """Whose the trained tokens are."""
        return Owners(self.leaf_P, self.counts_L, self.num_trained)

    def attend(self, _layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention of `(1, N, T, D)` queries over this layout; returns `(1, T, N, D)`."""
        if query.is_cuda:
            self.layout = self.layout or Layout(self.segments, len(self.input_ids), query.device)
            return self.layout.attend(query, key, value, scaling)
        return _attend_segments(self, query, key, value, scaling)


def plant(trees: Sequence[Tree], multiple: int = 1) -> Forest:
    """Lay trees out flat. Leaves without a trunk cannot have their first token predicted, so it is never trained.

    With `multiple` the row is filled up with a segment of its own: few distinct lengths, few kernels to build.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    predict: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    last: list[int] = []
    for tree in trees:
        trunk_start, trunk_end = len(ids), len(ids) + len(tree.trunk)
        ids.extend(tree.trunk)
        positions.extend(range(len(tree.trunk)))
        if tree.trunk:
            segments.append(Segment(trunk_start, trunk_end, trunk_start, trunk_start))
        for leaf in tree.leaves:
            start = len(ids)
            ids.extend(leaf.token_ids)
            positions.extend(range(len(tree.trunk), len(tree.trunk) + len(leaf.token_ids)))
            segments.append(Segment(start, len(ids), trunk_start, trunk_end))
            for offset, trained in enumerate(leaf.mask):
                if trained and (offset or tree.trunk):
                    predict.append(start + offset - 1 if offset else trunk_end - 1)
                    targets.append(leaf.token_ids[offset])
                    owners.append(len(last))
            last.append(len(ids) - 1)
    num_tokens = len(ids)
    if missing := -num_tokens % multiple:
        ids.extend([0] * missing)
        positions.extend(range(missing))
        segments.append(Segment(num_tokens, len(ids), num_tokens, num_tokens))
    long = torch.long
    leaf_P = torch.tensor(owners, dtype=long)
    return Forest(
        input_ids=torch.tensor(ids, dtype=long),
        position_ids=torch.tensor(positions, dtype=long),
        segments=segments,
        predict_P=torch.tensor(predict, dtype=long),
        targets_P=torch.tensor(targets, dtype=long),
        leaf_P=leaf_P,
        num_leaves=len(last),
        last_L=torch.tensor(last, dtype=long),
        num_tokens=num_tokens,
        counts_L=torch.bincount(leaf_P, minlength=len(last)),
        num_trained=len(set(owners)),
    )


class Attends(Protocol):
    """What a forward pass hands to every attention layer: a Forest, or the generator's cache."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention output `(1, T, N, D)`."""
        ...


def forest_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function registered with transformers; the layout travels as the keyword `forest` of the forward call."""
    layout: Attends | None = options.get("forest")
    if layout is None:
        raise ForestError("this model was loaded for the forest layout: call it through tercet.models.policy.Policy")
    for name in ("sliding_window", "softcap", "s_aux"):
        if options.get(name) is not None:
            raise ForestError(f"the forest layout does not support attention with {name}; use a model without it")
    scaling = options.get("scaling")
    scale = float(scaling) if scaling is not None else query.shape[-1] ** -0.5
    return layout.attend(int(module.layer_idx), query, key, value, scale), None  # type: ignore[arg-type]


def register() -> None:
    """Make `attn_implementation="forest"` known to transformers, once.

    Masks are the layout's own business. With a function registered for them, even one that makes none, transformers
    would look for packed sequences in the positions in every pass, and a card would be waited for.
    """
    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, forest_attention)


def _attend_segments(forest: Forest, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    if available(query):
        if forest.groups is None:
            forest.groups = forest_cpu.groups(forest.segments, query.shape[1])
        found = forest_cpu.attend(query[0], key[0], value[0], forest.groups, scaling)
        return found.transpose(0, 1)[None]
    return _Segments.apply(query[0], key[0], value[0], forest, scaling).transpose(0, 1)[None]


class _Segments(torch.autograd.Function):
    """Attention segment by segment, never a `(T, T)` mask; backward writes straight into three gradient tensors.

    PyTorch's CPU flash backward and the gradients of slices cost more than the whole rest of a training step, hence
    the plain matrix products below: with P = softmax(S), dS = P * (dP - rowsum(dO * O)), dQ = dS K, dK = dS' Q.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, forest: Forest, scaling: float) -> Tensor:
        output = torch.empty_like(query)  # (N, T, D)
        shared = key.shape[0] != query.shape[0]
        for segment in forest.segments:
            own = slice(segment.start, segment.end)
            mask = _leaf_mask(forest, segment, query) if segment.trunk_end > segment.trunk_start else None
            output[:, own] = scaled_dot_product_attention(
                query[None, :, own],
                _reach(key, segment)[None],
                _reach(value, segment)[None],
                mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=shared,
            )[0]
        ctx.save_for_backward(query, key, value, output)
        ctx.forest, ctx.scaling = forest, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output = ctx.saved_tensors
        (grad,) = grads
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        delta = (grad.to(wide) * output).sum(-1, keepdim=True)  # (N, T, 1)
        for segment in ctx.forest.segments:
            own, trunk = slice(segment.start, segment.end), slice(segment.trunk_start, segment.trunk_end)
            length, shared = segment.end - segment.start, segment.trunk_end - segment.trunk_start
            rows, reach = _round(length), _round(shared + length)
            mask = _padded_mask(ctx.forest, shared, length, query.device)
            dq, dk, dv = _segment_backward(
                _pad(query[:, own], rows),
                _pad(grad[:, own], rows),
                _pad(delta[:, own], rows),
                _pad(_reach(key, segment), reach),
                _pad(_reach(value, segment), reach),
                mask,
                ctx.scaling,
            )
            grad_query[:, own] = dq[:, :length]
            for total, piece in ((grad_key, dk), (grad_value, dv)):
                total[:, own] += piece[:, shared : shared + length]
                if shared:
                    total[:, trunk] += piece[:, :shared]
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _segment_backward(  # noqa: PLR0913  (the six tensors of attention's backward)
    query: Tensor, grad: Tensor, delta: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one segment. Heads that share keys are stacked as rows of one product per key head."""
    num_keys = keys.shape[0]
    heads, length, size = query.shape
    rows = heads // num_keys * length
    stacked = query.reshape(num_keys, rows, size)
    upstream = grad.reshape(num_keys, rows, size)
    scores = (stacked @ keys.transpose(1, 2)).to(delta.dtype).mul_(scaling)
    scores.view(num_keys, -1, length, keys.shape[1]).masked_fill_(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    slope = (upstream @ values.transpose(1, 2)).to(delta.dtype)
    slope = slope.sub_(delta.reshape(num_keys, rows, 1)).mul_(weights).mul_(scaling).to(query.dtype)
    grad_values = weights.to(query.dtype).transpose(1, 2) @ upstream
    return (slope @ keys).view(heads, length, size), slope.transpose(1, 2) @ stacked, grad_values


def _reach(tensor: Tensor, segment: Segment) -> Tensor:
    """Keys or values `(N, trunk + own, D)` a segment may look at."""
    own = tensor[:, segment.start : segment.end]
    if segment.trunk_end == segment.trunk_start:
        return own
    return torch.cat((tensor[:, segment.trunk_start : segment.trunk_end], own), dim=1)


def _round(length: int) -> int:
    """Up to a multiple of 32: few distinct shapes, so that few matrix kernels are built."""
    return -(-length // 32) * 32


def _pad(tensor: Tensor, rows: int) -> Tensor:
    missing = rows - tensor.shape[1]
    return nn.functional.pad(tensor, (0, 0, 0, missing)) if missing else tensor


def _padded_mask(forest: Forest, trunk: int, leaf: int, device: torch.device) -> Tensor:
    """Who sees whom in `_segment_backward`; padding rows see the first key, and carry no gradient."""
    mask = forest.padded_masks.get((trunk, leaf))
    if mask is None:
        mask = torch.zeros(_round(leaf), _round(trunk + leaf), dtype=torch.bool, device=device)
        mask[:, 0] = True
        mask[:leaf, : trunk + leaf] = torch.ones(leaf, trunk + leaf, dtype=torch.bool, device=device).tril(trunk)
        forest.padded_masks[trunk, leaf] = mask
    return mask


def _leaf_mask(forest: Forest, segment: Segment, like: Tensor) -> Tensor:
    trunk, leaf = segment.trunk_end - segment.trunk_start, segment.end - segment.start
    mask = forest.masks.get((trunk, leaf))
    if mask is None:
        mask = torch.ones(leaf, trunk + leaf, dtype=torch.bool, device=like.device).tril(trunk)
        forest.masks[trunk, leaf] = mask
    return mask
