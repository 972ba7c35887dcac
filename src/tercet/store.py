"""Artifacts: immutable folders that say where they came from.

`runs/<stage>-<key>/` holds `artifact.json`, `payload/`, `metrics.jsonl` and `log.txt`. The key is known before the run:
the hash of the stage's identity, that is its kind, version, resolved spec without placement, and its inputs' keys. A
stage writes into a draft that survives a kill; the draft becomes the artifact by one rename, and is read-only after.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tercet.journal import replace, to_disk, write_json
from tercet.machine import processor
from tercet.precision import reason
from tercet.recipe import Recipe
from tercet.stop import Stop
from tercet.track import Tracker

KEEP = ("artifact.json", "payload", "metrics.jsonl", "log.txt")  # what a committed folder holds
ENDPOINT = "endpoint.json"  # in the folder of a model behind a server
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
VERSIONS = ("tercet", "torch", "transformers")  # whose versions an artifact records


class StoreError(ValueError):
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
        return _record(self.path)

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Open a committed folder."""
        record = _record(path)
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

    def find(self, name: str, key: str) -> Artifact | None:
        """The artifact, or None when it has not been made."""
        path = self.root / f"{name}-{key}"
        return Artifact.read(path) if (path / "artifact.json").is_file() else None

    def open(self, what: str | os.PathLike[str]) -> Artifact:
        """An artifact by folder, by `<stage>-<key>`, or by stage name where only one exists."""
        for path in (Path(what), self.root / what):
            if (path / "artifact.json").is_file():
                return Artifact.read(path.absolute())
        named = [artifact for artifact in self if artifact.name == str(what)]
        if len(named) == 1:
            return named[0]
        known = ", ".join(a.path.name for a in named or self) or "none"
        raise StoreError(
            f"{what}: {'several artifacts' if named else 'no such artifact'} in {self.root}; known: {known}"
        )

    def __iter__(self) -> Iterator[Artifact]:
        """Every committed artifact, by folder name."""
        for record in sorted(self.root.glob("[!.]*/artifact.json")):
            yield Artifact.read(record.parent)

    def lineage(self, artifact: Artifact) -> list[Artifact]:
        """The artifact and everything it was made from, inputs first; missing folders are an error."""
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
            if not (path / "artifact.json").is_file():
                raise StoreError(f"{last.path.name} was made from {path.name}, which is not in {path.parent}")
            if path in open_ends:
                raise StoreError(f"{path.name} is recorded as made from itself; remove it and run again")
            below = Artifact.read(path)
            open_ends[path] = below, iter(below.inputs.items())
        return list(found.values())

    def check(self, artifact: Artifact) -> list[str]:
        """What is wrong with an artifact: nothing, or one line per fault."""
        record, faults = artifact.record, []
        digest = payload_digest(artifact.payload)
        if digest != record["digest"]:
            faults.append(f"payload has changed: digest {digest[:12]}, recorded {record['digest'][:12]}")
        identity = Identity(**{name: record[name] for name in ("kind", "version", "spec", "inputs")})
        if not artifact.key == identity.key == artifact.path.name.removeprefix(f"{artifact.name}-"):
            faults.append(f"key {artifact.key} does not fit what is recorded, which gives {identity.key}")
        for name, key in artifact.inputs.items():
            if not (artifact.path.parent / f"{name}-{key}" / "artifact.json").is_file():
                faults.append(f"input {name}-{key} is missing")
        return faults

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
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / f"{name}-{key}", os.O_RDWR | os.O_CREAT, 0o644)
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
                folder.mkdir(parents=True, exist_ok=True)
            _chmod(self.path, writable=True)
            for partial in self.payload.rglob(".*.part"):
                partial.unlink()

    def remove(self) -> None:
        """Delete the draft."""
        if self.path.exists():
            _chmod(self.path, writable=True)
            shutil.rmtree(self.path)

    def commit(self, identity: Identity, metrics: dict[str, float], seconds: float) -> Artifact:
        """Make the draft an artifact: sync, record, drop the scratch, protect, rename."""
        with disk_errors(self.path):
            digest = payload_digest(self.payload)
            record = {
                "kind": identity.kind,
                "name": self.name,
                "key": self.key,
                "version": identity.version,
                "inputs": identity.inputs,
                "spec": identity.spec,
                "metrics": metrics,
                "digest": digest,
                "seconds": round(seconds, 3),
                "versions": _versions(),
                "processor": processor(),
            }
            if "dtype" in identity.spec:
                record["precision"] = reason(str(identity.spec["dtype"]))
            for file in (*self.payload.rglob("*"), self.payload, *self.path.glob("*.*")):
                to_disk(file)
            write_json(self.path / "artifact.json", record)
            return self.seal()

    def seal(self) -> Artifact:
        """The last step of a commit; a run that was killed inside it is finished by doing it again."""
        with disk_errors(self.path):
            for scratch in self.path.iterdir():
                if scratch.name not in KEEP:
                    shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
            _chmod(self.path, writable=False)
            to_disk(self.path)
            final = self.root / f"{self.name}-{self.key}"
            os.rename(self.path, final)
            to_disk(self.root)
        return Artifact.read(final)


def payload_digest(folder: Path) -> str:
    """SHA-256 over the sorted relative paths and the SHA-256 of each file."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n".encode())
    return total.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of one file."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_digest(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a local file, or payload digest of a folder; remembered in `cache` while size and times stay equal."""
    if (path.parent / "artifact.json").is_file() and path.name == "payload":
        return str(_record(path.parent)["digest"])
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    marks = [(str(file), file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    mark = hashlib.sha256(repr(marks).encode()).hexdigest()
    entry = cache / mark if cache else None
    if entry is not None and entry.is_file():
        return entry.read_text(encoding="utf-8")
    digest = payload_digest(path) if path.is_dir() else file_digest(path)
    if entry is not None:
        with disk_errors(entry):
            entry.parent.mkdir(parents=True, exist_ok=True)
            replace(entry, digest)
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


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / "artifact.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path}: not an artifact (no artifact.json)") from None
    except json.JSONDecodeError as error:
        raise StoreError(f"{path / 'artifact.json'}: damaged ({error}); remove {path} and run again") from None
    return dict(record)


def _chmod(folder: Path, *, writable: bool) -> None:
    """Set or clear the write permission of a whole tree; folders last when clearing, first when setting."""
    paths = [folder, *folder.rglob("*")] if writable else [*folder.rglob("*"), folder]
    for path in paths:
        mode = path.stat().st_mode
        path.chmod(mode | stat.S_IWUSR if writable else mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
