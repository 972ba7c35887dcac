"""Losses that compare leaves, of a batch that is taken part by part.

Such a loss is a function of one number for each leaf. The numbers are read first, without gradient; then the slope of
the loss along each is known, and the parts are trained as in a sum of leaves with these slopes. So the gradient is that
of the whole batch, for one more forward pass of what exceeds the budget, and memory holds one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tercet.models.depth_first import Backward
from tercet.models.forest import Forest
from tercet.train.batch import Batch
from tercet.train.branches import parts_of
from tercet.train.loop import Loss
from tercet.train.sums import Sum


@dataclass(frozen=True)
class Compared:
    """A loss: `look` gives a forest's numbers (L,), one for each leaf, `judge` the loss of a batch's numbers."""

    look: Callable[[nn.Module, Forest], Tensor]
    judge: Callable[[Tensor, Batch], Loss]

    def __call__(self, module: nn.Module, batch: Batch) -> Loss:
        """The loss of a whole batch."""
        return self.judge(self.look(module, batch.forest), batch)

    def in_parts(self, module: nn.Module, batch: Batch, backward: Backward) -> Iterator[Loss]:
        """The loss in parts that add up to it. Each goes backward before the next is asked for."""
        if (parts := parts_of(module, batch, backward)) is None:
            yield self(module, batch)
            return
        values = self._read(module, batch, backward).requires_grad_()
        whole = self.judge(values, batch)
        (slopes,) = torch.autograd.grad(whole.objective.total, values)
        shown = whole._replace(objective=Sum(whole.objective.total.detach(), whole.objective.weight))
        for part in parts:
            own = (self.look(module, part.forest) * slopes[part.leaves]).sum()
            total = own - own.detach() + shown.objective.total  # the value is the loss's, once
            yield shown._replace(objective=Sum(total, shown.objective.weight))
            shown = Loss(Sum(torch.zeros_like(shown.objective.total), 0.0), {}, whole.part)

    @torch.no_grad()
    def _read(self, module: nn.Module, batch: Batch, backward: Backward) -> Tensor:
        found, places = [], []
        for part in parts_of(module, batch, backward) or ():
            found.append(self.look(module, part.forest))
            places.append(part.leaves)
        values = torch.cat(found)
        return torch.empty_like(values).index_copy_(0, torch.cat(places), values)
