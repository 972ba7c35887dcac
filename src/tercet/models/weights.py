"""Weights written as safetensors: each tensor as it comes, in files of at most a size, in fp32 or what is asked for.

Same tensors, same bytes, whatever order they come in and however many ranks write. A model that fits one file is one
file, `model.safetensors`; a larger one is numbered shards and an index beside them, as the hub has them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from tercet.journal import replacing, write_json
from tercet.models.headers import BaseError, stored_tensors

if TYPE_CHECKING:
    from tercet.device.mesh import Mesh

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
    mesh: Mesh | None = None,
) -> list[Path]:
    """Write a tensor for every name of `shapes`; returns the files, which appear when all of them are whole.

    `path` is the one file; where the tensors take more than `shard` bytes, numbered files and their index stand beside
    it. `dtypes` has the precision of those that are not fp32. Tensors without a shape (second names of tied ones) are
    left out. The ranks of a `mesh` write a file each in turn, and all must give all tensors; while a file is written
    the tensors of the next ones are gathered, so that a rank holds those of one file, and one more.
    """
    if mesh is None:
        from tercet.device.mesh import Mesh  # here, as its recipes need packages that reading a model does not

        mesh = Mesh()
    headers = _headers(shapes, dtypes or {}, shard)
    paths = [path]
    if len(headers) > 1:
        paths = [
            path.with_name(f"{path.stem}-{i:05d}-of-{len(headers):05d}.safetensors") for i in range(1, len(headers) + 1)
        ]
    own = range(mesh.rank, len(paths), mesh.size)
    with ExitStack() as stack:
        parts = {number: stack.enter_context(replacing(paths[number])) for number in own}
        for number, part in parts.items():
            with open(part, "wb") as file:
                file.write(headers[number].text)
                file.truncate(len(headers[number].text) + headers[number].size)
        _fill(parts, headers, tensors, path, ahead=shard if mesh.size > 1 else 0)
        mesh.barrier()
    mesh.barrier()
    if mesh.first:
        _write_index(path, paths, headers)
    return paths


def _write_index(path: Path, paths: list[Path], headers: list[Header]) -> None:
    """Say which of several files holds which tensor."""
    index = path.with_name(f"{path.name}.index.json")
    index.unlink(missing_ok=True)
    if len(headers) > 1:
        found = {name: file.name for file, header in zip(paths, headers, strict=True) for name in header.tensors}
        total = sum(header.size for header in headers)
        write_json(index, {"metadata": {"total_size": total}, "weight_map": found}, sort_keys=True)
        path.unlink(missing_ok=True)  # one that stood there would be read instead


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


def _fill(
    parts: Mapping[int, Path], headers: list[Header], tensors: Iterable[tuple[str, Tensor]], path: Path, *, ahead: int
) -> None:
    """Put every tensor of the files `parts`, by their numbers, in its place; at most `ahead` bytes wait to be written.

    One file is open at a time.
    """
    places = {name: (number, at) for number, header in enumerate(headers) for name, at in header.tensors.items()}
    missing, begins = set(places), {number: len(headers[number].text) for number in parts}
    waiting: deque[tuple[Future[None], int]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for name, tensor in tensors:
            if name not in places:
                continue  # the second name of a tied tensor
            number, at = places[name]
            if tuple(tensor.shape) != tuple(at["shape"]):
                wanted = tuple(at["shape"])
                raise BaseError(f"{path}: {name} has shape {tuple(tensor.shape)}, config.json wants {wanted}")
            missing.discard(name)
            if number not in parts:
                continue  # another rank's
            plain = tensor.detach().to(device="cpu", dtype=DTYPES[at["dtype"]]).contiguous().reshape(-1)
            offset = begins[number] + at["data_offsets"][0]
            waiting.append((pool.submit(_put, parts[number], offset, plain), plain.nbytes))
            while waiting and sum(size for _, size in waiting) > ahead:
                waiting.popleft()[0].result()
        for written, _ in waiting:
            written.result()
    if missing:
        raise BaseError(f"{path}: {len(missing)} tensors were not given, e.g. {', '.join(sorted(missing)[:3])}")


def _put(part: Path, offset: int, plain: Tensor) -> None:
    with open(part, "r+b") as file:
        file.seek(offset)
        file.write(plain.view(torch.uint8).numpy().data)
