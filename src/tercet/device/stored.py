"""Parameters whose numbers are still on the disk: where each stands in the files, and how a rank reads its part of it.

A module keeps the places of its own parameters, so they stay found whatever is put around it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tercet.device.shares import Box, overlap, share_of
from tercet.journal import DamagedError

STORED = "stored_in"
"""Attribute of a module with parameters on `meta`: the pieces of each, by its name."""


class StoredPart(NamedTuple):
    """A tensor of a file and where it lies in a parameter, which it may be only a part of.

    It begins at `begins` of the parameter, and its own dimensions are those `dims` of the parameter: one expert of a
    layer is `StoredPart(file, "experts.3.up_proj.weight", (3, 64, 0), (1, 2))` of a tensor of all of them.
    """

    file: Path
    name: str
    begins: tuple[int, ...]
    dims: tuple[int, ...]


def read_pieces(value: Tensor, pieces: Sequence[StoredPart]) -> None:
    """Copy this rank's share of a tensor out of the plain safetensors files that hold it, in any precision.

    The files are closed at the end: the pages that were read of them leave the process's memory.
    """
    local, begins = share_of(value)
    if not (left := local.numel()):
        return
    with ExitStack() as stack, torch.no_grad():
        files = {one: stack.enter_context(safe_open(one, framework="pt")) for one in {piece.file for piece in pieces}}
        for piece in pieces:
            part = files[piece.file].get_slice(piece.name)
            shape = [1] * value.dim()
            for dim, size in zip(piece.dims, part.get_shape(), strict=True):
                shape[dim] = size
            both = overlap(begins, local.shape, piece.begins, shape)
            if both is not None:
                left -= local[both[0]].numel()
                _put(local, both[0], part, both[1], piece.dims)
    if left:
        raise DamagedError(f"{pieces[0].file.parent}: lacks {left:,} numbers beside {pieces[0].name}")


def whole_of(shape: Sequence[int], pieces: Sequence[StoredPart]) -> Tensor:
    """A tensor out of its files, in fp32."""
    value = torch.empty(*shape)
    read_pieces(value, pieces)
    return value


def _put(local: Tensor, mine: Box, part: Any, theirs: Box, dims: Sequence[int]) -> None:
    """Copy a box of a file's tensor, whose dimensions are those `dims` of the parameter, into a box of a share."""
    inside = tuple(at if dim in dims else at.start for dim, at in enumerate(mine))
    order = [sorted(dims).index(dim) for dim in dims]
    own = tuple(theirs[dim] for dim in dims)
    local[inside].permute(order).copy_(part[own] if own else part[...])


def read_stored(module: nn.Module, device: torch.device) -> None:
    """Give all parameters on `meta` memory on `device`, and this rank's shares of their numbers."""
    tied = defaultdict(list)
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_meta:
                tied[id(value)].append((part, name))
    if not tied:
        return
    module._apply(lambda one: torch.empty_like(one, device=device) if one.is_meta else one)
    for (part, name), *others in tied.values():
        for other, also in others:
            setattr(other, also, getattr(part, name))
    for part in module.modules():
        for name, pieces in vars(part).pop(STORED, {}).items():
            value = part._parameters[name]
            assert value is not None
            read_pieces(value, pieces)
