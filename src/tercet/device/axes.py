"""How the ranks of a stage divide rows, tokens and weights: their axes, each with process groups of its own.

Rank number = ((replicate * S + shard) * C + context) * T + tensor. Ranks that differ in `replicate` or `shard` read
other rows; those that differ in `context` or `tensor` only are alike: they read the same ones. Weights are cut along
`shard` and `context` together (FSDP) and along `tensor`; along `replicate` they are repeated (HSDP).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tercet.recipe.placement import MeshShape


class Axes(NamedTuple):
    """The axes of this rank. A group is None where its axis has one rank."""

    shape: MeshShape
    weights: DeviceMesh  # by name: `shard`, and `replicate` and `tensor` where they have several ranks
    data: Any  # the process group of the ranks that read other rows and else stand where this one stands
    context: Any  # of the ranks that have other tokens of the same rows
    timeout: timedelta

    @property
    def shares(self) -> DeviceMesh:
        """The ranks among which FSDP shares a model, and those that repeat it."""
        return self.weights["replicate", "shard"] if self.shape.replicate > 1 else self.weights["shard"]

    @property
    def num_shares(self) -> int:
        """How many ranks' gradients are averaged."""
        return self.shape.replicate * self.shape.shard * self.shape.context

    @property
    def alike(self) -> int:
        """How many ranks read the same rows."""
        return self.shape.context * self.shape.tensor

    def leads(self, others: Collection[str]) -> bool:
        """Whether this rank is the first along every axis of the weights but these."""
        places = zip(self.weights.mesh_dim_names or (), self.weights.get_coordinate() or (), strict=True)
        return not any(place for name, place in places if name not in others)

    @property
    def tensor(self) -> DeviceMesh | None:
        """The ranks that have other parts of each product."""
        return self.weights["tensor"] if self.shape.tensor > 1 else None


def divide(shape: MeshShape, kind: str, timeout: timedelta) -> Axes:
    """The axes of all ranks, in a shape whose product they are; every group waits no longer than `timeout`."""
    sizes = {"replicate": shape.replicate, "shard": shape.shard * shape.context, "tensor": shape.tensor}
    used = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    groups = [_group(used, name, timeout) for name in used]
    places = torch.arange(dist.get_world_size()).view(*used.values())
    weights = DeviceMesh.from_group(groups, kind, places, mesh_dim_names=tuple(used))
    data = _group(_rows(shape), "data", timeout) if shape.context * shape.tensor > 1 else None
    context = _group(_rows(shape), "context", timeout) if shape.context > 1 else None
    return Axes(shape, weights, data, context, timeout)


def channel(axes: Axes | None) -> Axes | None:
    """The same axes with a channel of their own between the ranks that read other rows, by gloo."""
    if axes is None or axes.data is None:
        return axes
    return axes._replace(data=_group(_rows(axes.shape), "data", axes.timeout, "gloo"))


def _rows(shape: MeshShape) -> dict[str, int]:
    return {"data": shape.replicate * shape.shard, "context": shape.context, "tensor": shape.tensor}


def _group(sizes: Mapping[str, int], name: str, timeout: timedelta, backend: str | None = None) -> Any:
    """The process group of this rank along one axis; every rank must call this at the same point."""
    places = torch.arange(dist.get_world_size()).view(*sizes.values())
    lines = places.movedim(list(sizes).index(name), -1).reshape(-1, sizes[name]).tolist()
    own, _ = dist.new_subgroups_by_enumeration(lines, timeout=timeout, backend=backend)
    return own
