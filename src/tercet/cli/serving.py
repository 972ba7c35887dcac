"""`tercet serve`: models of the command line behind one server; a run stands for its models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tercet.cli.listening import address, check_packages, listening, own_key
from tercet.cli.output import say
from tercet.cli.run_models import NamedModel, distinct, named, of_stage, run_of
from tercet.precision import resolve
from tercet.recipe import RecipeError
from tercet.store import Store

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

    found = _named_models(args)
    if args.name and len(found) not in (1, len(args.name)):
        raise RecipeError(f"--name: expected a name for each of {len(found)} models, got {len(args.name)}")
    own = [(name,) for name in args.name or distinct([one[1:] for one in found])]
    names = [tuple(args.name) or own[0]] if len(found) == 1 else own
    dtype = resolve(args.dtype)
    folders = [one.artifact.payload for one in found]
    models = [ServedModel.at(own, folder, dtype, args.rows) for own, folder in zip(names, folders, strict=True)]
    models[0].begin(LocalGenerator.open(folders[0], dtype, rows=args.rows))
    return models


def _named_models(args: argparse.Namespace) -> list[NamedModel]:
    """Every model that a word of the command line names, in its order, each once."""
    found: dict[Path, NamedModel] = {}
    for word in args.models:
        run = run_of(args, word)
        models = [of_stage(one) for one in run.models] if run else [named(args, Store(args.store), word)]
        found |= {one.artifact.path: one for one in models}
    return list(found.values())
