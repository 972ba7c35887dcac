"""A rank's share of named tensors in a safetensors file of its own, and any part of the tensors read from such files.

Nothing is unpickled: names, shapes and where a share begins in its whole tensor stand in the file's JSON header. So
other numbers of ranks find their parts too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from tercet.journal import DamagedError, open_plain

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Box = tuple[slice, ...]
MAPPED = 1 << 27  # bytes that are read of a file before it is closed


class SharePart(NamedTuple):
    """Of a tensor: a part that this rank has, and which part of what a file holds belongs there."""

    target: Tensor
    name: str
    file: Path
    theirs: Box


class Stamp(NamedTuple):
    """How a whole file is known: `Stamp(1024, "9f86d0...")`, bytes and SHA-256."""

    size: int
    digest: str


def write_shares(file: Path, tensors: Mapping[str, Tensor]) -> Stamp:
    """Write what this rank has of the tensors, one after another; they are on the disk when this returns."""
    own = {name: share_of(value) for name, value in tensors.items()}
    size, digest = 0, hashlib.sha256()
    with open(file, "xb") as stream:
        for piece in _pieces(own):
            stream.write(piece)
            digest.update(piece)
            size += len(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return Stamp(size, digest.hexdigest())


def check_file(file: Path, stamp: Stamp) -> None:
    """DamagedError where a file is not, byte for byte, the one that got this stamp."""
    with open_plain(file) as stream:
        if (size := os.fstat(stream.fileno()).st_size) != stamp.size:
            raise DamagedError(f"{file}: has {size:,} bytes, and {stamp.size:,} were written")
        if hashlib.file_digest(stream, "sha256").hexdigest() != stamp.digest:
            raise DamagedError(f"{file}: its bytes are not those that were written")


class Shares:
    """Tensors in the files of all ranks; each file is opened when something is looked for in it."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files` in the order in which they are searched: this rank's own first."""
        self.files = files
        self._opened: dict[Path, tuple[Any, dict[str, list[int]]]] = {}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into this rank's shares of these tensors; where a part of one is in no file, nothing is changed.

        Files are closed again and again: the pages that were read of one leave the process's memory with it.
        """
        copies = [copy for name, value in tensors.items() for copy in self._found(name, value)]
        ends = accumulate(copy.target.nbytes for copy in copies)
        self._opened.clear()
        with torch.no_grad():
            for (file, _), some in groupby(zip(copies, ends, strict=True), lambda one: (one[0].file, one[1] // MAPPED)):
                with safe_open(file, framework="pt") as stored:
                    for (target, name, _, theirs), _ in some:
                        part = stored.get_slice(name)
                        target.copy_(part[theirs] if theirs else part[...])

    def _found(self, name: str, value: Tensor) -> Iterator[SharePart]:
        """Which part of this rank's share comes from which part of what a file holds."""
        local, begins = share_of(value)
        left = local.numel()
        for file in self.files:
            if not left:
                break
            stored, places = self._open(file)
            if name not in places:
                continue
            part = stored.get_slice(name)
            if part.get_dtype() != CODES.get(local.dtype):
                raise DamagedError(f"{file}: {name} is {part.get_dtype()}, expected {CODES.get(local.dtype)}")
            both = overlap(begins, local.shape, places[name], part.get_shape())
            if both is not None:
                left -= local[both[0]].numel()
                yield SharePart(local[both[0]] if both[0] else local, name, file, both[1])
        if left:
            raise DamagedError(f"{self.files[0].parent}: {left:,} numbers of {name} are in none of its files")

    def _open(self, file: Path) -> tuple[Any, dict[str, list[int]]]:
        if file not in self._opened:
            stored = safe_open(file, framework="pt")
            self._opened[file] = stored, json.loads(stored.metadata()["begins"])
        return self._opened[file]


def share_of(value: Any) -> tuple[Tensor, Sequence[int]]:
    """This rank's part of a tensor, and where it begins in the whole."""
    if not hasattr(value, "to_local"):
        return value.detach(), [0] * value.dim()
    [chunk] = value.__create_chunk_list__()  # torch's protocol for checkpoints: any layout that DTensor knows
    return value.to_local().detach(), list(chunk.offsets)


def both_shares(own: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's share of a tensor, and the same part of another, which is whole or shared out alike."""
    mine, begins = share_of(own)
    if hasattr(value, "to_local"):
        return mine, value.to_local().detach()
    return mine, value[tuple(slice(at, at + size) for at, size in zip(begins, mine.shape, strict=True))]


def _pieces(own: Mapping[str, tuple[Tensor, Sequence[int]]]) -> Iterator[Any]:
    """The bytes of a safetensors file: its header, then tensor after tensor, none of them copied in the host's memory.

    Widest numbers first, so that all are aligned.
    """
    names = sorted(own, key=lambda name: (-own[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"begins": json.dumps({name: own[name][1] for name in names})}}
    end = 0
    for name in names:
        tensor = own[name][0]
        place = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield own[name][0].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def overlap(
    begins: Sequence[int], shape: Sequence[int], others: Sequence[int], other_shape: Sequence[int]
) -> tuple[Box, Box] | None:
    """What two boxes of one tensor share, as seen from each of them; None where that is nothing."""
    lows = [max(pair) for pair in zip(begins, others, strict=True)]
    ends = [min(a + n, b + m) for a, n, b, m in zip(begins, shape, others, other_shape, strict=True)]
    if not math.prod(max(0, end - low) for low, end in zip(lows, ends, strict=True)):
        return None

    def seen(origin: Sequence[int]) -> Box:
        return tuple(slice(low - at, end - at) for low, end, at in zip(lows, ends, origin, strict=True))

    return seen(begins), seen(others)
