"""The `tercet` command: thin verbs over the package. Its exit codes are said by `parser.EPILOG`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tercet import pipeline, preflight
from tercet.cli import (
    artifacts,
    clean,
    data,
    doctor,
    evals,
    export,
    forecast,
    models,
    play,
    push,
    serving,
    skill,
    speed,
    start,
    trace,
    watch,
)
from tercet.cli.output import emit, print_results, say, table
from tercet.cli.parser import Verb, complete, parser
from tercet.forecast import named_size
from tercet.journal import replace
from tercet.launch import dry_run, joining, surroundings
from tercet.launch.ending import StageError
from tercet.machine import RANKS
from tercet.outside import printable, printable_json, without_userinfo
from tercet.preflight import revisions
from tercet.recipe import Recipe, RecipeError, dump, library, load
from tercet.recipe.pin import with_commits
from tercet.recipe.wheel import PREFIX
from tercet.store import NO_SPACE, Store, disk_full


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run the verb, turn errors into one message and an exit code."""
    top = parser(VERBS)
    complete(top)
    args = top.parse_args(argv)
    verb: Verb = args.verb
    if args.verb_name != "run":  # which alone is started as a rank, under `launch = "env"`
        for name in RANKS:
            os.environ.pop(name, None)
    try:
        return verb(args)
    except KeyboardInterrupt as stop:
        where = "where it stopped" if getattr(stop, "whole", True) else "from what was kept before"
        return complain(f"stopped; the same command continues {where}", 128 + getattr(stop, "number", signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        return complain(str(error), 2)
    except OSError as error:
        return complain(disk_full(Path()) if error.errno in NO_SPACE else str(error), 1)
    except StageError as error:
        return complain(str(error), error.code)
    except Exception:  # a fault of ours, with its traceback; a library's message may repeat what came from outside
        sys.stderr.write(printable(without_userinfo(traceback.format_exc())))
        return 1


def complain(message: str, code: int) -> int:
    """One message on standard error."""
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"tercet: {printable(without_userinfo(message))}\n")
    return code


def inputs(args: argparse.Namespace) -> tuple[Recipe, Store, dict[str, str]]:
    """Recipe, store and mirror of a command line."""
    return load(args.recipe, start.settings(args)), Store(args.store), pipeline.read_mirror(args.mirror)


def run(args: argparse.Namespace) -> int:
    """Make what is missing; then print the scores and the path of the page."""
    recipe, store, mirror = inputs(args)
    if args.json and not args.dry_run:
        raise RecipeError("--json goes with --dry-run; `tercet scores --json` says what a run made")
    if args.dry_run:
        return _dry_run(args, recipe, store, mirror)
    if args.join or (recipe.placement.launch == "env" and surroundings.rank(recipe.placement, os.environ)):
        return 0 if joining.join(recipe, store, say=say) else 1
    before = {folder.lstat().st_ino for folder in store.folders()}  # a folder that was set aside has another
    made = pipeline.run(recipe, store, only=args.only, mirror=mirror, offline=args.offline)
    if all(artifact.path.lstat().st_ino in before for artifact in made.values()):
        say(f"nothing to do: all {len(made)} stages exist")
    print_results(made)
    return 0


def _dry_run(args: argparse.Namespace, recipe: Recipe, store: Store, mirror: dict[str, str]) -> int:
    """Print how each missing stage would be started; nothing is fetched or asked, and no model need be here."""
    recipe, _ = pipeline.pinned(recipe, store, mirror, offline=True)
    found = dry_run.commands(recipe, store, pipeline.needed(pipeline.graph(recipe, store, mirror), recipe, args.only))
    if args.json:
        return emit([one.plain for one in found])
    for line in dry_run.text(found, recipe):
        say(line)
    if waiting := ", ".join(one.name for one in revisions.unpinned(recipe, mirror)):
        say(f"# the keys change once the run has asked the hub at which commit these stand: {waiting}")
    return 0


def plan(args: argparse.Namespace) -> int:
    """Print a line for each stage, then everything that would stop one."""
    recipe, store, mirror = inputs(args)
    if args.machine:  # another machine's matters: nothing is fetched, and what this one lacks stops nothing
        return forecast.show(args, recipe, pipeline.plan(recipe, store, mirror), mirror)
    recipe, commits = pipeline.pinned(recipe, store, mirror, offline=args.offline)
    lines = pipeline.plan(recipe, store, mirror)
    read = pipeline.how_read(recipe, lines, mirror)
    found = pipeline.obstacles(recipe, lines, mirror, offline=args.offline)
    found += [preflight.Obstacle(name, "model", one.sentence) for name, one in read.items() if not one.layout]
    away = pipeline.needs_network(recipe, lines, mirror)
    if args.json:
        emit([_plan_entry(line, read, found, away) for line in lines])
    else:
        for text in commits:
            say(text)
        _print_plan(recipe, store, lines, read)
        for name, addresses in away.items():
            say(f"{name} needs the network: {', '.join(addresses)}")
    preflight.refuse(found)
    return 0


def _plan_entry(
    line: pipeline.PlanLine,
    read: dict[str, pipeline.ModelReading],
    found: Sequence[preflight.Obstacle],
    away: dict[str, list[str]],
) -> dict[str, Any]:
    """A stage of a plan as JSON."""
    entry = asdict(line) | {"path": str(line.path), "network": away.get(line.name, [])}
    entry["obstacles"] = [{"key": one.key, "what": one.what} for one in found if one.stage == line.name]
    return entry | ({"reading": read[line.name].sentence} if line.name in read else {})


def _print_plan(
    recipe: Recipe, store: Store, lines: Sequence[pipeline.PlanLine], read: dict[str, pipeline.ModelReading]
) -> None:
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
    for name, one in read.items():
        if one.layout:
            say(f"{name}: {one.sentence}")
    say(f"{sum(line.exists for line in lines)} of {len(lines)} stages exist in {store.root.absolute()}")


def _amount(name: str, value: int) -> str:
    return f"{value / 1e9:.1f} GB state" if name == "state_bytes" else f"{value:,} {name}"


def pin(args: argparse.Namespace) -> int:
    """Write the commits of a recipe's hub ids into its file."""
    file, store, mirror = library.located(args.recipe), Store(args.store), pipeline.read_mirror(args.mirror)
    if not Path(args.recipe).is_file():
        raise RecipeError(f"{args.recipe}: is a recipe that came along; write one that extends {file}, and pin that")
    given = load(file)
    wanted = {one.loc: one.name for one in revisions.unpinned(given, mirror)}
    recipe, _ = pipeline.pinned(given, store, mirror)
    left = {one.loc for one in revisions.unpinned(recipe, mirror)}
    commits = {loc: (name, revisions.commit_at(recipe, loc)) for loc, name in wanted.items() if loc not in left}
    text, absent = with_commits(file.read_text(encoding="utf-8"), commits)
    replace(file, text)
    for loc, name in wanted.items():
        said = "could not be resolved; try again with the network" if loc in left else commits[loc][1]
        said = f"{said}, not written: it stands in a file that this one extends" if loc in absent else said
        say(f"{'.'.join(map(str, loc))}: {name} {said}")
    if not wanted:
        say("nothing to pin: every hub id has its revision")
    return 1 if left or absent else 0


def show(args: argparse.Namespace) -> int:
    """Print the recipe with every default."""
    recipe = load(args.recipe, args.set)
    if args.json:
        return emit(recipe.model_dump(mode="json"))
    say(printable_json(dump(recipe).rstrip()))  # TOML has the escapes of JSON
    return 0


def schema(_args: argparse.Namespace) -> int:
    """Print the JSON Schema, which editors can check a recipe with."""
    return emit(Recipe.model_json_schema())


def recipes(args: argparse.Namespace) -> int:
    """What came with the package, each with its base model, stages and what it fetches."""
    found = []
    for name, file in library.names().items():
        recipe = load(file)
        model, away = recipe.base.model, preflight.needs_network(recipe, list(recipe.stage), {}, {})
        fetches = "the hub" if away else "a package" if model.startswith(PREFIX) else "nothing"
        about: dict[str, Any] = {
            "recipe": name,
            "parameters": named_size(model),
            "stages": len(recipe.stage),
            "fetches": fetches,
        }
        found.append(about | {"about": library.headline(file), "base": model, "path": str(file)})
    if args.json:
        return emit(found)
    rows = [(one["recipe"], _size(one["parameters"]), one["stages"], one["fetches"], one["about"]) for one in found]
    table(("recipe", "size", "stages", "fetches", "what it is"), rows)
    return 0


def _size(parameters: float) -> str:
    """`135M`, `8B`; a model built on the fly has no size in its name."""
    return f"{parameters / 1e9:g}B" if parameters >= 1e9 else f"{parameters / 1e6:g}M" if parameters else "tiny"


VERBS: dict[str, Verb] = {
    "run": run,
    "plan": plan,
    "doctor": doctor.doctor,
    "sft": start.one_line,
    "dpo": start.one_line,
    "grpo": start.one_line,
    "reward": start.one_line,
    "new": start.new,
    "skill": skill.skill,
    "pin": pin,
    "show": show,
    "schema": schema,
    "recipes": recipes,
    "decontaminate": data.decontaminate,
    "data": data.data,
    "eval": evals.evaluate,
    "scores": evals.scores,
    "rescore": evals.rescore,
    "compare": evals.compare,
    "grade": evals.grade,
    "chat": models.chat,
    "serve": serving.serve,
    "play": play.play,
    "lineage": artifacts.lineage,
    "trace": trace.trace,
    "check": artifacts.check,
    "export": export.export,
    "push": push.push,
    "gc": clean.gc,
    "report": artifacts.report,
    "watch": watch.watch,
    "rollouts": artifacts.rollouts,
    "speed": speed.speed,
}
