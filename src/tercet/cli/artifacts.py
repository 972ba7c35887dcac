"""Verbs that read artifacts: lineage, check, report, rollouts."""

from __future__ import annotations

import argparse
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tercet import pipeline
from tercet.cli.output import emit, say
from tercet.faults import faults, not_covered
from tercet.recipe import RecipeError, library, load
from tercet.store import Artifact, Store, StoreError

if TYPE_CHECKING:
    from tercet.report.collect import Stage

DEEPEST = 40  # steps of indentation of a lineage


def lineage(args: argparse.Namespace) -> int:
    """The artifact and everything it was made from."""
    store = Store(args.store)
    artifact = store.open(args.artifact)
    found = store.lineage(artifact)
    if args.json:
        return emit([a.record | {"path": str(a.path)} for a in found])
    say("\n".join(_tree(artifact, {a.path.name: a for a in found})))
    return 0


def _tree(top: Artifact, found: dict[str, Artifact]) -> Iterator[str]:
    """Lines of a tree; an artifact that was shown before is only named. Beyond `DEEPEST` the tree grows down only."""
    waiting, seen = [(top, 0)], set[str]()
    while waiting:
        artifact, depth = waiting.pop()
        again = artifact.path.name in seen
        seen.add(artifact.path.name)
        seconds = "" if again else f"  {artifact.record['seconds']:.0f} s"
        indent = "  " * min(depth, DEEPEST)
        yield f"{indent}{artifact.path.name}  ({artifact.kind}){seconds}{'  …' if again and artifact.inputs else ''}"
        below = [] if again else [(found["-".join(entry)], depth + 1) for entry in artifact.inputs.items()]
        waiting += below[::-1]


def check(args: argparse.Namespace) -> int:
    """Everything of artifacts read again, a line for each fault; exit code 3 when there is one."""
    store = Store(args.store)
    folders = [store.folder(args.artifact)] if args.artifact else store.folders()
    if not folders:
        raise StoreError(f"{store.root}: holds no artifacts; give the folder with --store")
    found = {folder.name: faults(folder) for folder in folders}
    wrong = {name: lines for name, lines in found.items() if lines}
    if args.json:
        emit({"artifacts": len(folders), "faults": wrong})
    else:
        for folder in folders:
            for line in found[folder.name] or [f"intact{not_covered(folder)}"]:
                say(f"{folder.name}: {line}")
    return 3 if wrong else 0


def report(args: argparse.Namespace) -> int:
    """The paths of the pages, opened in the browser on request."""
    named = str(args.run) in library.names() and not args.run.exists()
    pages = _rendered(args) if args.run.suffix == ".toml" or named else _existing(args.run)
    if args.json:
        return emit([str(page) for page in pages])
    for page in pages:
        say(str(page))
        if args.open:
            webbrowser.open(page.as_uri())
    return 0


def _rendered(args: argparse.Namespace) -> list[Path]:
    """The report stages of a recipe, made where they are missing."""
    recipe = load(args.run, args.set)
    names = [name for name, spec in recipe.stage.items() if spec.kind == "report"]
    if not names:
        raise RecipeError(f"{args.run}: has no stage of kind report; add one")
    store, mirror = Store(args.store), pipeline.read_mirror(args.mirror)
    made = pipeline.run(recipe, store, only=names, mirror=mirror, console=Console(stderr=True))
    return [made[name].payload / "index.html" for name in names]


def _existing(folder: Path) -> list[Path]:
    """The pages in a folder of artifacts, newest first, or of one report artifact."""
    single = (folder / "artifact.json").is_file()
    artifacts = [Artifact.read(folder.absolute())] if single else list(Store(folder))
    pages = [artifact.payload / "index.html" for artifact in artifacts if artifact.kind == "report"]
    if not pages:
        raise StoreError(f"{folder}: holds no report artifact; run a recipe with a report stage")
    return sorted(pages, key=lambda page: page.stat().st_mtime, reverse=True)


def rollouts(args: argparse.Namespace) -> int:
    """A page of prompts with all their completions, and what it has of each stage."""
    from tercet.report import rollouts, unfinished

    store = Store(args.store)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        stages: list[Stage | Artifact] = []
        for name in args.artifacts:
            draft, made = unfinished.is_draft(Path(name)), Path(scratch, str(len(stages)))
            stages.append(unfinished.unfinished(Path(name), made) if draft else store.open(name))
        counted = rollouts.write(stages, args.out, most=args.groups)
    if args.json:
        return emit({"page": str(args.out), "stages": counted})
    for one in counted:
        counts = f"{one['rounds']} rounds, {one['groups']:,} groups, {one['completions']:,} completions"
        say(f"{one['stage']}-{one['key']}: {counts}, mean reward {one['reward']:.3g}; {one['shown']:,} groups shown")
    say(str(args.out))
    if args.open:
        webbrowser.open(args.out.absolute().as_uri())
    return 0
