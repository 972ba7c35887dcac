"""The verb `gc`: what of a store may go, and its bytes; `--delete` removes it.

Drafts and folders set aside that nobody works on and that are older than a day, the caches, and with recipes named all
artifacts that none of them needs. What a kept artifact was made from is kept, so what a kept report shows is too.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tercet import pipeline
from tercet.cli.output import emit, say, table
from tercet.folders import set_writable
from tercet.preflight import revisions
from tercet.recipe import RecipeError, load
from tercet.store import Artifact, Store, StoreError, disk_errors

DAY = 86_400.0  # seconds
COMMITS = "revisions.json"  # of a store's cache: which commit a hub id meant; asked again it may be another


class Gone(NamedTuple):
    """What may go: `Gone(Path("runs/.draft-sft-3f2a90c1b7de"), "a draft of 3 days ago", 1_048_576)`."""

    path: Path
    why: str
    size: int


def gc(args: argparse.Namespace) -> int:
    """A line for each folder that may go; nothing is removed without `--delete`."""
    store = Store(args.store)
    if not store.root.is_dir():
        raise StoreError(f"{store.root}: no such folder; give the store with --store")
    live = _live(store)
    found = [*_left(store, live, args.days * DAY), *_caches(store, live)]
    if args.recipes:
        found += _unneeded(store, _needed(args, store))
    if args.delete:
        if live:
            raise StoreError(f"{store.root} is in use ({', '.join(live)}); wait for the run to end, then delete")
        for one in found:
            for path in _again(one.path) if one.path == store.cache else [one.path]:
                _remove(path)
    if args.json:
        listed = [{"path": str(one.path), "why": one.why, "bytes": one.size} for one in found]
        return emit({"deleted": args.delete, "bytes": sum(one.size for one in found), "found": listed})
    table(("what", "why", "MB"), [(one.path.name, one.why, f"{one.size / 1e6:,.1f}") for one in found])
    total = f"{len(found)} folders, {sum(one.size for one in found) / 1e6:,.1f} MB"
    say(f"removed {total}" if args.delete else f"{total} may go; --delete removes them")
    if not args.recipes:
        say("artifacts are looked at where recipes are named: tercet gc RECIPE…")
    return 0


def _left(store: Store, live: list[str], age: float) -> Iterator[Gone]:
    """Drafts, folders set aside and half pushes that nobody has touched for `age` seconds."""
    kinds = {".draft-": "a draft", ".damaged-": "set aside as damaged", ".push-": "an upload that was cut short"}
    for start, what in kinds.items():
        for path in sorted(store.root.glob(f"{start}*")):
            if path.is_symlink() or path.name.removeprefix(start) in live:
                continue
            if (idle := time.time() - _touched(path)) >= age:
                yield Gone(path, f"{what}, untouched for {idle / DAY:.1f} days", _size(path))


def _caches(store: Store, live: list[str]) -> Iterator[Gone]:
    """What can be computed again, unless somebody may be reading it."""
    cache = store.cache
    size = sum(_size(path) for path in _again(cache))
    if size and not live:
        yield Gone(cache, "digests, tokens and indexes, which are made again", size)


def _again(cache: Path) -> list[Path]:
    """What of a store's cache can be computed again."""
    return [path for path in sorted(cache.glob("*")) if path.name != COMMITS]


def _needed(args: argparse.Namespace, store: Store) -> dict[Path, Artifact]:
    """The artifacts of the named recipes, and all that they were made from."""
    mirror, kept = pipeline.read_mirror(args.mirror), dict[Path, Artifact]()
    for name in args.recipes:
        recipe, _ = pipeline.pinned(load(name, args.set), store, mirror, offline=True)
        if open_ids := [one.name for one in revisions.unpinned(recipe, mirror)]:
            raise RecipeError(f"{name}: which commit {', '.join(open_ids)} means is not known here; tercet pin {name}")
        made = [line.path for line in pipeline.plan(recipe, store, mirror) if line.exists]
        if not made:
            raise StoreError(
                f"{store.root} holds nothing of {name}, so all would go; look at --store, --set and --mirror"
            )
        for path in made:
            kept |= {one.path: one for one in store.lineage(Artifact.read(path))}
    return kept


def _unneeded(store: Store, kept: dict[Path, Artifact]) -> Iterator[Gone]:
    """Whole artifacts that are not kept; what cannot be read is left for `tercet check` to name."""
    for artifact in store:
        if artifact.path not in kept and not artifact.path.is_symlink():
            yield Gone(artifact.path, f"{artifact.kind}: no named recipe needs it", _size(artifact.path))


def _live(store: Store) -> list[str]:
    """The names of the artifacts that some process is making."""
    found = []
    for path in sorted((store.root / ".locks").glob("*")):
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(path.name)
        finally:
            os.close(lock)
    return found


def _remove(path: Path) -> None:
    """Take a folder out of the store by one rename, so that nobody meets half of it; then delete it."""
    with disk_errors(path):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        set_writable(path, writable=True)
        gone = path.with_name(f".damaged-{path.name.lstrip('.')}-gone")
        os.rename(path, gone)
        shutil.rmtree(gone)


def _files(path: Path) -> Iterator[os.stat_result]:
    yield path.lstat()
    for folder, folders, names in os.walk(path):
        yield from (Path(folder, name).lstat() for name in (*folders, *names))


def _size(path: Path) -> int:
    return sum(found.st_size for found in _files(path))


def _touched(path: Path) -> float:
    """When something in a folder last changed, in seconds since the epoch."""
    return max(found.st_mtime for found in _files(path))
