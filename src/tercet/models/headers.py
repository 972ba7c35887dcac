"""What the files of a model folder say of themselves, read within limits and without torch.

Somebody else may have written the folder: nothing here allocates more than a file is long, and a safetensors header is
believed only where every tensor has the bytes that its shape needs, one after another, to the end of the file.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
JSON_BYTES = 64 << 20  # config.json and its kind; a tokenizer of a million tokens describes itself in less
HEADER_BYTES = 100_000_000  # the format's own limit
DEPTH = 48  # of JSON, one value in another
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
SIZES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}
SNAPSHOTS, BLOBS = "snapshots", "blobs"  # the hub's cache: snapshots/COMMIT/NAME is a link to ../../blobs/DIGEST
WEIGHTS = re.compile(r"[\w.-]+\.safetensors")

Stored = dict[str, tuple[str, tuple[int, ...]]]  # dtype code and shape by name


class BaseError(ValueError):
    """A base model or a model folder is not what was expected."""


def read_json(path: Path, most: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes; one that nests more than 48 values deep is refused."""
    try:
        size = path.stat().st_size
        if size > most:
            raise BaseError(
                f"{path}: expected at most {most:,} bytes of JSON, found {size:,}; take the model's own file"
            )
        value = json.loads(path.read_text("utf-8"))
    except RecursionError:
        value = None
    except BaseError:
        raise
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise BaseError(f"{path}: expected JSON ({said}); copy the file again") from error
    if value is None or _deep(value):
        raise BaseError(f"{path}: its JSON nests more than {DEPTH} values deep; take the model's own file")
    if not isinstance(value, dict):
        raise BaseError(f"{path}: expected a JSON object, got {type(value).__name__}; copy the file again")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path of a folder's file; one that a link takes out of the folder is refused (the hub's cache links to blobs).

    What a folder from elsewhere links to would be copied into results, and published with them.
    """
    path, home = folder / name, folder.resolve()
    if not path.is_symlink() or not path.exists():  # a link to nothing, or to itself, is as good as no file
        return path
    target, blobs = path.resolve(), home.parent.parent / BLOBS
    if home not in target.parents and not (home.parent.name == SNAPSHOTS and target.parent == blobs):
        raise BaseError(f"{path}: is a link to {target}, outside its folder; put the file itself in its place")
    return path


def stored_tensors(file: Path) -> Stored:
    """Dtype code and shape of every tensor of a safetensors file, by name; none of the data is read."""
    return described(file)[0]


def described(file: Path) -> tuple[Stored, int]:
    """What a safetensors file says of itself: see `stored_tensors`, and how many bytes it has when it is whole."""
    try:
        with open(file, "rb") as stream:
            length, most = int.from_bytes(stream.read(8), "little"), os.fstat(stream.fileno()).st_size - 8
            if length > min(most, HEADER_BYTES):
                raise ValueError(f"a header of {length:,} bytes, where at most {min(most, HEADER_BYTES):,} can be")
            found = json.loads(stream.read(length), object_pairs_hook=_once)
        found.pop("__metadata__", None)
        return {name: (at["dtype"], tuple(at["shape"])) for name, at in found.items()}, 8 + length + _end(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BaseError(f"{file}: not a readable safetensors file ({error}); copy it again") from error


def _end(tensors: dict[str, Any]) -> int:
    """Where the last tensor ends; each must begin where the one before it ends, and be as long as its shape needs."""
    place = 0
    for name, at in sorted(tensors.items(), key=lambda one: one[1]["data_offsets"]):
        (begin, end), shape = at["data_offsets"], at["shape"]
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError(f"{name}: shape {shape} and offsets {begin}, {end}, expected whole numbers")
        if begin != place:
            raise ValueError(f"{name} begins at byte {begin}, and the tensor before it ends at {place}")
        size = SIZES.get(at["dtype"])
        if end < begin or (size and math.prod(shape) * size != end - begin):
            raise ValueError(f"{name} of shape {shape} in {at['dtype']} has {end - begin:,} bytes")
        place = end
    return place


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH):
        level = [
            one
            for held in level
            for one in (held.values() if isinstance(held, dict) else held if isinstance(held, list) else ())
        ]
        if not level:
            return False
    return True
