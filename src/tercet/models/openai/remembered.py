"""Prompts that were read lately, by their keys and values: who begins like one of them waits for the rest alone.

A prompt that comes again takes all of it, and its answer is the same to the last bit. Another one that begins alike,
such as the next turn of a conversation, is read from where they part; that rounds as a batch of another size does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tercet.models.attention import Attention
from tercet.models.forest import Forest, Past, Tree, pack_forest
from tercet.models.forest_cpu import Segment
from tercet.models.kv_cache import Cache, Prefill
from tercet.models.trie import SHARED, alike

Kept = dict[int, tuple[Tensor, Tensor]]  # keys and values of each layer, (1, K, T, D)


class ReadPrompt(NamedTuple):
    """A prompt's token ids, its keys and values, and its last hidden state `(1, H)`."""

    ids: np.ndarray
    kept: Kept
    last: Tensor


class PromptMemory:
    """What was read last, the last used last: at most `most` tokens."""

    def __init__(self, most: int) -> None:
        self.most, self.known = most, OrderedDict[bytes, ReadPrompt]()

    def find(self, ids: Sequence[int]) -> tuple[ReadPrompt, int] | None:
        """The prompt that these tokens are, or that they share most with, and how many; None: too few."""
        own = np.asarray(ids, np.int64)
        name, length = own.tobytes(), len(own)
        if name not in self.known:  # at least one token is left to be read
            shared = {key: min(alike(own, one.ids), length - 1) for key, one in self.known.items()}
            name = max(shared, key=shared.__getitem__, default=b"")
            length = shared.get(name, 0)
            if length < SHARED:
                return None
        self.known.move_to_end(name)
        return self.known[name], length

    def keep(self, ids: Sequence[int], kept: Kept, last: Tensor) -> None:
        """Remember a prompt in place of those that nobody used for longest."""
        own = np.asarray(ids, np.int64)
        if len(own) > self.most:
            return
        self.known[own.tobytes()] = ReadPrompt(own, kept, last)
        while sum(len(one.ids) for one in self.known.values()) > self.most:
            self.known.popitem(last=False)


class NotingPrefill(Prefill):
    """Reads whole prompts, and notes the keys and values of each."""

    def __init__(self, forest: Forest, cache: Cache, first: int, counts: list[int]) -> None:
        super().__init__(forest, cache, first, counts)
        self.read: list[Kept] = [{} for _ in counts]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """See `Prefill.attend`."""
        for segment, kept in zip(self.forest.segments, self.read, strict=False):
            own = slice(segment.start, segment.end)
            kept[layer] = key[:, :, own].clone(), value[:, :, own].clone()
        return super().attend(layer, query, key, value, how)


class Continuation(Prefill):
    """Reads what is left of one prompt behind its first `length` tokens, whose keys and values are known."""

    def __init__(
        self, ids: Sequence[int], before: ReadPrompt, length: int, cache: Cache, first: int, count: int
    ) -> None:
        self.rest = pack_forest([Tree(ids[length:], [])])
        kept = {layer: ([k[:, :, :length]], [v[:, :, :length]]) for layer, (k, v) in before.kept.items()}
        self.rest.past = Past(length, kept, [])
        super().__init__(replace(self.rest, segments=[Segment(0, len(ids))], past=None), cache, first, [count])
        self.read: Kept = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention of the rest; the cache is filled with all of the prompt."""
        assert self.rest.past is not None
        keys, values = self.rest.past.kept[layer]
        self.read[layer] = torch.cat([*keys, key], dim=2), torch.cat([*values, value], dim=2)
        self.cache.fill(layer, *self.read[layer], self)
        return self.rest.attend(layer, query, key, value, how)

    def give(self, before: ReadPrompt) -> None:
        """Fill the cache where nothing is left to be read."""
        for layer, (key, value) in before.kept.items():
            self.cache.fill(layer, key, value, self)
