"""What `tercet check` finds: everything of an artifact read again, and compared with what its commit recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet import artifact_json
from tercet.artifact_json import DamagedArtifactError
from tercet.folders import FolderError, payload_digest
from tercet.store import KEEP, Identity


def faults(folder: Path) -> list[str]:
    """What is wrong with an artifact: nothing, or one line for each fault. Every byte is read, nothing remembered."""
    if not folder.is_dir():
        return ["is no folder"]
    strangers = sorted(set(os.listdir(folder)) - set(KEEP))
    found = [f"holds {name}, which no stage writes" for name in strangers]
    record: dict[str, Any] = {}
    try:
        record = artifact_json.read(folder)
    except DamagedArtifactError as error:
        found.append(f"artifact.json is damaged: {error.why}")
    except (FolderError, OSError) as error:
        found.append(str(error))
    try:
        digest = payload_digest(folder / "payload")
    except (FolderError, OSError) as error:
        found.append(str(error))
    else:
        if record and digest != record["digest"]:
            found.append(f"payload has changed: digest {digest[:12]}, recorded {record['digest'][:12]}")
    return [*found, *(_of_record(folder, record) if record else ())]


def _of_record(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    """The key is that of the settings, the folder's name that of stage and key; inputs and files beside fit too."""
    key = Identity(record["kind"], record.get("version", 0), record.get("spec", {}), record["inputs"]).key
    if record["key"] != key or folder.name != f"{record['name']}-{record['key']}":
        yield f"key {record['key']} of {record['name']} does not fit what is recorded, which gives {key}"
    for name, known in record["inputs"].items():
        yield from _of_input(folder.parent / f"{name}-{known}", record.get("input_digests", {}).get(name))
    if not artifact_json.is_older(record):
        yield from artifact_json.faults_beside(folder, record["beside"])


def _of_input(folder: Path, read: str | None) -> Iterator[str]:
    """An input is there, whole, and holds what it held when it was read."""
    try:
        now = artifact_json.read(folder)["digest"]
    except DamagedArtifactError:
        yield f"input {folder.name} is damaged"
    except (FolderError, OSError):
        yield f"input {folder.name} is missing"
    else:
        if read not in (None, now):
            yield f"input {folder.name} was made again and differs: digest {now[:12]}, read {read[:12]}"


def not_covered(folder: Path) -> str:
    """What a check could not see of an artifact that an earlier version of Tercet made; empty for others."""
    older = artifact_json.is_older(artifact_json.read(folder))
    return "; made before records had digests: metrics, times and versions are not covered" if older else ""
