"""Artifacts: immutable folders that say where they came from.

`runs/<stage>-<key>/` holds `artifact.json`, `payload/`, `metrics.jsonl` and `log.txt`. The key is known before the run:
the hash of the stage's identity, that is its kind, version, resolved spec without placement, and its inputs' keys. A
stage writes into a draft that survives a kill; the draft becomes the artifact by one rename, and is read-only after.
What is read is verified first. A damaged artifact is as good as none: the next run sets it aside and makes it again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tercet import artifact_json
from tercet.artifact_json import DamagedArtifactError
from tercet.folders import (
    FolderError,
    no_link,
    payload_digest,
    plain_files,
    remember,
    remembered_digest,
    set_writable,
    sync_tree,
)
from tercet.html_table import html_table
from tercet.journal import make_folder, to_disk
from tercet.machine import processor
from tercet.precision import reason
from tercet.recipe import Recipe
from tercet.stop import Stop
from tercet.track import Tracker

KEEP = ("artifact.json", "payload", "metrics.jsonl", "log.txt")  # what a committed folder holds
ENDPOINT = "endpoint.json"  # in the folder of a model behind a server
PLACE = re.compile(r".-[0-9a-f]{12}$")  # the end of an artifact's name
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class StoreError(FolderError):
    """A folder is not the artifact it should be; the message says what to do."""


class DiskFullError(OSError):
    """No space is left; nothing was committed."""


@dataclass(frozen=True)
class Artifact:
    """A committed folder. Example: kind "sft", name "sft", key "3f2a90c1b7de", inputs {"base": "91c0…"}."""

    kind: str
    name: str
    key: str
    path: Path
    inputs: dict[str, str]
    metrics: dict[str, float]

    @property
    def payload(self) -> Path:
        """The folder with the results themselves."""
        return self.path / "payload"

    @property
    def record(self) -> dict[str, Any]:
        """All of `artifact.json`: also version, spec, digest, seconds and versions."""
        return artifact_json.read(self.path)

    def _repr_html_(self) -> str:
        facts = {"folder": self.path.name, "made from": ", ".join(self.inputs) or "nothing"}
        facts |= {name: f"{value:,.6g}" for name, value in self.metrics.items()}
        return html_table(f"{self.name} ({self.kind})", ("", "value"), facts.items())

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Open a committed folder by its record, which must be whole; the payload is not looked at."""
        record = artifact_json.read(path)
        fields = {name: record[name] for name in ("kind", "name", "key", "inputs", "metrics")}
        return cls(path=path, **fields)


@dataclass
class Context:
    """What a stage may use besides its spec and inputs."""

    name: str
    seed: int
    recipe: Recipe
    work: Path  # scratch inside the draft: survives SIGKILL, is removed at commit
    track: Tracker
    mirror: dict[str, str]  # hub id -> local file
    open_model: Callable[..., Any]  # (model folder, dtype, engine="local") -> rows.Generator
    load_rows: Callable[..., Any] = lambda source, inputs: ([], {})  # (source, inputs) -> its rows, what was read
    stop: Stop = field(default_factory=Stop)  # whether the stage is to end before its time

    @property
    def store(self) -> Store:
        """The store that the artifact will be in."""
        return Store(self.work.parents[1])


