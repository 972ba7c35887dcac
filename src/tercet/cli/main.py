"""The `tercet` command: thin verbs over the package.

Exit codes: 0 done, 1 failed, 2 bad input, 3 a gate or check failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.cli import artifacts, data, evals, export, models, speed
from tercet.cli.output import emit, say, scores_table, table
from tercet.records import read_scores
from tercet.stage import StageError
from tercet.store import NO_SPACE, Artifact, Store, disk_full

if TYPE_CHECKING:
    from tercet.recipe import Recipe

Verb = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run the verb, turn errors into one message and an exit code."""
    args = parser().parse_args(argv)
    verb: Verb = args.verb
    try:
        return verb(args)
    except KeyboardInterrupt:
        return complain("stopped; the same command continues where it stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        return complain(str(error), 2)
    except OSError as error:
        return complain(disk_full(Path()) if error.errno in NO_SPACE else str(error), 1)
    except StageError as error:
        return complain(str(error), error.code)


def complain(message: str, code: int) -> int:
    """One message on standard error."""
    sys.stderr.write(f"tercet: {message}\n")
    return code


def parser() -> argparse.ArgumentParser:
    """The command line with every verb."""
    top = argparse.ArgumentParser(prog="tercet", description="Imitate, prefer, verify: post-training from one recipe.")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Verb, text: str, *options: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        found.set_defaults(verb=verb)
        for option in options:
            names, settings = OPTIONS[option]
            found.add_argument(*names, **settings)
        return found

    add("run", run, "make what is missing of a recipe", "recipe", "set", "store", "mirror", "only")
    add("plan", plan, "say what exists, what is missing and why", "recipe", "set", "store", "mirror", "json")
    add("show", show, "print the resolved recipe", "recipe", "set", "json")
    add("schema", schema, "print the JSON Schema of recipes")
    data.add_verbs(add)
    evals.add_verbs(add)
    models.add_verbs(add)
    export.add_verbs(add)
    artifacts.add_verbs(add)
    speed.add_verbs(add)
    return top


OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "recipe": (("recipe",), {"metavar": "RECIPE", "help": "a recipe file (TOML)"}),
    "set": (("--set",), {"action": "append", "default": [], "metavar": "A.B=V", "help": "override one key"}),
    "store": (("--store",), {"default": "runs", "metavar": "DIR", "help": "folder of the artifacts (default: runs)"}),
    "mirror": (("--mirror",), {"metavar": "FILE", "help": "TOML table from hub ids to local files (or TERCET_MIRROR)"}),
    "only": (("--only",), {"default": "", "metavar": "STAGE,…", "help": "only these stages and what they need"}),
    "json": (("--json",), {"action": "store_true", "help": "print JSON"}),
    "tasks": (("--tasks",), {"default": "", "metavar": "A,B", "help": "tasks or suites"}),
    "model": (("model",), {"metavar": "MODEL", "help": "artifact, folder, hub id, wheel:… or http://HOST/v1#NAME"}),
    "revision": (("--revision",), {"default": "", "help": "pinned revision of a hub id"}),
    "sha256": (("--sha256",), {"default": "", "help": "pinned SHA-256 of a wheel"}),
    "template": (("--template",), {"default": "own", "choices": ("own", "tulu3"), "help": "chat template"}),
    "seed": (("--seed",), {"default": 0, "type": int, "help": "seed (default: 0)"}),
}


def inputs(args: argparse.Namespace) -> tuple[Recipe, Store, dict[str, str]]:
    """Recipe, store and mirror of a command line."""
    from tercet.pipeline import read_mirror
    from tercet.recipe import load

    return load(args.recipe, args.set), Store(args.store), read_mirror(args.mirror or os.environ.get("TERCET_MIRROR"))


def run(args: argparse.Namespace) -> int:
    """Make what is missing; then print the scores and the path of the page."""
    from tercet import pipeline

    recipe, store, mirror = inputs(args)
    only = [name.strip() for name in args.only.split(",") if name.strip()]
    before = {artifact.path for artifact in store}
    made = pipeline.run(recipe, store, only=only, mirror=mirror)
    if all(artifact.path in before for artifact in made.values()):
        say(f"nothing to do: all {len(made)} stages exist")
    print_results(made)
    return 0


def print_results(made: dict[str, Artifact]) -> None:
    """The scores of every evaluation and where the page is."""
    evaluations = {name: artifact for name, artifact in made.items() if artifact.kind == "eval"}
    if evaluations:
        scores_table({name: read_scores(artifact.payload) for name, artifact in evaluations.items()})
    for artifact in made.values():
        if artifact.kind == "report":
            say(f"report: {artifact.payload / 'index.html'}")


def plan(args: argparse.Namespace) -> int:
    """Print a line for each stage."""
    from tercet import pipeline

    recipe, store, mirror = inputs(args)
    lines = pipeline.plan(recipe, store, mirror)
    if args.json:
        return emit([asdict(line) | {"path": str(line.path)} for line in lines])
    ahead = [", ".join(_amount(name, value) for name, value in line.forecast.items()) for line in lines]
    rows = [
        (line.name, line.kind, line.key, "exists" if line.exists else "missing", line.why, text)
        for line, text in zip(lines, ahead, strict=True)
    ]
    table(("stage", "kind", "key", "state", "why", "size"), rows)
    for precision in dict.fromkeys(line.precision for line in lines if line.precision):
        names = [line.name for line in lines if line.precision == precision]
        say(f"{precision} ({', '.join(names)})")
    for text in pipeline.announced(recipe, store, lines):
        say(text)
    say(f"{sum(line.exists for line in lines)} of {len(lines)} stages exist in {Path(args.store).absolute()}")
    return 0


def _amount(name: str, value: int) -> str:
    return f"{value / 1e9:.1f} GB state" if name == "state_bytes" else f"{value:,} {name}"


def show(args: argparse.Namespace) -> int:
    """Print the recipe with every default."""
    from tercet.recipe import dump, load

    recipe = load(args.recipe, args.set)
    if args.json:
        return emit(recipe.model_dump(mode="json"))
    say(dump(recipe).rstrip())
    return 0


def schema(_args: argparse.Namespace) -> int:
    """Print the JSON Schema, which editors can check a recipe with."""
    from tercet.recipe import Recipe

    return emit(Recipe.model_json_schema())
