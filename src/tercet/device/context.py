"""Context parallelism: ranks that read the same rows, each with a part of their tokens (Ulysses, Jacobs et al. 2023).

Layers compute on a rank's own tokens. Around attention tokens are exchanged for heads: there each rank has some of the
heads of all tokens, so that any layout, windows and branches included, attends as it does on one rank. Afterwards the
hidden states are gathered, and the head's rows are shared out anew, as those that are trained on stand anywhere.

Shape suffixes: T tokens, N heads, K key heads, D head size, H width, C ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

ATTRIBUTE = "context"
"""Of a module that reads rows: the ranks that share their tokens; None where there are none."""


class AttendsRows(Protocol):
    """What attends over a row of tokens."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Any) -> Tensor:
        """`(1, N, T, D)` queries; returns `(1, T, N, D)`."""


Read = Callable[["Around", Tensor, Tensor], Tensor]


class ContextRanks:
    """The ranks that have other tokens of the same rows."""

    def __init__(self, group: Any) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def hidden(self, read: Read, layout: AttendsRows, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Hidden states `(T, H)` of a row of tokens, of which `read` sees this rank's part alone."""
        tokens = len(input_ids)
        own = [self.part(pad(row, (0, -tokens % self.size))) for row in (input_ids, position_ids)]
        return _Gather.apply(read(Around(layout, self, tokens), own[0], own[1]), self)[:tokens]

    def part(self, rows: Tensor) -> Tensor:
        """This rank's part of some rows; the last ranks may have fewer, or none."""
        size = -(-len(rows) // self.size)
        return rows[self.rank * size : (self.rank + 1) * size]

    def whole(self, values: Tensor, number: int) -> Tensor:
        """The values `(number,)` of all rows, from those of each rank's part; each goes on with all of them."""
        return _Joined.apply(values, number, self) if number else values

    def exchanged(self, x: Tensor) -> Tensor:
        """`(C, ...)`: what each rank gets; returns what each rank gave."""
        found: Tensor = _Exchange.apply(x, self)
        return found

    def gathered(self, x: Tensor) -> Tensor:
        """Every rank's rows, one after another."""
        out = x.new_empty(self.size * len(x), *x.shape[1:])
        dist.all_gather(list(out.chunk(self.size)), x.contiguous(), group=self.group)
        return out


class Around:
    """The attention of a row whose tokens are spread over ranks."""

    def __init__(self, layout: AttendsRows, ranks: ContextRanks, tokens: int) -> None:
        self.layout, self.ranks, self.tokens = layout, ranks, tokens

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Any) -> Tensor:
        """Attention of `(1, N, T / C, D)` queries; returns `(1, T / C, N, D)`."""
        ranks, heads = self.ranks, query.shape[1] // self.ranks.size
        if query.shape[1] % ranks.size:
            raise ValueError(
                f"placement.mesh.context = {ranks.size} does not divide the {query.shape[1]} heads that each of them "
                "has; choose a divisor"
            )
        if how.sinks is not None:
            how = how._replace(sinks=how.sinks[ranks.rank * heads : (ranks.rank + 1) * heads])
        found = self.layout.attend(layer, self._heads(query), self._heads(key), self._heads(value), how)
        return self._tokens(found[0])[None]

    def _heads(self, x: Tensor) -> Tensor:
        """From all heads of this rank's tokens to this rank's heads of all tokens; few key heads are repeated."""
        size = self.ranks.size
        x = x[0].repeat_interleave(size // math.gcd(x.shape[1], size), dim=0)
        given = x.unflatten(0, (size, -1)).contiguous()
        return self.ranks.exchanged(given).transpose(0, 1).flatten(1, 2)[None, :, : self.tokens]

    def _tokens(self, x: Tensor) -> Tensor:
        """Back, `(T, N / C, D)` to `(T / C, N, D)`."""
        size = self.ranks.size
        given = pad(x, (0, 0, 0, 0, 0, -self.tokens % size)).unflatten(0, (size, -1)).contiguous()
        return self.ranks.exchanged(given).transpose(0, 1).flatten(1, 2)


class _Exchange(torch.autograd.Function):
    """All to all; gradients go back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: ContextRanks) -> Tensor:
        ctx.ranks = ranks
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=ranks.group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(grads[0], memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, grads[0].contiguous(), group=ctx.ranks.group)
        return out, None


class _Gather(torch.autograd.Function):
    """All ranks' rows; as each goes on with some of them, their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: ContextRanks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gathered(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        parts = grads[0].unflatten(0, (ctx.ranks.size, -1)).contiguous()
        return _Exchange.apply(parts, ctx.ranks).sum(0), None


class _Joined(torch.autograd.Function):
    """All ranks' values; as each rank goes on in the same way, each takes its own part of the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, number: int, ranks: ContextRanks) -> Tensor:
        ctx.ranks = ranks
        size = -(-number // ranks.size)
        return ranks.gathered(pad(values, (0, size - len(values))))[:number].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.part(grads[0]), None, None
