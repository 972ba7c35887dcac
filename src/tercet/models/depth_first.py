"""A forest that exceeds the token budget, walked depth first: a trunk runs once, then what is below it, part by part.

The keys and values that a trunk leaves behind, and those of its hidden states that predict a token, become leaves of
the graph. Each part runs forward and backward and adds its gradients to them; the trunk's own backward pass comes last,
with these gradients. So nothing is computed twice, the gradient is that of the whole forest, and memory holds one path
from the root to a part. A part is a forest of whole branches, as many side by side as the budget allows, and every leaf
lies in one part with all its predicted tokens: any loss that is a sum over leaves can be taken part by part.

Ranks that share a model run it equally often (`tercet.models.parts`): there a trunk may be idle, and its backward pass
runs in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tercet.models.attention import Attention
from tercet.models.forest import Attends, Forest, Past
from tercet.models.forest_cpu import Segment

Move = Callable[[Tensor], Tensor]
Backward = Callable[[Sequence[Tensor], Sequence[Tensor]], None]
Read = Callable[[Attends, Tensor, Tensor], Tensor]  # of a layout, token ids and positions: hidden states (T, H)


@dataclass
class Part:
    """A forest below a trunk, and which leaves and predicted tokens of the whole forest it has."""

    forest: Forest
    leaves: Tensor  # (L',) numbers of leaves
    predicted: Tensor  # (P',) numbers of predicted tokens

    def moved(self, move: Move) -> Part:
        """The same with tensors where `move` brings them."""
        return Part(self.forest.moved(move), move(self.leaves), move(self.predicted))


@dataclass
class Walk:
    """A trunk, and what is below it in order. `states` are the places of the trunk's hidden states that predict."""

    trunk: Forest
    states: Tensor | None  # None: an idle trunk, that nothing below follows
    below: list[Part | Walk]
    everywhere: bool = False  # whether other ranks run a trunk here, too

    def moved(self, move: Move) -> Walk:
        """The same with tensors where `move` brings them."""
        states = None if self.states is None else move(self.states)
        return replace(self, trunk=self.trunk.moved(move), states=states, below=[one.moved(move) for one in self.below])


@dataclass
class _Node:
    """A segment with those below it; `size` are the tokens of all of them."""

    segment: Segment
    children: list[_Node] = field(default_factory=list)
    size: int = 0


def plan(forest: Forest, budget: int, multiple: int = 1) -> list[Part | Walk] | None:
    """How to walk a forest whose tensors are on the host, its parts filled up to `multiple`; None: all at once."""
    if forest.num_tokens <= budget:
        return None
    roots: list[_Node] = []
    nodes: dict[int, _Node] = {}
    for segment in forest.segments:
        if segment.start >= forest.num_tokens:
            continue
        node = nodes[segment.start] = _Node(segment)
        (nodes[segment.ancestors[-1][0]].children if segment.ancestors else roots).append(node)
        for start in (*(start for start, _ in segment.ancestors), segment.start):
            nodes[start].size += segment.end - segment.start
    found = _Planner(forest, budget, multiple).below(roots, [])
    return found if len(found) > 1 or isinstance(found[0], Walk) else None


class _Planner:
    """Cuts what is below a path of trunks into parts."""

    def __init__(self, forest: Forest, budget: int, multiple: int) -> None:
        self.forest, self.budget, self.multiple = forest, budget, multiple
        needed = torch.cat((forest.predict_P, forest.last_L))
        self.needed = torch.zeros(forest.num_tokens, dtype=torch.bool)
        self.needed[needed] = True
        self.waiting = torch.ones(forest.num_leaves, dtype=torch.bool)  # leaves that no part has yet

    def below(self, nodes: list[_Node], trunks: list[Segment]) -> list[Part | Walk]:
        """Neighbours together while they fit beside the trunks above them; what is too large is walked itself."""
        room = self.budget - sum(trunk.end - trunk.start for trunk in trunks)
        groups: list[list[_Node]] = []
        left = 0
        for node in nodes:
            if not groups or node.size > left:
                groups.append([])
                left = room
            groups[-1].append(node)
            left -= node.size
        return [self._one(group, trunks) for group in groups]

    def _one(self, group: list[_Node], trunks: list[Segment]) -> Part | Walk:
        first = group[0]
        room = self.budget - sum(trunk.end - trunk.start for trunk in trunks)
        if first.size <= room or not first.children:
            return self._part(group, trunks)
        trunk = _laid_out(self.forest, [first.segment], self.multiple)
        below = self.below(first.children, [*trunks, first.segment])
        return Walk(trunk, self._states(first.segment), below)

    def _states(self, segment: Segment) -> Tensor:
        """Which tokens of a trunk predict another: their places in it."""
        return self.needed[segment.start : segment.end].nonzero()[:, 0]

    def _part(self, group: list[_Node], trunks: list[Segment]) -> Part:
        """A forest whose hidden states are its own tokens', then those that its trunks hand down."""
        whole = self.forest
        segments = [one for node in group for one in _flat(node)]
        own = _laid_out(whole, segments, self.multiple)
        place = torch.full((whole.num_tokens,), -1)  # of each token's hidden state
        count = 0
        for segment in segments:
            place[segment.start : segment.end] = torch.arange(segment.end - segment.start) + count
            count += segment.end - segment.start
        count = len(own.input_ids)
        for trunk in trunks:
            states = self._states(trunk)
            place[states + trunk.start] = torch.arange(len(states)) + count
            count += len(states)
        # A leaf that ends in a trunk has no tokens of its own: the first part below takes it along.
        inside = self.waiting & (place[whole.last_L] >= 0)
        self.waiting &= ~inside
        leaves, predicted = inside.nonzero()[:, 0], inside[whole.leaf_P].nonzero()[:, 0]
        number = torch.cumsum(inside.long(), 0) - 1
        counts_L = whole.counts_L[leaves]
        return Part(
            replace(
                own,
                predict_P=place[whole.predict_P[predicted]],
                targets_P=whole.targets_P[predicted],
                leaf_P=number[whole.leaf_P[predicted]],
                num_leaves=len(leaves),
                last_L=place[whole.last_L[leaves]],
                counts_L=counts_L,
                num_trained=int((counts_L > 0).sum()),
            ),
            leaves,
            predicted,
        )


