"""The KV cache: keys and values of every row being decoded, and of the prefix that all prompts share.

A shared prefix (few-shot examples, a long instruction) is computed and kept once. Attention to it and to a row's own
past are two softmaxes that are merged by their log-sum-exps: out = w a + (1 - w) b, w = sigmoid(lse_a - lse_b).

Shape suffixes: B rows, K key heads, N query heads, L cache length, P prefix length, D size of a key, E of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tercet.kernels.native import available, call
from tercet.models.attention import Attention
from tercet.models.forest import Forest
from tercet.models.policy import Policy


class KeyStore:
    """Keys `(R, K, L, D)` and values `(R, K, L, E)` of every layer, for R rows or pages of L tokens.

    Layers of one shape lie in one tensor `(layers, R, K, L, D)`, so that a row moves at once.
    """

    def __init__(self, policy: Policy, rows: int, length: int) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.blocks: list[Tensor] = []
        shapes, like = policy.key_shapes(), policy.head().weight
        for heads, *sizes in dict.fromkeys(shapes.values()):
            layers = [layer for layer, shape in shapes.items() if shape == (heads, *sizes)]
            blocks = [like.new_zeros(len(layers), rows, heads, length, size) for size in sizes]
            for kept, block in zip((self.keys, self.values), blocks, strict=True):
                kept.update(zip(layers, block.unbind(0), strict=True))
            self.blocks += blocks
        self.rows, self.length = rows, length
        self.heads = sorted({shape.heads for shape in shapes.values()})  # the numbers of key heads that layers have


class Cache:
    """Keys and values of the rows being decoded; passed to attention as the layout."""

    def __init__(self, kept: KeyStore, capacity: int, prefix: Prefix | None = None) -> None:
        self.kept, self.capacity, self.prefix = kept, capacity, prefix
        self.lengths = torch.zeros(capacity, dtype=torch.long, device=kept.blocks[0].device)
        self.size, self.reach = 0, 0
        self.mask = self.bias = self.seen = torch.empty(0)
        self.places: dict[int, Tensor] = {}  # by number of key heads

    @property
    def offset(self) -> int:
        """Position of a row's first own token."""
        return self.prefix.length if self.prefix else 0

    def reserve(self, first: int, count: int, length: int, most: int) -> bool:
        """Take slots `first` and on for `count` rows of `length` common tokens, growing to `most`; whether they fit."""
        return first + count <= self.capacity

    def shape(self, size: int, reach: int) -> tuple[int, int]:
        """The rows and the reach that a step is filled up to when it has `size` rows and sees `reach` tokens."""
        return size, reach

    def begin(self, size: int, reach: int) -> None:
        """Prepare one decoding step of the first `size` rows: who sees what, and where new keys and values go.

        `reach` is the longest row's length with its new token; the caller knows it without asking the device.
        """
        self._see(size, reach)
        for heads in self.kept.heads:
            pairs = torch.arange(size * heads, device=self.lengths.device).view(size, heads)  # a row and a key head
            self.places[heads] = (pairs * self.kept.length + self.lengths[:size, None]).flatten()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """One new token per row: store its key and value, attend to the row's whole past."""
        for past, new in ((self.kept.keys[layer], key), (self.kept.values[layer], value)):
            width = new.shape[3]
            past.view(-1, width).index_copy_(0, self.places[key.shape[1]], new[0].transpose(0, 1).reshape(-1, width))
        grouped = query[0].transpose(0, 1).reshape(self.size, key.shape[1], -1, query.shape[3])
        own = self._past(self.kept.keys[layer]), self._past(self.kept.values[layer])
        if self.prefix is None and how.plain and key.shape[3] == value.shape[3] and not available(query):
            output = scaled_dot_product_attention(grouped, *own, self.mask, scale=how.scaling)
            return output.reshape(1, self.size, query.shape[1], -1)
        if available(query):
            found = _attend_past(grouped.contiguous(), *own, (self._first(how), self.seen), how)
        else:
            found = attend(grouped, *own, how, self._bias(how).expand(-1, -1, grouped.shape[2], -1))
        other = None
        if self.prefix is not None:
            other = self.prefix.seen(layer, grouped, how, self.lengths[: self.size] + self.offset)
        return settle(found, other, how).reshape(1, self.size, query.shape[1], -1)

    def fill(self, layer: int, key: Tensor, value: Tensor, prompts: Prefill) -> None:
        """Keep the keys and values of prompts, `(1, K, T, D)`, for each of their rows."""
        slot = prompts.first
        for segment, count in zip(prompts.forest.segments, prompts.counts, strict=True):
            own, past = slice(segment.start, segment.end), slice(0, segment.end - segment.start)
            self.kept.keys[layer][slot : slot + count, :, past] = key[:, :, own]
            self.kept.values[layer][slot : slot + count, :, past] = value[:, :, own]
            slot += count

    def move(self, source: int, target: int, length: int) -> None:
        """Bring a row of `length` tokens into another slot, whose row has ended."""
        past = slice(0, length)
        for block in self.kept.blocks:
            block[:, target, :, past] = block[:, source, :, past]
        self.lengths[target] = self.lengths[source]

    def drop(self, slot: int) -> None:
        """The row in a slot has ended."""
        self.lengths[slot] = 0

    def _see(self, size: int, reach: int) -> None:
        """Set what each of `size` rows sees in a step; none reaches further than `reach`."""
        self.size, self.reach, self.seen = size, reach, self.lengths[:size] + 1
        if available(self.kept.blocks[0]):  # the kernel counts by itself
            return
        seen = torch.arange(reach, device=self.lengths.device) <= self.lengths[:size, None]
        self.mask = seen[:, None, None]
        self.bias = hiding(~self.mask, self.kept.blocks[0].dtype)

    def _first(self, how: Attention) -> Tensor:
        """The first of its own tokens that each row of this step sees `(B,)`; empty where that is all of them."""
        if not how.local:
            return self.seen[:0]
        return (how.first(self.lengths[: self.size] + self.offset) - self.offset).clamp_(min=0)

    def _bias(self, how: Attention) -> Tensor:
        """What is added to the scores of this step, `(B, 1, 1, reach)`: minus infinity where a key is not seen."""
        if not how.local:
            return self.bias
        before = torch.arange(self.reach, device=self.lengths.device) < self._first(how)[:, None]
        return self.bias.masked_fill(before[:, None, None], -torch.inf)

    def _past(self, kept: Tensor) -> Tensor:
        """One layer's keys or values of the rows of this step, `(B, K, L, D)`."""
        return kept[: self.size, :, : self.reach]


