"""One layout for every loss: trees of a shared trunk (prompt) and leaves (completions) on one flat row of tokens.

A leaf token attends to its whole trunk and to its own leaf's past; positions continue from the trunk. So each prompt
token is computed once, nothing is padded, and the same code trains SFT (one leaf), DPO (two) and GRPO (sixteen). What
several trees begin with alike (worked examples, a system prompt, earlier turns) may be computed once, too: then the
batch is a trie of any depth (`tercet.models.trie`), and a token attends to all its ancestors.

Works with any causal LM whose attention goes through transformers' attention interface; others are refused.
Shape suffixes: T tokens of the batch, P predicted tokens, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tercet.models import forest_cpu
from tercet.models.attention import CARRIED, LAYOUT, POSITIONS, Attention, AttentionError, options_of, tuned
from tercet.models.forest_cpu import Segment
from tercet.models.forest_cuda import Layout
from tercet.models.state_plan import StatePlan, state_plan
from tercet.models.trie import Path, grow

NAME = "forest"
Span = tuple[int, int]


class ForestError(ValueError):
    """A model or a batch that the forest layout cannot carry."""


class MissingLayoutError(ForestError):
    """Attention was called without a layout."""


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
        """Tokens the model computes for this tree where it shares none with others."""
        return len(self.trunk) + sum(len(leaf.token_ids) for leaf in self.leaves)

    @property
    def path_lengths(self) -> list[int]:
        """How long each path from the root to a leaf is."""
        return [len(self.trunk) + len(leaf.token_ids) for leaf in self.leaves] or [len(self.trunk)]


class Owners(NamedTuple):
    """Which leaf each of P losses belongs to, how many losses each leaf has (L,), and how many leaves have any."""

    leaf_P: Tensor
    counts_L: Tensor
    leaves: int


@dataclass(frozen=True)
class Past:
    """What the trunks above a part of a forest left behind, from the root on: `length` tokens.

    Keys and values `(1, K, T, D)` by layer, one pair of lists for all trunks, and hidden states that predict a token.
    """

    length: int
    kept: dict[int, tuple[list[Tensor], list[Tensor]]]
    states: list[Tensor]

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A part's own keys and values, then those of its trunks."""
        keys, values = ([one.to(key.dtype) for one in side] for side in self.kept[layer])
        return torch.cat([key, *keys], dim=2), torch.cat([value, *values], dim=2)


