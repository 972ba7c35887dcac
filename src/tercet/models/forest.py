"""One layout for every loss: trees of a shared trunk (prompt) and leaves (completions) on one flat row of tokens.

A leaf token attends to its whole trunk and to its own leaf's past; positions continue from the trunk. So each prompt
token is computed once, nothing is padded, and the same code trains SFT (one leaf), DPO (two) and GRPO (sixteen).

Works with any causal LM whose attention goes through transformers' attention interface; others are refused.
Shape suffixes: T tokens of the batch, P predicted tokens, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tercet.models import forest_cpu
from tercet.models.attention import Attention
from tercet.models.forest_cpu import Segment
from tercet.models.forest_cuda import Layout
from tercet.models.state_plan import StatePlan, state_plan

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


class Owners(NamedTuple):
    """Which leaf each of P losses belongs to, how many losses each leaf has (L,), and how many leaves have any."""

    leaf_P: Tensor
    counts_L: Tensor
    leaves: int


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
    groups: list[forest_cpu.SegmentBatch] | None = None  # the segments in batches, for the CPU
    layout: Layout | None = None  # the segments as a card's kernels read them
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

    @property
    def owners(self) -> Owners:
        """Which leaf each trained token belongs to."""
        return Owners(self.leaf_P, self.counts_L, self.num_trained)

    def states(self) -> StatePlan:
        """How recurrent layers follow the branches."""
        self.plan = self.plan or state_plan(self.segments, self.input_ids.device)
        return self.plan

    def attend(self, _layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """Attention of `(1, N, T, D)` queries over this layout; returns `(1, T, N, D)`."""
        if query.is_cuda:
            self.layout = self.layout or Layout(self.segments, len(self.input_ids), query.device)
            return self.layout.attend(query, key, value, how)
        self.groups = self.groups or forest_cpu.groups(self.segments, query.shape[1], query.device)
        return forest_cpu.attend(query[0], key[0], value[0], self.groups, how).transpose(0, 1)[None]


def pack_forest(trees: Sequence[Tree], multiple: int = 1) -> Forest:
    """Lay trees out flat. Leaves without a trunk cannot have their first token predicted, so it is never trained.

    With `multiple` the row is filled up with a segment of its own: few distinct lengths, few kernels to build.
    """
    ids, positions, predict, targets, owners, last = (list[int]() for _ in range(6))
    segments: list[Segment] = []
    for tree in trees:
        trunk = (len(ids), len(ids) + len(tree.trunk))
        ids.extend(tree.trunk)
        positions.extend(range(len(tree.trunk)))
        if tree.trunk:
            segments.append(Segment(*trunk))
        for leaf in tree.leaves:
            start = len(ids)
            ids.extend(leaf.token_ids)
            positions.extend(range(len(tree.trunk), len(tree.trunk) + len(leaf.token_ids)))
            segments.append(Segment(start, len(ids), (trunk,) if tree.trunk else ()))
            for offset, trained in enumerate(leaf.mask):
                if trained and (offset or tree.trunk):
                    # a leaf's first token is predicted by the trunk's last one, which does not stand before it
                    predict.append(start + offset - 1 if offset else trunk[1] - 1)
                    targets.append(leaf.token_ids[offset])
                    owners.append(len(last))
            last.append(len(ids) - 1)
    num_tokens = len(ids)
    if missing := -num_tokens % multiple:
        ids.extend([0] * missing)
        positions.extend(range(missing))
        segments.append(Segment(num_tokens, len(ids)))
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
    """What every attention layer of a forward pass calls: a Forest, or the generator's cache."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
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
    return layout.attend(int(module.layer_idx), query, key, value, Attention(scale)), None  # type: ignore[arg-type]


def register() -> None:
    """Make `attn_implementation="forest"` known to transformers, once.

    No mask function is registered, since the layout masks by itself. With one, even one that makes no mask,
    transformers would look for packed sequences in the positions in every pass, and wait for the card.
    """
    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, forest_attention)