class Prefix:
    """Keys and values of the P tokens that every prompt begins with; filled by one forward pass."""

    def __init__(self, policy: Policy, forest: Forest) -> None:
        self.length, self.forest = forest.num_tokens, forest
        self.keys: dict[int, Tensor] = {}  # (1, K, P, D) by layer
        self.values: dict[int, Tensor] = {}
        policy.hidden(self, forest.input_ids, forest.position_ids)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention within the prefix; keeps its keys and values."""
        self.keys[layer], self.values[layer] = key.contiguous(), value.contiguous()
        return self.forest.attend(layer, query, key, value, how)

    def seen(self, layer: int, grouped: Tensor, how: Attention, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """What `(B, K, G, D)` queries at some positions find in the prefix: output and log-sum-exp.

        All rows share one product.
        """
        size, heads, group, width = grouped.shape
        flat = grouped.transpose(0, 1).reshape(1, heads, size * group, width)
        bias = None
        if how.local:
            before = torch.arange(self.length, device=positions_B.device) < how.first(positions_B)[:, None]
            bias = hiding(before, grouped.dtype).repeat_interleave(group, dim=0)
        output, lse = attend(flat, self.keys[layer], self.values[layer], how, bias)
        output = output.reshape(heads, size, group, -1).transpose(0, 1)
        return output, lse.reshape(heads, size, group).transpose(0, 1)


class Prefill:
    """Reads prompts as a forest and shares each prompt's keys and values out to its rows."""

    def __init__(self, forest: Forest, cache: Cache, first: int, counts: list[int]) -> None:
        self.forest, self.cache, self.first, self.counts = forest, cache, first, counts

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention of the prompts; fills the cache on the way."""
        self.cache.fill(layer, key, value, self)
        if self.cache.prefix is None:
            return self.forest.attend(layer, query, key, value, how)
        heads = key.shape[1]
        grouped = query[0].transpose(0, 1).reshape(query.shape[2], heads, -1, query.shape[3])  # (T, K, G, D)
        positions_T = self.forest.position_ids + self.cache.offset
        output, lse = self.cache.prefix.seen(layer, grouped, how, positions_T)
        own = self._own(query, key, value, how)
        return settle(own, (output.flatten(1, 2), lse.flatten(1, 2)), how)[None]

    def _own(self, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> tuple[Tensor, Tensor]:
        """Causal attention of each prompt to itself, `(T, N, D)`, and its log-sum-exp."""
        share, offset = query.shape[1] // key.shape[1], self.cache.offset
        parts = []
        for segment in self.forest.segments:
            own, bias = slice(segment.start, segment.end), None
            k, v = (tensor[:, :, own].repeat_interleave(share, dim=1) for tensor in (key, value))
            if how.local:
                places = torch.arange(segment.end - segment.start, device=query.device)
                before = places < how.first(places + offset)[:, None] - offset
                bias = hiding(before, query.dtype)
            parts.append(attend(query[:, :, own], k, v, how, bias, causal=True))
        outputs = torch.cat([output[0].transpose(0, 1) for output, _ in parts])
        return outputs, torch.cat([lse[0].transpose(0, 1) for _, lse in parts])


def _attend_past(
    query: Tensor, keys: Tensor, values: Tensor, bounds: tuple[Tensor, Tensor], how: Attention
) -> tuple[Tensor, Tensor]:
    """`(B, K, G, D)` queries over each row's own past between two bounds, with log-sum-exps `(B, K, G)`.

    No row reads another's reach.
    """
    rows, heads, group, width = query.shape
    size = values.shape[3]
    out, lse = query.new_empty(rows, heads, group, size), query.new_empty(rows, heads, group, dtype=torch.float32)
    shape = (rows, heads * group, heads, width, size)
    steps = (keys.stride(0), keys.stride(1), values.stride(0), values.stride(1))
    numbers = (*shape, *steps, how.scaling, how.softcap or 0.0)
    call("attend_past", query.dtype, query, keys, values, *bounds, out, lse, *numbers)
    return out, lse


def attend(
    query: Tensor, key: Tensor, value: Tensor, how: Attention, bias: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Softmax attention of `(B, H, Q, D)` queries, with the log-sum-exp `(B, H, Q)` of its scores in fp32.

    Sinks have no part in it: `settle` counts them once. A query that sees no key finds zero, and minus infinity.
    """
    usual = how.softcap is None and not how.local and key.shape[3] == value.shape[3]
    if query.device.type == "cpu" and usual:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, 0.0, causal, attn_mask=bias, scale=how.scaling)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = how.capped(query.to(wide) @ key.to(wide).transpose(-1, -2) * how.scaling)
    if bias is not None:
        scores = scores + bias
    if causal:
        length = query.shape[2]
        later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp() if how.local else scores.softmax(-1)
    return (weights @ value.to(wide)).to(query.dtype), lse


def settle(own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor] | None, how: Attention) -> Tensor:
    """Attention's output `(B, N, E)` from that to a row's own keys, to other ones, and to the sinks."""
    output = own[0] if other is None else merge(own, other)
    if how.sinks is None:
        return output
    lse = own[1] if other is None else torch.logaddexp(own[1], other[1])
    return how.sunk(output.reshape(len(output), -1, output.shape[-1]), lse.reshape(len(lse), -1))


def hiding(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores so that some keys are not seen: minus infinity there, else zero."""
    return torch.zeros_like(unseen, dtype=dtype).masked_fill_(unseen, -torch.inf)


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """One softmax from two over disjoint keys."""
    weight = torch.sigmoid(a[1] - b[1])[..., None]
    return (weight * a[0] + (1 - weight) * b[0]).to(a[0].dtype)