@dataclass(frozen=True)
class Identity:
    """Everything that decides a stage's result; its hash is the key."""

    kind: str
    version: int
    spec: dict[str, Any]
    inputs: dict[str, str]

    @property
    def key(self) -> str:
        """The first 12 hex digits of the SHA-256 of the canonical JSON."""
        plain = {"kind": self.kind, "version": self.version, "spec": self.spec, "inputs": self.inputs}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Store:
    """A folder of artifacts."""

    def __init__(self, root: str | os.PathLike[str] = "runs") -> None:
        self.root = Path(root).absolute()

    @property
    def cache(self) -> Path:
        """The folder of what can be computed again: digests, tokens."""
        no_link(self.root / ".cache")
        return self.root / ".cache"

    def find(self, name: str, key: str) -> Artifact | None:
        """The artifact, or None when it has not been made, or is damaged, which `fault` tells."""
        try:
            return self._found(name, key)
        except FolderError:
            return None

    def fault(self, name: str, key: str) -> str:
        """Why what stands in the artifact's place cannot be used; empty where it can, or nothing stands there."""
        try:
            if os.path.lexists(self.root / f"{name}-{key}"):
                self._found(name, key)
        except FolderError as error:
            return error.why if isinstance(error, DamagedArtifactError) else str(error)
        return ""

    def _found(self, name: str, key: str) -> Artifact:
        artifact = self.intact(self.root / f"{name}-{key}")
        if (artifact.name, artifact.key) != (name, key):
            raise DamagedArtifactError(artifact.path, f"holds {artifact.name}-{artifact.key}")
        return artifact

    def intact(self, path: Path) -> Artifact:
        """The artifact in a folder, if its payload is what was committed; read once, and again if it changes."""
        artifact, payload = Artifact.read(path), path / "payload"
        artifact_json.compare(path, remembered_digest(payload, plain_files(payload), self.cache))
        return artifact

    def clear(self, name: str, key: str) -> tuple[list[str], str]:
        """Set aside what is damaged where an artifact is to be made; what was done, and the digest it had, if known."""
        said, digest, draft = [], "", self.draft(name, key)
        if fault := self.fault(name, key):
            with suppress(FolderError):
                digest = str(artifact_json.read(self.root / f"{name}-{key}")["digest"])
            aside = self._set_aside(self.root / f"{name}-{key}")
            said.append(f"{name}-{key} is damaged ({fault}); it is set aside as {aside.name} and made again")
        try:
            draft.is_sealed()
        except FolderError as error:
            aside = self._set_aside(draft.path)
            said.append(f"{error}; it is set aside as {aside.name} and made again")
        return said, digest

    def _set_aside(self, path: Path) -> Path:
        """Rename a folder so that nobody finds it; nothing is deleted."""
        places = (self.root / f".damaged-{path.name.lstrip('.')}-{number}" for number in itertools.count(1))
        aside = next(place for place in places if not os.path.lexists(place))
        os.rename(path, aside)
        to_disk(self.root)
        return aside

    def open(self, what: str | os.PathLike[str]) -> Artifact:
        """An artifact by folder, by `<stage>-<key>`, or by stage name where only one exists; not a damaged one."""
        return self.intact(self.folder(what))

    def folder(self, what: str | os.PathLike[str]) -> Path:
        """The folder of such an artifact, which may be damaged."""
        for path in (Path(what), self.root / what):
            if artifact_json.is_in(path):
                return path.absolute()
        named = [path for path in self.folders() if path.name.rpartition("-")[0] == str(what)]
        if len(named) == 1:
            return named[0]
        known = ", ".join(path.name for path in named or self.folders()) or "none"
        raise StoreError(
            f"{what}: {'several artifacts' if named else 'no such artifact'} in {self.root}; known: {known}"
        )

    def folders(self) -> list[Path]:
        """The folders of committed artifacts, by name, and what else stands where one should be."""
        return sorted(path for path in self.root.glob("[!.]*") if PLACE.search(path.name) or artifact_json.is_in(path))

    def __iter__(self) -> Iterator[Artifact]:
        """Every committed artifact with a whole record, by folder name; `tercet check` names the others."""
        for folder in self.folders():
            with suppress(FolderError, OSError):
                yield Artifact.read(folder)

    def lineage(self, artifact: Artifact) -> list[Artifact]:
        """The artifact and everything it was made from, inputs first; missing and damaged folders are an error."""
        found: dict[str, Artifact] = {}
        open_ends = {artifact.path: (artifact, iter(artifact.inputs.items()))}  # a stack of our own: chains may be long
        while open_ends:
            last, inputs = open_ends[next(reversed(open_ends))]
            if (entry := next(inputs, None)) is None:
                found[last.path.name] = last
                open_ends.popitem()
                continue
            path = last.path.parent / "-".join(entry)
            if path.name in found:
                continue
            if not artifact_json.is_in(path):
                raise StoreError(f"{last.path.name} was made from {path.name}, which is not in {path.parent}")
            if path in open_ends:
                raise StoreError(f"{path.name} is recorded as made from itself; remove it and run again")
            below = Artifact.read(path)
            open_ends[path] = below, iter(below.inputs.items())
        return list(found.values())

    def draft(self, name: str, key: str) -> Draft:
        """The draft of an artifact, new or left by a killed run. Hold its `lock` while it is in use."""
        return Draft(self.root, name, key)

    @contextmanager
    def lock(self, name: str, key: str, waiting: Callable[[str], None]) -> Iterator[int]:
        """One process at a time per key; `waiting(who)` is called once when another has it. Gives the descriptor.

        The lock lives as long as any process holds the descriptor, so a child that inherits it keeps it for its parent.
        """
        folder = self.root / ".locks"
        with disk_errors(folder):
            for path in (folder, folder / f"{name}-{key}"):
                no_link(path)
            make_folder(folder)
            lock = os.open(folder / f"{name}-{key}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(os.pread(lock, 100, 0).decode() or "unknown")
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            yield lock
        finally:
            os.close(lock)


@dataclass(frozen=True)
class Draft:
    """A stage's folder while it works: `payload/`, `work/`, `metrics.jsonl`, `log.txt` and the job."""

    root: Path
    name: str
    key: str

    @property
    def path(self) -> Path:
        """The folder of the draft, beside the artifacts."""
        return self.root / f".draft-{self.name}-{self.key}"

    @property
    def payload(self) -> Path:
        """Where the stage writes its results."""
        return self.path / "payload"

    @property
    def work(self) -> Path:
        """Where the stage keeps what it needs to continue after a kill."""
        return self.path / "work"

    def open(self) -> None:
        """Make the folders; after a kill, make them writable again and take away files that were cut short."""
        with disk_errors(self.path):
            for folder in (self.path, self.payload, self.work):
                no_link(folder)
                make_folder(folder)
            for path in self.path.iterdir():
                no_link(path)
            set_writable(self.path, writable=True)
            for file in plain_files(self.payload):
                if file.name.startswith(".") and file.name.endswith(".part"):
                    file.unlink()

    def remove(self) -> None:
        """Delete the draft."""
        if self.path.is_symlink():
            self.path.unlink()
        elif self.path.exists():
            set_writable(self.path, writable=True)
            shutil.rmtree(self.path)

    def commit(
        self, identity: Identity, metrics: dict[str, float], seconds: float, read: Mapping[str, str] | None = None
    ) -> Artifact:
        """Make the draft an artifact: sync, record, drop the scratch, protect, rename.

        `read` has the digests of the inputs as they were read.
        """
        with disk_errors(self.path):
            digest = payload_digest(self.payload)
            record: dict[str, Any] = {
                "kind": identity.kind,
                "name": self.name,
                "key": self.key,
                "version": identity.version,
                "inputs": identity.inputs,
                "input_digests": dict(read or {}),
                "spec": identity.spec,
                "metrics": metrics,
                "digest": digest,
                "seconds": round(seconds, 3),
                "versions": artifact_json.versions(),
                "processor": processor(),
                "beside": artifact_json.beside(self.path),
            }
            if "dtype" in identity.spec:
                record["precision"] = reason(str(identity.spec["dtype"]))
            sync_tree(self.payload)
            for name in record["beside"]:
                to_disk(self.path / name)
            artifact_json.write(self.path, record)
            made = self.seal()
            remember(made.payload, digest, self.root / ".cache")
            return made

    def is_sealed(self) -> bool:
        """Whether a commit that was killed had written its record; FolderError where the payload does not fit it."""
        if not (self.path / artifact_json.NAME).exists():
            return False
        artifact_json.compare(self.path, payload_digest(self.payload))
        return True

    def seal(self) -> Artifact:
        """The last step of a commit; a run that was killed inside it is finished by doing it again."""
        with disk_errors(self.path):
            for scratch in self.path.iterdir():
                if scratch.name not in KEEP:
                    shutil.rmtree(scratch) if scratch.is_dir() and not scratch.is_symlink() else scratch.unlink()
            set_writable(self.path, writable=False)
            to_disk(self.path)
            final = self.root / f"{self.name}-{self.key}"
            os.rename(self.path, final)
            to_disk(self.root)
        return Artifact.read(final)


def source_digest(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a local file, or payload digest of a folder; remembered in `cache` while size and times stay equal.

    A user's folder may hold links, as the hub's does. The payload of an artifact must be as it was committed.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = remembered_digest(path, files, cache)
    if path.name == "payload" and artifact_json.is_in(path.parent):
        artifact_json.compare(path.parent, digest)
    return digest


def endpoint(folder: Path) -> dict[str, Any] | None:
    """The `url` and `model` of the server that a model's folder names, and `extra` parameters; None of weights."""
    path = folder / ENDPOINT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk into one clear error."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or error.errno not in NO_SPACE:
            raise
        raise DiskFullError(error.errno, disk_full(place)) from error


def disk_full(place: Path) -> str:
    """The message of a full disk."""
    return f"the disk that holds {place} is full; nothing was committed. Free some space and run the same command again"
