"""Which rank this process is, and the few collectives the loop needs. One rank needs no process group."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from importlib.resources import files
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tercet import machine
from tercet.device import place
from tercet.device.axes import Axes, channel, divide
from tercet.recipe import Placement


@dataclass(frozen=True)
class Mesh:
    """This process among all ranks of its stage, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None  # the process group that talks; the default one when None
    padded: bool = False  # whether models here read one path a row, which decides what a batch holds
    walks: bool = True  # whether a branch needs no more of its trunk than keys and values
    axes: Axes | None = None  # how several ranks divide rows, tokens and weights

    @property
    def data(self) -> Mesh:
        """The ranks that read other rows: what is shared out and added up goes over them, once for all that are alike.

        Itself where no two ranks read the same.
        """
        if self.axes is None or self.axes.alike == 1:
            return self
        alike = self.axes.alike
        return replace(self, rank=self.rank // alike, size=self.size // alike, group=self.axes.data, axes=None)

    @property
    def first(self) -> bool:
        """Whether this process writes files and tracks."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over ranks, in fp64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: list[float]) -> list[float]:
        """Element-wise maximum over ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def add(self, values: Tensor) -> Tensor:
        """Element-wise sum of a tensor on this rank's device, in place; the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's object, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def twin(self) -> Mesh:
        """The same ranks with a channel of their own, for a second thread. Every rank calls this at the same point."""
        if self.size == 1:
            return self
        timeout = self.axes.timeout if self.axes else None
        return replace(self, group=dist.new_group(backend="gloo", timeout=timeout), axes=channel(self.axes))

    def _reduce(self, values: list[float], op: Any) -> list[float]:
        if self.size == 1:
            return values
        total = torch.tensor(
            values, dtype=torch.float64
        )  # by gloo: the values are on the host, so the card need not stop
        dist.all_reduce(total, op=op, group=self.group)
        return total.tolist()


@contextmanager
def mesh(placement: Placement | None = None) -> Iterator[Mesh]:
    """Join the process group torchrun described in the environment; leave it at the end.

    Tensors on CUDA travel by NCCL, those in the host's memory by gloo. `placement.mesh` says how ranks divide the work.
    """
    placement = placement or Placement()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = place.device()
    if size == 1:
        yield Mesh(device=device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=placement.rank_timeout)
    dist.init_process_group(backend, timeout=timeout)
    try:
        yield Mesh(dist.get_rank(), size, device, axes=divide(placement.shape, device.type, timeout))
    finally:
        dist.destroy_process_group()


def peak_memory(device: torch.device) -> float:
    """Peak memory in GB: of the card on CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return machine.peak_rss_bytes() / 1e9


def wait(device: torch.device) -> None:
    """Wait until a card has done all its work, copies to the host included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Give freed pieces of the heap back to the system, or every batch of another shape would add to the peak.

    CUDA's allocator needs no such help.
    """
    if device.type == "cpu":
        machine.trim_heap()


PEAKS: dict[str, float] = tomllib.loads(files("tercet.device").joinpath("peaks.toml").read_text(encoding="utf-8"))
"""Peak bf16 FLOP/s by name of card; the file names their sources."""


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s where the card is known."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """The peak of a card by the name torch gives it, `NVIDIA H100 80GB HBM3`; None for laptops' and parts of one."""
    if re.search(r"\b(Laptop|MIG)\b", name):
        return None
    found = [card for card in PEAKS if re.search(rf"\b{card}\b", name)]  # H20 is no H200, L40 no L40S
    return PEAKS[max(found, key=len)] if found else None
