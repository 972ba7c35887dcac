"""`artifact.json`: what an artifact is, what it was made from, and whether this record is whole.

The last field is a digest of all others, so that a changed metric, time or version is seen as a changed weight is.
Digests find damage; they prove nothing about somebody who may write the whole store.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tercet.folders import FolderError, no_link
from tercet.journal import DamagedError, json_text, open_plain, replace

NAME = "artifact.json"
BESIDE = ("metrics.jsonl", "log.txt")  # files of an artifact beside its payload, kept as [bytes, SHA-256]
FIELDS: dict[str, type] = {"kind": str, "name": str, "key": str, "inputs": dict, "metrics": dict, "digest": str}
OPTIONAL: dict[str, type] = {
    "version": int,
    "spec": dict,
    "seconds": numbers.Real,
    "versions": dict,
    "processor": str,
    "precision": str,
}
OWN = "record_digest"
VERSIONS = ("tercet", "torch", "transformers")  # whose versions an artifact records


class DamagedArtifactError(FolderError):
    """What was committed is not what is there; `why` says the difference."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: damaged ({why}); running its recipe sets it aside and makes it again")
        self.why = why


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write the record with its own digest."""
    replace(folder / NAME, json_text(record | {OWN: _digest(record)}))


def read(folder: Path) -> dict[str, Any]:
    """The record of an artifact: whole, with every field of its type."""
    path = folder / NAME
    try:
        with open_plain(path) as stream:
            data = stream.read()
        record = json.loads(data)
    except FileNotFoundError:
        raise FolderError(f"{folder}: not an artifact (no {NAME})") from None
    except (DamagedError, NotADirectoryError, ValueError, RecursionError) as error:
        raise DamagedArtifactError(path, str(error)) from None
    if why := _fault(record, data):
        raise DamagedArtifactError(path, why)
    return dict(record)


def is_in(folder: Path) -> bool:
    """Whether a folder has a record, which may be damaged."""
    return (folder / NAME).is_file()


def compare(folder: Path, digest: str) -> None:
    """Refuse a payload that is not what its record says."""
    recorded = read(folder)["digest"]
    if digest != recorded:
        raise DamagedArtifactError(folder, f"payload has changed: digest {digest[:12]}, recorded {recorded[:12]}")


def is_older(record: dict[str, Any]) -> bool:
    """Whether a record is of a version of Tercet that gave it no digest of its own."""
    return OWN not in record


def _fault(record: Any, data: bytes) -> str:
    """What is wrong with a record; empty where nothing is."""
    if not isinstance(record, dict):
        return f"expected a JSON object, got {type(record).__name__}"
    for name, kind in (FIELDS | {name: kind for name, kind in OPTIONAL.items() if name in record}).items():
        if not isinstance(record.get(name), kind):
            return f"{name}: expected {kind.__name__}, got {record.get(name)!r:.60}"
    names = [record["name"], record["key"], *record["inputs"], *record["inputs"].values()]
    if not all(isinstance(name, str) and name and "/" not in name for name in names):
        return "expected names and keys without '/'"
    if not all(isinstance(value, int | float | None) for value in record["metrics"].values()):
        return "metrics: expected numbers"
    if is_older(record):
        unknown = record.keys() - FIELDS.keys() - OPTIONAL.keys()
        return f"fields {', '.join(sorted(unknown))} without {OWN}" if unknown else ""
    plain = {name: value for name, value in record.items() if name != OWN}
    same = record[OWN] == _digest(plain) and data == _encoded(record)
    return "" if same else "the record has changed since it was written"


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(_encoded(record)).hexdigest()


def _encoded(record: dict[str, Any]) -> bytes:
    return json_text(record).encode("utf-8", "surrogatepass")


def beside(folder: Path) -> dict[str, list[Any]]:
    """The files beside the payload as the record keeps them: `{"log.txt": [120, "5f3a…"]}`."""
    for name in BESIDE:
        no_link(folder / name)
    return {name: _first(folder / name) for name in BESIDE if (folder / name).is_file()}


def faults_beside(folder: Path, kept: dict[str, list[Any]]) -> Iterator[str]:
    """What is wrong with the files beside the payload.

    The log may have grown: the process of a stage writes to it until it ends, after the commit.
    """
    for name in BESIDE:
        file, known = folder / name, name in kept
        if file.is_symlink() or (file.exists() and not file.is_file()):
            yield f"{name} is no plain file"
        elif known != file.exists():
            yield f"{name} is {'missing' if known else 'not of this artifact'}"
        elif known:
            grown = name != "log.txt" and file.stat().st_size != kept[name][0]
            if grown or _first(file, kept[name][0]) != kept[name]:
                yield f"{name} has changed"


def _first(file: Path, size: int = sys.maxsize) -> list[Any]:
    """How many of the first `size` bytes of a file there are, and their SHA-256."""
    total, count = hashlib.sha256(), 0
    with open(file, "rb") as stream:
        while part := stream.read(min(1 << 20, size - count)):
            total.update(part)
            count += len(part)
    return [count, total.hexdigest()]


def versions() -> dict[str, str]:
    """The versions of what decides results, as far as it is installed."""
    found = {}
    for name in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