@dataclass
class Forest:
    """A flat batch of trees. `leaf_P` is the leaf (counted over the batch) that each predicted token belongs to."""

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
    groups: dict[Attention, list[forest_cpu.SegmentBatch]] | None = None  # for the CPU, by what bounds the keys seen
    layout: Layout | None = None  # the segments as a card's kernels read them
    past: Past | None = None  # of the trunks above, where this is a part of a forest that is walked depth first
    plan: StatePlan | None = None  # the segments in the order in which recurrent layers pass on their states

    def to(self, device: torch.device) -> Forest:
        """The same forest on another device."""
        return self.moved(lambda tensor: tensor.to(device))

    def moved(self, move: Callable[[Tensor], Tensor]) -> Forest:
        """The same forest with its tensors where `move` brings them."""
        moved: dict[str, Any] = {
            k: move(getattr(self, k))
            for k in ("input_ids", "position_ids", "predict_P", "targets_P", "leaf_P", "last_L", "counts_L")
        }
        return replace(self, groups=None, layout=None, plan=None, **moved)

    def paths(self) -> list[list[Span]]:
        """The spans from the root down to each segment."""
        inside = (segment for segment in self.segments if segment.start < self.num_tokens)
        return [[*segment.ancestors, (segment.start, segment.end)] for segment in inside]

    @property
    def owners(self) -> Owners:
        """Which leaf each trained token belongs to."""
        return Owners(self.leaf_P, self.counts_L, self.num_trained)

    def states(self) -> StatePlan:
        """How recurrent layers follow the branches."""
        self.plan = self.plan or state_plan(self.segments, self.input_ids.device)
        return self.plan

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention of `(1, N, T, D)` queries over this layout; returns `(1, T, N, D)`."""
        length = self.past.length if self.past else 0
        if self.past is not None:
            key, value = self.past.extended(layer, key, value)
        if query.is_cuda:
            self.layout = self.layout or Layout(self.segments, len(self.input_ids), query.device, length)
            return self.layout.attend(query, key, value, how)
        parts = self._batches(query, length, Attention(0.0, window=how.window, chunk=how.chunk))
        return forest_cpu.attend(query[0], key[0], value[0], parts, how).transpose(0, 1)[None]

    def _batches(self, query: Tensor, length: int, bound: Attention) -> list[forest_cpu.SegmentBatch]:
        """The segments in batches; made once for all layers that see equally far."""
        self.groups = self.groups if self.groups is not None else {}
        if bound not in self.groups:
            self.groups[bound] = forest_cpu.groups(self.segments, query.shape[1], query.device, length, bound)
        return self.groups[bound]


def pack_forest(trees: Sequence[Tree], multiple: int = 1, *, share: bool = False) -> Forest:
    """Lay trees out flat. Leaves without a trunk cannot have their first token predicted, so it is never trained.

    With `share` what several paths begin with alike is computed once, where that is worth it; each leaf keeps its own
    predicted tokens, and one hidden state may predict several of them. With `multiple` the row is filled up with a
    segment of its own: few distinct lengths, few kernels to build.
    """
    own = paths(trees)
    trie = grow(own, share=share)
    spans: list[tuple[Span, ...]] = []  # of each node: its ancestors' tokens in the row, and its own
    for node in trie.nodes:
        begin = spans[-1][-1][1] if spans else 0
        above = spans[node.parent] if node.parent >= 0 else ()
        spans.append((*above, (begin, begin + node.end - node.start)))
    ids = [own[node.path].ids[node.start : node.end] for node in trie.nodes]
    positions = [np.arange(node.start, node.end) for node in trie.nodes]
    segments = [Segment(*path[-1], path[:-1]) for path in spans]
    num_tokens = trie.num_tokens
    if missing := -num_tokens % multiple:
        ids.append(np.zeros(missing, np.int64))
        positions.append(np.arange(missing))
        segments.append(Segment(num_tokens, num_tokens + missing))
    found = []
    for path, end in zip(own, trie.ends, strict=True):
        if path.mask is not None:
            found.append(_predicted(path, path.mask, _places(spans[end] if end >= 0 else ())))
    counts_L = torch.tensor([len(predict) for predict, _, _ in found], dtype=torch.long)
    return Forest(
        input_ids=_joined(ids),
        position_ids=_joined(positions),
        segments=segments,
        predict_P=_joined([predict for predict, _, _ in found]),
        targets_P=_joined([targets for _, targets, _ in found]),
        leaf_P=torch.arange(len(found)).repeat_interleave(counts_L),
        num_leaves=len(found),
        last_L=torch.tensor([last for _, _, last in found], dtype=torch.long),
        num_tokens=num_tokens,
        counts_L=counts_L,
        num_trained=int((counts_L > 0).sum()),
    )


def paths(trees: Sequence[Tree]) -> list[Path]:
    """One path per leaf in order, and one of the trunk alone where a tree has no leaf."""
    found = []
    for number, tree in enumerate(trees):
        trunk = np.asarray(tree.trunk, np.int64)
        for leaf in tree.leaves:
            ids = np.concatenate((trunk, np.asarray(leaf.token_ids, np.int64)))
            found.append(Path(ids, len(trunk), number, np.asarray(leaf.mask, bool)))
        if not tree.leaves:
            found.append(Path(trunk, len(trunk), number))
    return found


def _places(spans: tuple[Span, ...]) -> np.ndarray:
    """Where in the row the tokens of a path stand."""
    return np.concatenate([np.arange(*span) for span in spans]) if spans else np.zeros(0, np.int64)


def _predicted(path: Path, mask: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Of a leaf's trained tokens: where their predictors stand, and their ids; and where the path ends."""
    trained = np.flatnonzero(mask) + path.trunk
    trained = trained[trained > 0]  # the first token of a path has no predictor
    return places[trained - 1], path.ids[trained], int(places[-1]) if len(places) else -1


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts or [np.zeros(0, np.int64)]))


class Attends(Protocol):
    """What every attention layer of a forward pass calls: a Forest, or the generator's cache."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention output `(1, T, N, D)`."""
        ...


def forest_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function registered with transformers; the layout travels as the keyword `forest` of the forward call."""
    options = getattr(module, CARRIED, {}) | options
    layout: Attends | None = options.get(LAYOUT)
    if layout is None:
        raise MissingLayoutError(
            "this model was loaded for the forest layout: call it through tercet.models.policy.Policy"
        )
    try:
        how = options_of(module, query, attention_mask, options)
        query = tuned(module, query, options.get(POSITIONS))
    except AttentionError as error:
        name = f"{type(module).__name__} {getattr(module, 'layer_idx', '')}".strip()
        raise ForestError(f"the forest layout cannot compute {name}: {error}") from None
    return layout.attend(int(module.layer_idx), query, key, value, how), None  # type: ignore[arg-type]


def register() -> None:
    """Make `attn_implementation="forest"` known to transformers, once.

    No mask function is registered, since the layout masks by itself. With one, even one that makes no mask,
    transformers would look for packed sequences in the positions in every pass, and wait for the card.
    """
    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, forest_attention)