def _flat(node: _Node) -> Iterator[Segment]:
    yield node.segment
    for child in node.children:
        yield from _flat(child)


def _laid_out(whole: Forest, segments: Sequence[Segment], multiple: int) -> Forest:
    """These segments, neighbours in the whole forest, as a row of their own, without leaves; trunks above left out."""
    begin, end = segments[0].start, segments[-1].end
    filling = -(end - begin) % multiple
    none = torch.zeros(0, dtype=torch.long)
    own = []
    for segment in segments:
        inner = tuple((start - begin, stop - begin) for start, stop in segment.ancestors if start >= begin)
        own.append(Segment(segment.start - begin, segment.end - begin, inner))
    if filling:
        own.append(Segment(end - begin, end - begin + filling))
    return Forest(
        input_ids=torch.cat((whole.input_ids[begin:end], none.new_zeros(filling))),
        position_ids=torch.cat((whole.position_ids[begin:end], torch.arange(filling))),
        segments=own,
        predict_P=none,
        targets_P=none,
        leaf_P=none,
        num_leaves=0,
        last_L=none,
        num_tokens=end - begin,
        counts_L=none,
        num_trained=0,
    )


class _Trunk:
    """Attention of a trunk that remembers its keys and values, by layer."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.live: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Attention) -> Tensor:
        """See `Forest.attend`."""
        size = self.forest.num_tokens
        self.live[layer] = (key[:, :, :size], value[:, :, :size])
        return self.forest.attend(layer, query, key, value, how)


def walked(read: Read, steps: Sequence[Part | Walk], backward: Backward) -> Iterator[Part]:
    """The parts in order. Whoever takes one runs its loss forward and backward before asking for the next.

    `read` runs a trunk; `backward(outputs, slopes)` runs its backward pass, and is not called where no part left a
    gradient, unless other ranks call it.
    """
    return _below(read, steps, None, backward)


def _below(read: Read, steps: Sequence[Part | Walk], past: Past | None, backward: Backward) -> Iterator[Part]:
    for step in steps:
        if isinstance(step, Part):
            yield replace(step, forest=replace(step.forest, past=past))
        else:
            yield from _walk(read, step, past, backward)


def _walk(read: Read, walk: Walk, past: Past | None, backward: Backward) -> Iterator[Part]:
    trunk = _Trunk(walk.trunk if walk.states is None else replace(walk.trunk, past=past))
    hidden = read(trunk, walk.trunk.input_ids, walk.trunk.position_ids)
    if walk.states is None:
        yield from _below(read, walk.below, past, backward)
        if hidden.requires_grad:
            backward([hidden], [torch.zeros_like(hidden)])
        return
    outputs = [hidden.index_select(0, walk.states), *(tensor for pair in trunk.live.values() for tensor in pair)]
    leaves = [_leaf(tensor) for tensor in outputs]
    states, keys, values = leaves[0], leaves[1::2], leaves[2::2]
    above = past or Past(0, {layer: ([], []) for layer in trunk.live}, [])
    kept = {}
    for layer, key, value in zip(trunk.live, keys, values, strict=True):
        earlier = above.kept[layer]
        kept[layer] = ([*earlier[0], key], [*earlier[1], value])
    handed = Past(above.length + walk.trunk.num_tokens, kept, [*above.states, states])
    yield from _below(read, walk.below, handed, backward)
    if walk.everywhere and hidden.requires_grad:  # a zero, too, has to pass all layers
        leaves[0].grad = torch.zeros_like(leaves[0]) if leaves[0].grad is None else leaves[0].grad
    found = [(out, leaf.grad.to(out.dtype)) for out, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
    if found:
        backward([out for out, _ in found], [slope for _, slope in found])


def _leaf(tensor: Tensor) -> Tensor:
    """A leaf of the graph with these values, in at least fp32, as every part below adds a gradient to it."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(wide).requires_grad_()
