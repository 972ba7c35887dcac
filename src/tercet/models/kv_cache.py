"""The KV cache: keys and values of every row being decoded, and of the prefix that all prompts share.

A shared prefix (few-shot examples, a long instruction) is computed and kept once. Attention to it and to a row's own
past are two softmaxes that are merged by their log-sum-exps: out = w a + (1 - w) b, w = sigmoid(lse_a - lse_b).

Shape suffixes: B rows, K key heads, N query heads, L cache length, P prefix length, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tercet.kernels.native import available, call
from tercet.models.attention import Attention
from tercet.models.forest import Forest
from tercet.models.policy import Policy


class Cache:
    """Keys and values of the rows being decoded, `(layers, B, K, L, D)`; passed to attention as the layout."""

    def __init__(self, keys: Tensor, values: Tensor, capacity: int, prefix: Prefix | None = None) -> None:
        self.keys, self.values, self.capacity, self.prefix = keys, values, capacity, prefix
        self.lengths = torch.zeros(capacity, dtype=torch.long, device=keys.device)
        self.size, self.reach = 0, 0
        self.mask = self.bias = self.places = self.seen = torch.empty(0)

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
        _, _, heads, most, _ = self.keys.shape
        self._see(size, reach)
        pairs = torch.arange(size * heads, device=self.lengths.device).view(size, heads)  # a row and a key head
        self.places = (pairs * most + self.lengths[:size, None]).flatten()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """One new token per row: store its key and value, attend to the row's whole past."""
        heads, width = query.shape[1], query.shape[3]
        for past, new in ((self.keys[layer], key), (self.values[layer], value)):
            past.view(-1, width).index_copy_(0, self.places, new[0].transpose(0, 1).reshape(-1, width))
        grouped = query[0].transpose(0, 1).reshape(self.size, key.shape[1], -1, width)
        own = self._past(self.keys[layer]), self._past(self.values[layer])
        if available(query):
            output, lse = _attend_past(grouped.contiguous(), *own, self.seen, how)
            if self.prefix is not None:
                output = merge((output, lse), self.prefix.seen(layer, grouped, how))
        elif self.prefix is not None:
            bias = self.bias.expand(-1, -1, grouped.shape[2], -1)
            output = merge(attend(grouped, *own, how, bias), self.prefix.seen(layer, grouped, how))
        else:
            output = scaled_dot_product_attention(grouped, *own, self.mask, scale=how.scaling)
        return output.reshape(1, self.size, heads, width)

    def fill(self, layer: int, key: Tensor, value: Tensor, prompts: Prefill) -> None:
        """Keep the keys and values of prompts, `(1, K, T, D)`, for each of their rows."""
        slot = prompts.first
        for segment, count in zip(prompts.forest.segments, prompts.counts, strict=True):
            own, past = slice(segment.start, segment.end), slice(0, segment.end - segment.start)
            self.keys[layer, slot : slot + count, :, past] = key[:, :, own]
            self.values[layer, slot : slot + count, :, past] = value[:, :, own]
            slot += count

    def move(self, source: int, target: int, length: int) -> None:
        """Bring a row of `length` tokens into another slot, whose row has ended."""
        past = slice(0, length)
        self.keys[:, target, :, past] = self.keys[:, source, :, past]
        self.values[:, target, :, past] = self.values[:, source, :, past]
        self.lengths[target] = self.lengths[source]

    def drop(self, slot: int) -> None:
        """The row in a slot has ended."""
        self.lengths[slot] = 0

    def _see(self, size: int, reach: int) -> None:
        """Set what each of `size` rows sees in a step; none reaches further than `reach`."""
        self.size, self.reach, self.seen = size, reach, self.lengths[:size] + 1
        if available(self.keys):  # the kernel counts by itself
            return
        seen = torch.arange(reach, device=self.lengths.device) <= self.lengths[:size, None]
        self.mask = seen[:, None, None]
        self.bias = torch.zeros_like(self.mask, dtype=self.keys.dtype).masked_fill_(~self.mask, -torch.inf)

    def _past(self, kept: Tensor) -> Tensor:
        """One layer's keys or values of the rows of this step, `(B, K, L, D)`."""
        return kept[: self.size, :, : self.reach]


