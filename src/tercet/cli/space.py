"""A Space of a run: a container on the Hub in which `tercet play` shows the models that were pushed before.

The weights are not copied: `play.args` names each model by its hub id and commit, an argument of `tercet play` a line.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tercet
from tercet import journal
from tercet.cli.card import docker_card
from tercet.cli.run_models import distinct, of_store, run_of
from tercet.outside import without_userinfo
from tercet.recipe import kinds_of
from tercet.store import Artifact, Store, StoreError

DOCKERFILE = Path(__file__).with_name("space.Dockerfile")
PUSHED = "pushed.jsonl"  # beside the artifacts: which model went where, the last line of each counts


class Space(NamedTuple):
    """What the container shows: `Space("quick", {"sft": "me/quick-sft@3f2a…"}, ["dpo-bb80baf8807b"])`."""

    title: str
    models: dict[str, str]  # a column's name -> hub id and commit, or wheel
    left: list[str]  # models of the run that nobody can fetch


def note(store: Store, artifact: Artifact, repository: str, commit: str) -> None:
    """Remember that a model can be fetched from the Hub."""
    record = {"artifact": artifact.path.name, "repository": repository, "commit": commit}
    journal.append(store.root / PUSHED, record)


def space_of(args: argparse.Namespace) -> Space:
    """The models of a run, or one model, as whoever builds the Space can fetch them; StoreError where there is none."""
    title, store, models = _models(args)
    known = {one["artifact"]: f"{one['repository']}@{one['commit']}" for one in _pushed(store)}
    names = distinct([(model.name, model.path.name) for model in models])
    places = {name: known.get(model.path.name) or _origin(model) for name, model in zip(names, models, strict=True)}
    left = [model.path.name for name, model in zip(names, models, strict=True) if not places[name]]
    if len(left) == len(models):
        raise StoreError(
            f"{title}: none of its models was pushed; first `tercet push {left[-1]} {args.repository}-model`"
        )
    return Space(title, {name: place for name, place in places.items() if place}, left)


def write_space(space: Space, folder: Path, wheel: Path | None) -> None:
    """The files of the Space, in the new folder `folder`; without a wheel of Tercet its version comes from PyPI."""
    folder.mkdir(parents=True)
    shutil.copyfile(DOCKERFILE, folder / "Dockerfile")
    needed = f"tercet[play]=={tercet.__version__}"
    if wheel is not None:
        shutil.copyfile(wheel, folder / wheel.name)
        needed = f"./{wheel.name}[play]"
    (folder / "requirements.txt").write_text(f"{needed}\n", encoding="utf-8")
    named = [*space.models.values(), *(f"--name={name}" for name in space.models), f"--title={space.title}"]
    (folder / "play.args").write_text("".join(f"{line}\n" for line in named), encoding="utf-8")
    (folder / "README.md").write_text(docker_card(space.title, space.models), encoding="utf-8")


def check_wheel(wheel: Path | None) -> None:
    """StoreError where a file is no wheel of Tercet's."""
    if wheel is not None and not (wheel.is_file() and wheel.name.startswith("tercet-") and wheel.suffix == ".whl"):
        raise StoreError(
            f"--wheel {wheel}: expected a wheel of Tercet, tercet-…-py3-none-any.whl, as `make dist` writes it"
        )


def _models(args: argparse.Namespace) -> tuple[str, Store, list[Artifact]]:
    """Title, store and models of a run, of a report by its name, or of one model."""
    run, store = run_of(args, args.artifact), Store(args.store)
    if run is None and (artifact := store.open(args.artifact)).kind == "report":
        run = of_store(store, artifact)
    if run is not None:
        return run.title, run.store, run.models
    if artifact.kind not in kinds_of("weights"):
        raise StoreError(f"{artifact.path.name} is a {artifact.kind} artifact; --space takes a run, or a model of one")
    return artifact.name, store, [artifact]


def _pushed(store: Store) -> Iterator[dict[str, str]]:
    if (file := store.root / PUSHED).is_file():
        yield from journal.read(file)


def _origin(model: Artifact) -> str:
    """Where anybody finds a base model that was never pushed; nothing of a trained one, and of one on this disk."""
    spec = model.record["spec"]
    if model.kind != "base" or spec["template"] != "own" or Path(spec["model"]).exists():
        return ""
    return without_userinfo(spec["model"]) + (f"@{spec['revision']}" if spec.get("revision") else "")
