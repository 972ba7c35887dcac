"""The models of a run, in the order of its story: base, SFT, preference tuning, reinforcement learning."""

from __future__ import annotations

from pathlib import Path

from tercet.folders import FolderError
from tercet.recipe import kinds_of
from tercet.store import Artifact, Store, StoreError


def run_models(store: Store, report: Artifact | None = None) -> list[Artifact]:
    """The models behind a report, else behind the newest report of the store, else all models that it holds.

    An input of a model stands before it. LLM judges and other helpers (stages of kind `model`) are left out.
    """
    reports = [report] if report else [artifact for artifact in store if artifact.kind == "report"]
    newest = max(reports, key=lambda one: one.path.stat().st_mtime, default=None)
    try:
        found = store.lineage(newest) if newest else _all(store)
    except FolderError:  # something upstream is gone: what is left can still answer
        found = _all(store)
    kinds = set(kinds_of("weights")) - {"model"}
    models = [artifact for artifact in found if artifact.kind in kinds and artifact.payload.is_dir()]
    if not models:
        raise StoreError(f"{store.root}: holds no model; run a recipe first, or name a model")
    return models


def _all(store: Store) -> list[Artifact]:
    """Every artifact, inputs first."""
    left = {artifact.path.name: artifact for artifact in store}
    found: dict[str, Artifact] = {}
    while left:
        ready = [
            name for name, one in left.items() if not left.keys() & {f"{n}-{k[:12]}" for n, k in one.inputs.items()}
        ]
        for name in ready or list(left):  # records that name each other in a circle are damaged, and come last
            found[name] = left.pop(name)
    return list(found.values())


def run_of(path: Path) -> tuple[Store, Artifact | None] | None:
    """The store, and perhaps the report artifact, that a path names as a run; None where it is something else."""
    if (path / "artifact.json").is_file():
        artifact = Artifact.read(path.absolute())
        return (Store(path.absolute().parent), artifact) if artifact.kind == "report" else None
    if path.is_dir() and not (path / "config.json").is_file() and any(True for _ in Store(path)):
        return Store(path), None
    return None


def distinct(artifacts: list[Artifact]) -> dict[str, Artifact]:
    """The artifacts by their stage's name, or by their folder's where two have one name."""
    names = [artifact.name for artifact in artifacts]
    return {one.name if names.count(one.name) == 1 else one.path.name: one for one in artifacts}