class Prefix:
    """Keys and values `(layers, K, P, D)` of the tokens that every prompt begins with; filled by one forward pass."""

    def __init__(self, policy: Policy, forest: Forest) -> None:
        self.length, self.forest = forest.num_tokens, forest
        keys, values = empty_cache(policy, 1, self.length)
        self.keys, self.values = keys[:, 0], values[:, 0]
        policy.hidden(self, forest.input_ids, forest.position_ids)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention within the prefix; keeps its keys and values."""
        self.keys[layer], self.values[layer] = key[0], value[0]
        return self.forest.attend(layer, query, key, value, how)

    def seen(self, layer: int, grouped: Tensor, how: Attention) -> tuple[Tensor, Tensor]:
        """What `(B, K, G, D)` queries find in the prefix: output and log-sum-exp. All rows share one product."""
        size, heads, group, width = grouped.shape
        flat = grouped.transpose(0, 1).reshape(1, heads, size * group, width)
        output, lse = attend(flat, self.keys[layer][None], self.values[layer][None], how)
        output = output.reshape(heads, size, group, width).transpose(0, 1)
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
        own_part = self._own(query, key, value, how)
        heads = key.shape[1]
        grouped = query[0].transpose(0, 1).reshape(query.shape[2], heads, -1, query.shape[3])  # (T, K, G, D)
        output, lse = self.cache.prefix.seen(layer, grouped, how)
        merged = merge(own_part, (output.flatten(1, 2), lse.flatten(1, 2)))
        return merged[None]

    def _own(self, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> tuple[Tensor, Tensor]:
        """Causal attention of each prompt to itself, `(T, N, D)`, and its log-sum-exp."""
        share = query.shape[1] // key.shape[1]
        parts = []
        for segment in self.forest.segments:
            own = slice(segment.start, segment.end)
            k, v = (tensor[:, :, own].repeat_interleave(share, dim=1) for tensor in (key, value))
            parts.append(attend(query[:, :, own], k, v, how, causal=True))
        outputs = torch.cat([output[0].transpose(0, 1) for output, _ in parts])
        return outputs, torch.cat([lse[0].transpose(0, 1) for _, lse in parts])


def _attend_past(query: Tensor, keys: Tensor, values: Tensor, seen_B: Tensor, how: Attention) -> tuple[Tensor, Tensor]:
    """`(B, K, G, D)` queries over each row's own past, with log-sum-exps `(B, K, G)`; no row reads another's reach."""
    rows, heads, group, width = query.shape
    out, lse = torch.empty_like(query), query.new_empty(rows, heads, group, dtype=torch.float32)
    shape = (rows, heads * group, heads, width, keys.stride(0), keys.stride(1))
    call("attend_past", query.dtype, query, keys, values, seen_B, out, lse, *shape, how.scaling)
    return out, lse


def attend(
    query: Tensor, key: Tensor, value: Tensor, how: Attention, bias: Tensor | None = None, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Softmax attention of `(B, H, Q, D)` queries, with the log-sum-exp `(B, H, Q)` of its scores in fp32."""
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, 0.0, causal, attn_mask=bias, scale=how.scaling)
    scores = query.float() @ key.float().transpose(-1, -2) * how.scaling
    if bias is not None:
        scores = scores + bias
    if causal:
        length = query.shape[2]
        later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ value.float()).to(query.dtype), scores.logsumexp(-1)


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """One softmax from two over disjoint keys."""
    weight = torch.sigmoid(a[1] - b[1])[..., None]
    return (weight * a[0] + (1 - weight) * b[0]).to(a[0].dtype)


def empty_cache(policy: Policy, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Empty keys and values, `(layers, rows, K, length, D)`."""
    config, head = policy.model.config.get_text_config(), policy.head()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (config.num_hidden_layers, rows, config.num_key_value_heads, length, size)
    return head.new_zeros(shape), head.new_zeros(shape)
