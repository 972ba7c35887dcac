"""Verbs for who has no recipe: one line that trains (sft, dpo, grpo, reward), and `new`, which writes a recipe."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from tercet import pipeline
from tercet.cli.models import base_of
from tercet.cli.output import print_results, say, table
from tercet.journal import replace
from tercet.preflight.facts import Facts
from tercet.recipe import BASE, BaseSpec, Recipe, RecipeError, load
from tercet.recipe.start import GENERATED, Start
from tercet.recipe.wheel import SMOLLM_KEYS
from tercet.store import Store

GIVES = {"sft": "chats", "dpo": "preferences", "reward": "preferences", "grpo": "problems"}


def one_line(args: argparse.Namespace) -> int:
    """Write the recipe of a command beside its artifacts, print it, and run it."""
    store, verb = Store(args.store), args.verb_name
    name = args.name or f"{verb}-{Path(args.data).name.split('.')[0]}"
    about = {GIVES[verb]: _data(args.data), "reward_model": verb == "reward"}
    start = _start(args, name, _base(args, store), about)
    file = store.root / f"{name}.toml"
    asked = shlex.join(part if part.isprintable() else ascii(part) for part in sys.argv[1:])
    text = start.text(f"Written by `tercet {asked}`; `tercet run {file}` runs it again.")
    store.root.mkdir(parents=True, exist_ok=True)
    replace(file, text)
    say(text)
    recipe, mirror = load(file, settings(args)), pipeline.read_mirror(args.mirror)
    if args.dry_run:
        lines = pipeline.plan(recipe, store, mirror)
        table(
            ("stage", "kind", "state"), [(one.name, one.kind, "exists" if one.exists else "missing") for one in lines]
        )
        return 0
    made = pipeline.run(recipe, store, mirror=mirror, offline=args.offline)
    print_results(made)
    say(f"{verb}: {made[verb].path}")
    say(f"recipe: {file}")
    return 0


def settings(args: argparse.Namespace) -> list[str]:
    """What the command line sets of a recipe: `--set`, and the trackers of `--report-to`."""
    names = getattr(args, "report_to", [])
    return [*args.set, f"placement.report_to={json.dumps(names)}"] if names else args.set


def new(args: argparse.Namespace) -> int:
    """Write NAME.toml: a stage for every kind of data that is named; of generated rows where none is."""
    file = Path(f"{args.name.removesuffix('.toml')}.toml")
    if file.exists():
        raise RecipeError(f"{file}: exists; name another recipe, or remove it")
    given = {key: getattr(args, key) for key in ("chats", "preferences", "problems") if getattr(args, key)}
    about: dict[str, Any] = given or {"generated": tuple(GENERATED)}
    base = _base(args, Store(args.store)) if args.model else SMOLLM_KEYS
    text = _start(args, file.stem, base, about).text(
        f"Run it with `tercet run {file}`; `tercet plan {file}` says first what is missing."
    )
    replace(file, text)
    load(file)
    say(f"{file}: {text.count('[stage.')} stages; next: tercet plan {file}")
    return 0


def _start(args: argparse.Namespace, name: str, base: dict[str, Any], about: dict[str, Any]) -> Start:
    from tercet.evals.suite import item_stages

    named = {
        "verifier": _code(getattr(args, "verifier", "")),
        "prompt": getattr(args, "prompt", ""),
        "answer": getattr(args, "answer", ""),
    }
    grading = {key: value for key, value in named.items() if value}
    context = _context(name, base, pipeline.read_mirror(args.mirror))
    return Start(name, base, grading=grading, tasks=args.tasks, items=item_stages(args.tasks), context=context, **about)


def _base(args: argparse.Namespace, store: Store) -> dict[str, Any]:
    """The keys of `[base]` that the command line gives."""
    spec = base_of(args, store, args.model)
    plain = spec.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    if (file := Path(args.template).expanduser()).suffix == ".jinja":
        plain["template"] = str(file.absolute())
    return plain


def _context(name: str, base: dict[str, Any], mirror: dict[str, str]) -> float:
    """The most tokens that the model reads, as far as files on this machine tell."""
    recipe = Recipe(name=name, base=BaseSpec(**base), stage={})
    return Facts(recipe, {}, mirror).model(BASE).context


def _data(given: str) -> str:
    """The absolute path of a file or folder; a hub id as it is."""
    path = Path(given).expanduser()
    return str(path.absolute()) if path.exists() else given


def _code(verifier: str) -> str:
    """`my_reward.py:score` with the absolute path of its file; a verifier's name as it is."""
    path, colon, name = verifier.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{name}" if colon and path.endswith(".py") else verifier
