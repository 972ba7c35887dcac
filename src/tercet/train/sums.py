"""Sums over a step's batches: totals on the device, weights and counts on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tercet.device.mesh import Mesh


class Sum(NamedTuple):
    """A total and the weight it will be divided by."""

    total: Tensor
    weight: float


class Sums:
    """The sums of a step's batches by name. Reading a number from a GPU waits for it, so `read` does it once."""

    def __init__(self, mesh: Mesh, counts: tuple[str, ...] = ()) -> None:
        """`counts` names what is counted, the same on every rank."""
        self.mesh = mesh.data
        self.totals: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.counts = dict.fromkeys(counts, 0.0)

    def add(self, sums: dict[str, Sum]) -> None:
        """Add a batch's sums, in fp64."""
        for name, (total, weight) in sums.items():
            wide = total.detach().double()
            self.totals[name] = self.totals[name] + wide if name in self.totals else wide
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def count(self, name: str, number: float) -> None:
        """Add to a number that has no weight."""
        self.counts[name] += number

    def read(
        self, prefix: str, norm: Callable[[str], Tensor]
    ) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, float]]:
        """Over all ranks: counts; totals with weights; and for each total named `prefix` + PART the `norm` of PART.

        A name that a rank never added counts as zero there. Norms are already the same on every rank.
        """
        names = sorted(set().union(*map(set, self.mesh.gather(sorted(self.totals)))))
        known = self.mesh.sum([*(self.weights.get(name, 0.0) for name in names), *self.counts.values()])
        parts = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        tensors = [self._whole(names), *(norm(part) for part in parts)]
        sent = [tensor.double().reshape(-1).to(self.mesh.device, non_blocking=True) for tensor in tensors]
        measured = torch.cat(sent).tolist()  # one copy from the device
        size = len(names)
        totals = dict(zip(names, zip(measured[:size], known[:size], strict=True), strict=True))
        norms = dict(zip(parts, measured[size:], strict=True))
        return dict(zip(self.counts, known[size:], strict=True)), totals, norms

    def _whole(self, names: list[str]) -> Tensor:
        zero = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        return self.mesh.add(torch.stack([zero, *(self.totals.get(name, zero) for name in names)])[1:])
