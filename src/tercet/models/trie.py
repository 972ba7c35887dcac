"""What the paths of a batch begin with alike, as a trie, found by comparing token ids.

A path is a tree's trunk with one of its leaves. Sorted by their tokens, paths that begin alike stand side by side, so
what neighbours share says all about the trie. Without sharing the same rules give every tree its own trunk and leaves.
Nodes come out depth first, the children of a node in the order in which the batch names them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SHARED = 32  # least tokens of a node: each is a product of attention of its own, filled up to 32 rows
WORTH = 1 / 32  # least share of a batch's tokens that a trie must save: on a card, branches need a slower kernel


class Path(NamedTuple):
    """The tokens from a tree's root to the end of a leaf; the trunk's are the first `trunk`."""

    ids: np.ndarray
    trunk: int
    tree: int
    mask: np.ndarray | None = None  # which of the leaf's tokens are trained; None: the trunk of a tree without leaves


class TrieNode(NamedTuple):
    """Tokens `[start, end)` of a path (of each that runs through), below the node with number `parent`; -1: a root."""

    path: int
    start: int
    end: int
    parent: int

    @property
    def size(self) -> int:
        """Its tokens."""
        return self.end - self.start


class Trie(NamedTuple):
    """Nodes depth first, and for each path the node it ends in."""

    nodes: list[TrieNode]
    ends: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of all nodes."""
        return sum(node.size for node in self.nodes)

    def above(self, node: int) -> list[int]:
        """The nodes from this one up to its root, by number."""
        found = []
        while node >= 0:
            found.append(node)
            node = self.nodes[node].parent
        return found


def grow(own: Sequence[Path], *, share: bool) -> Trie:
    """The trie of these paths; where not enough would be shared, and without `share`, the trees stay by themselves."""
    alone = np.array([0, *(one.trunk if one.tree == other.tree else 0 for one, other in pairwise(own))])
    plain = _Builder(own, list(range(len(own))), alone).trie()
    if not share:
        return plain
    shared = _Builder(own, *in_order([path.ids for path in own])).trie()
    return shared if worth(plain.num_tokens - shared.num_tokens, plain.num_tokens) else plain


def worth(saved: int, tokens: int) -> bool:
    """Whether it pays to save so many of a batch's tokens."""
    return saved > 0 and saved >= WORTH * tokens


def in_order(sequences: Sequence[np.ndarray]) -> tuple[list[int], np.ndarray]:
    """The sequences sorted by their tokens, and how many first tokens each shares with the one before it."""
    keys = [ids.astype(">u4").tobytes() for ids in sequences]  # bytes in this order compare as the numbers do
    order = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    return order, np.array([0, *(alike(sequences[a], sequences[b]) for a, b in pairwise(order))])


def alike(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


class _Group(NamedTuple):
    """The paths `order[low:high]`, the first of which in the batch is `first`; all of them alike up to `end`."""

    first: int
    low: int
    high: int
    start: int
    end: int
    parent: int


class _Builder:
    """Cuts the sorted paths into groups that share a node, from the root down."""

    def __init__(self, own: Sequence[Path], order: list[int], common: np.ndarray) -> None:
        """`common` says how much each path in `order` shares with the one before it."""
        self.own, self.order, self.common = own, order, common
        self.nodes: list[TrieNode] = []
        self.ends = [-1] * len(own)

    def trie(self) -> Trie:
        """Build it."""
        waiting = self._children([(0, len(self.own))], 0, -1) if self.own else []
        while waiting:
            group = waiting.pop()
            if group.high - group.low == 1:
                self._finish(group)
                continue
            node = self._add(group.first, group.start, group.end, group.parent)
            waiting += self._children(self._cut(group.low, group.high), group.end, node)
        return Trie(self.nodes, self.ends)

    def _children(self, ranges: list[tuple[int, int]], start: int, parent: int) -> list[_Group]:
        """Groups below `parent`, the first one last; those that share no node are cut until they do."""
        found: list[_Group] = []
        while ranges:
            low, high = ranges.pop()
            end = self._end(low, high, start)
            if high - low > 1 and end <= start:
                ranges += self._cut(low, high)
            else:
                found.append(_Group(min(self.order[low:high]), low, high, start, end, parent))
        return sorted(found, reverse=True)

    def _end(self, low: int, high: int, start: int) -> int:
        """Where the node that these paths share ends: where they part, or at the end of a trunk shortly before that.

        A trunk with several leaves is shared however short it is.
        """
        if high - low == 1:
            return len(self.own[self.order[low]].ids)
        common = int(self.common[low + 1 : high].min())
        members = [self.own[i] for i in self.order[low:high]]
        leaves = Counter(path.tree for path in members)
        trunk = max((p.trunk for p in members if leaves[p.tree] > 1 and p.trunk <= common), default=0)
        return common if common - max(trunk, start) >= SHARED else trunk

    def _cut(self, low: int, high: int) -> list[tuple[int, int]]:
        """The parts of a group that go on alike."""
        inside = self.common[low + 1 : high]
        places = (np.flatnonzero(inside == inside.min()) + low + 1).tolist()
        return list(pairwise([low, *places, high]))

    def _finish(self, group: _Group) -> None:
        """What a single path has of its own: the rest of its trunk, and its leaf."""
        trunk = self.own[group.first].trunk
        node = self._add(group.first, group.start, min(trunk, group.end), group.parent)
        self.ends[group.first] = self._add(group.first, max(trunk, group.start), group.end, node)

    def _add(self, path: int, start: int, end: int, parent: int) -> int:
        """A node below `parent`; none where it would be empty."""
        if end <= start:
            return parent
        self.nodes.append(TrieNode(path, start, end, parent))
        return len(self.nodes) - 1
