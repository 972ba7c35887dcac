"""Weights written as safetensors: each tensor as it comes, in files of at most a size, in fp32 or what is asked for.

Same tensors, same bytes, whatever order they come in. A model that fits one file is one file, `model.safetensors`;
a larger one is numbered shards and an index beside them, as the hub has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from tercet.journal import replacing, write_json
from tercet.models.headers import BaseError, stored_tensors

SHARD = 5 * 10**9  # bytes of tensors in one file
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
DTYPES = {code: dtype for dtype, code in CODES.items()}

WIDENED = Path("tercet", "widened.json")

Shapes = Mapping[str, tuple[int, ...]]


class Header(NamedTuple):
    """Where tensors stand in one file: `Header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8)`."""

    tensors: dict[str, dict[str, Any]]
    size: int

    @property
    def text(self) -> bytes:
        """The first bytes of the file: the length of the JSON, and the JSON padded to eight bytes."""
        plain = {"__metadata__": {"format": "pt"}, **self.tensors}
        text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_weights(
    path: Path,
    shapes: Shapes,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    shard: int = SHARD,
) -> list[Path]:
    """Write a tensor for every name of `shapes`; returns the files, which appear when all of them are whole.

    `path` is the one file; where the tensors take more than `shard` bytes, numbered files and their index stand beside
    it. `dtypes` has the precision of those that are not fp32. Tensors without a shape (second names of tied ones) are
    left out.
    """
    headers = _headers(shapes, dtypes or {}, shard)
    paths = [path]
    if len(headers) > 1:
        paths = [
            path.with_name(f"{path.stem}-{i:05d}-of-{len(headers):05d}.safetensors") for i in range(1, len(headers) + 1)
        ]
    with ExitStack() as stack:
        parts = [stack.enter_context(replacing(file)) for file in paths]
        for part, header in zip(parts, headers, strict=True):
            with open(part, "wb") as file:
                file.write(header.text)
                file.truncate(len(header.text) + header.size)
        _fill(parts, headers, tensors, path)
    index = path.with_name(f"{path.name}.index.json")
    index.unlink(missing_ok=True)
    if len(headers) > 1:
        found = {name: file.name for file, header in zip(paths, headers, strict=True) for name in header.tensors}
        total = sum(header.size for header in headers)
        write_json(index, {"metadata": {"total_size": total}, "weight_map": found}, sort_keys=True)
        path.unlink(missing_ok=True)  # one that stood there would be read instead
    return paths


def each_tensor(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one at a time."""
    with safe_open(file, framework="pt") as stored:
        for name in stored_tensors(file):
            yield name, stored.get_tensor(name)


def note_widened(folder: Path, names: Iterable[str]) -> None:
    """Write down which tensors of a folder are in fp32 only because Tercet changed them, for the export."""
    if found := sorted(widened(folder) | set(names)):
        (folder / WIDENED).parent.mkdir(exist_ok=True)
        write_json(folder / WIDENED, found)


def widened(folder: Path) -> set[str]:
    """The tensors that `note_widened` wrote down."""
    path = folder / WIDENED
    return set(json.loads(path.read_text("utf-8"))) if path.is_file() else set()


def _headers(shapes: Shapes, dtypes: Mapping[str, torch.dtype], shard: int) -> list[Header]:
    """The tensors in order of their names, a new file where one would grow beyond `shard` bytes."""
    headers = [Header({}, 0)]
    for name in sorted(shapes):
        dtype = dtypes.get(name, torch.float32)
        size = dtype.itemsize * int(torch.Size(shapes[name]).numel())
        tensors, begin = headers[-1]
        if tensors and begin + size > shard:
            tensors, begin = {}, 0
            headers.append(Header(tensors, 0))
        tensors[name] = {"dtype": CODES[dtype], "shape": list(shapes[name]), "data_offsets": [begin, begin + size]}
        headers[-1] = Header(tensors, begin + size)
    return headers


def _fill(parts: list[Path], headers: list[Header], tensors: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Put every tensor in its place; one file is open at a time."""
    places = {
        name: (part, len(header.text) + at["data_offsets"][0], at)
        for part, header in zip(parts, headers, strict=True)
        for name, at in header.tensors.items()
    }
    missing = set(places)
    for name, tensor in tensors:
        if name not in places:
            continue  # the second name of a tied tensor
        part, offset, at = places[name]
        if tuple(tensor.shape) != tuple(at["shape"]):
            wanted = tuple(at["shape"])
            raise BaseError(f"{path}: {name} has shape {tuple(tensor.shape)}, config.json wants {wanted}")
        plain = tensor.detach().to(device="cpu", dtype=DTYPES[at["dtype"]]).contiguous().reshape(-1)
        with open(part, "r+b") as file:
            file.seek(offset)
            file.write(plain.view(torch.uint8).numpy().data)
        missing.discard(name)
    if missing:
        raise BaseError(f"{path}: {len(missing)} tensors were not given, e.g. {', '.join(sorted(missing)[:3])}")
