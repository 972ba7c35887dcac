"""Weights in buckets of bytes, so that neither side of a transfer holds a second copy of the model.

Both sides know names, dtypes and shapes, and cut them alike; what travels is bytes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from tercet.models.engines.replica import EngineError

BUCKET = 256 << 20  # bytes; a larger tensor is a bucket of its own
ALIGNED = 16  # bytes at which every tensor of a bucket begins


class Described(NamedTuple):
    """One tensor of a transfer: its name in Hugging Face folders, the engine's dtype, its whole shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def space(self) -> int:
        """Bytes in a bucket."""
        return -(-prod(self.shape) * self.dtype.itemsize // ALIGNED) * ALIGNED

    def within(self, buffer: Tensor, start: int) -> Tensor:
        """The tensor, as a view of the bytes of a bucket."""
        size = prod(self.shape) * self.dtype.itemsize
        return buffer[start : start + size].view(self.dtype).view(self.shape)


def cut(described: Iterable[Described], limit: int = BUCKET) -> Iterator[list[Described]]:
    """Consecutive tensors of at most `limit` bytes together, or one that is larger."""
    bucket: list[Described] = []
    size = 0
    for one in described:
        if bucket and size + one.space > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append(one)
        size += one.space
    if bucket:
        yield bucket


def packed(
    weights: Iterable[tuple[str, Tensor]], described: Sequence[Described], limit: int = BUCKET
) -> Iterator[Tensor]:
    """The bytes of each bucket, on the CPU. `weights` come as `described`, or an EngineError names the first other."""
    source = iter(weights)
    for bucket in cut(described, limit):
        starts, buffer = _room(bucket)
        for one, start in zip(bucket, starts, strict=True):
            name, value = next(source, ("nothing", torch.empty(0)))
            if (name, value.dtype, tuple(value.shape)) != one:
                raise EngineError(
                    f"weights to send: expected {one.name} {one.dtype} {list(one.shape)}, came {name} {value.dtype} "
                    f"{list(value.shape)}; a source must give what its metadata says"
                )
            one.within(buffer, start).copy_(value)
        yield buffer


def received(
    described: Sequence[Described], read: Callable[[Tensor], None], limit: int = BUCKET
) -> Iterator[list[tuple[str, Tensor]]]:
    """The weights of each bucket, once `read` has filled its bytes."""
    for bucket in cut(described, limit):
        starts, buffer = _room(bucket)
        read(buffer)
        yield [(one.name, one.within(buffer, start)) for one, start in zip(bucket, starts, strict=True)]


def _room(bucket: Sequence[Described]) -> tuple[list[int], Tensor]:
    """Where each tensor begins, and memory for all."""
    *starts, size = accumulate((one.space for one in bucket), initial=0)
    return starts, torch.empty(size, dtype=torch.uint8)
