"""Verbs that take a model: chat, engine. A model is an artifact, a folder, a hub id or `wheel:…`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from tercet import pipeline
from tercet.cli.output import say
from tercet.outside import printable, printable_json, without_userinfo
from tercet.precision import resolve
from tercet.recipe import URL, BaseSpec, Recipe, RecipeError, kinds_of
from tercet.rows import Message, Sampling
from tercet.store import Store

HELP = "/reset starts over, /quit leaves"


def base_of(args: argparse.Namespace, store: Store, name: str) -> BaseSpec:
    """The spec of the model that the command line names."""
    try:
        return _named(args, store, name)
    except ValidationError as error:
        found = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise RecipeError(f"{without_userinfo(name)}: {found}") from None


def _named(args: argparse.Namespace, store: Store, name: str) -> BaseSpec:
    model, revision = name, args.revision if name == args.model else ""
    sha256 = args.sha256 if name == args.model else ""
    folder = next((path for path in (Path(model), store.root / model) if path.is_dir()), None)
    if model.startswith(URL):
        if not model.partition("#")[2]:
            raise RecipeError(f"{name}: a URL needs the name of its model behind it, e.g. {name.rstrip('/')}#NAME")
        # a server may change its weights: the revision names them
        return BaseSpec(model=model, revision=revision, **_asked(args, name))
    if folder is None and any(path.name.rpartition("-")[0] == model for path in store.folders()):
        folder = store.open(model).path
    if folder is not None and (folder / "artifact.json").is_file():
        artifact = store.open(folder)
        if artifact.kind not in (models := kinds_of("weights")):
            raise RecipeError(f"{model}: is a {artifact.kind} artifact; expected a model ({', '.join(models)})")
        model = str(artifact.payload)
    elif folder is not None:
        model = str(folder.absolute())
    elif not model.startswith(("wheel:", "tiny:")):
        model, _, pinned = model.partition("@")
        revision = revision or pinned
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            raise RecipeError(f"{name}: no such folder or artifact (in {store.root}), and not a hub id OWNER/NAME")
    own = {"sha256": sha256, "template": args.template, **_asked(args, name)}
    return BaseSpec(model=model, revision=revision, **own)


def _asked(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """What the command line asks of the server of the model itself: how long it thinks, and other parameters."""
    if name != args.model:
        return {}
    effort, text = getattr(args, "reasoning_effort", ""), getattr(args, "extra_body", "")
    try:
        extra = json.loads(text) if text else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise RecipeError(f"--extra-body: expected a JSON object such as '{{\"top_k\": 20}}', got {text!r}")
    return {"reasoning_effort": effort, "extra_body": extra}


def model_folder(args: argparse.Namespace) -> Path:
    """The folder of the command line's model, made an artifact first where it is none; its weights are needed here."""
    store = Store(args.store)
    base = base_of(args, store, args.model)
    if base.model.startswith(URL):
        raise RecipeError(f"{base.model}: a model behind a URL cannot be used here; give an artifact, folder or hub id")
    recipe = Recipe.model_validate({"name": "model", "base": base.model_dump(), "stage": {}})
    mirror = pipeline.read_mirror(args.mirror)
    return pipeline.run(recipe, store, mirror=mirror, console=Console(stderr=True))["base"].payload


def chat(args: argparse.Namespace) -> int:
    """A conversation on the terminal; from a pipe, one user turn per line."""
    from tercet.models.generate import LocalGenerator

    generator = LocalGenerator.open(model_folder(args), resolve(args.dtype))
    start = [Message("system", args.system)] if args.system else []
    turns: list[Message] = list(start)
    for number, line in enumerate(_lines(args.model)):
        if line.strip() in ("/reset", "/quit"):
            turns = list(start)
            if line.strip() == "/quit":
                break
            continue
        turns.append(Message("user", line))
        sampling = Sampling(args.max_new_tokens, args.temperature, seed=args.seed + number)
        answer = _answer(generator.stream(tuple(turns), sampling), quiet=args.json)
        turns.append(Message("assistant", answer))
        if args.json:
            say(printable_json(json.dumps({"user": line, "assistant": answer}, ensure_ascii=False)))
    return 0


def _lines(model: str) -> Iterator[str]:
    """The lines that are typed or come from a pipe, without empty ones."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    console = Console()
    console.print(
        f"{printable(model)}  ({HELP}; Ctrl-C cuts an answer short)", style="dim", markup=False, highlight=False
    )
    while True:
        try:
            line = console.input("[bold cyan]you >[/] ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line.strip():
            yield line


def _answer(stream: Iterator[str], *, quiet: bool) -> str:
    """Print an answer as it comes; Ctrl-C ends it, and what was printed counts."""
    pieces: list[str] = []
    try:
        for piece in stream:
            pieces.append(piece)
            if not quiet:
                sys.stdout.write(printable(piece))
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    if not quiet:
        say("")
    return "".join(pieces)
