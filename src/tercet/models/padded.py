"""One path a row, for the models that no forest serves: their own attention, recurrence and masks stay as they are.

The batch is the same forest and so are the hidden states that come out, one for each of its T tokens; only the way to
them differs. Every leaf is read with all that stands above it, padded on the right, where a causal model cannot see the
padding. What several leaves share is computed once for each of them; its states are taken from one, and as the others
are equal the gradient is right too.

Shape suffixes: T tokens of the forest, R rows, L tokens of the longest row, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Span = tuple[int, int]  # tokens [start, end)


class Branching(Protocol):
    """A layout that can say what each of its parts follows."""

    def paths(self) -> Sequence[Sequence[Span]]:
        """The spans from the root down to each part, its own last; parts above come before those below."""
        ...


class Rows(NamedTuple):
    """Where the tokens of a forest stand when each path is a row."""

    tokens_RL: Tensor  # the token at each place; token 0 where a row is padded
    places_T: Tensor  # a place of each token among the R L; place 0 for tokens that no path holds


def rows_of(layout: Branching, num_tokens: int) -> Rows:
    """The paths that end in a leaf, as rows."""
    covered: set[int] = set()  # first tokens of the parts that a row holds already
    chosen: list[Sequence[Span]] = []
    for path in reversed(layout.paths()):
        start, end = path[-1]
        if start < end and start not in covered:
            chosen.append(path)
            covered.update(start for start, _ in path)
    longest = max((sum(end - start for start, end in spans) for spans in chosen), default=1)
    tokens_RL = torch.zeros(max(1, len(chosen)), longest, dtype=torch.long)
    places_T = torch.zeros(num_tokens, dtype=torch.long)
    for row, spans in enumerate(reversed(chosen)):
        tokens = torch.cat([torch.arange(start, end) for start, end in spans])
        tokens_RL[row, : len(tokens)] = tokens
        places_T[tokens] = torch.arange(row * longest, row * longest + len(tokens))
    return Rows(tokens_RL, places_T)


def padded_hidden(backbone: nn.Module, layout: Any, input_ids: Tensor) -> Tensor:
    """Hidden states `(T, H)` of the flat tokens `input_ids` (T,), from one pass over the rows of a `Branching`."""
    tokens_RL, places_T = (found.to(input_ids.device) for found in rows_of(layout, len(input_ids)))
    hidden = backbone(input_ids=input_ids[tokens_RL], use_cache=False).last_hidden_state
    return hidden.flatten(0, 1).index_select(0, places_T)


def pack_rows(trees: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Cut trees, given as the lengths of their rows, into batches of at most `budget` tokens, padding included.

    Trees of like length come together, so that little is padded; a larger tree is alone.
    """
    batches: list[list[int]] = []
    longest = rows = 0
    for item in sorted(range(len(trees)), key=lambda i: (-max(trees[i]), i)):
        if not batches or (rows + len(trees[item])) * longest > budget:
            batches.append([])
            longest, rows = max(trees[item]), 0
        rows += len(trees[item])
        batches[-1].append(item)
    return [sorted(items) for items in batches]
