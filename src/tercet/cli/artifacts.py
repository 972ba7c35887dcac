"""Verbs that read artifacts: lineage, check, report, rollouts."""

from __future__ import annotations

import argparse
import os
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.cli.output import emit, say

if TYPE_CHECKING:
    from tercet.report.collect import Stage
    from tercet.store import Artifact

ARTIFACT: dict[str, Any] = {"metavar": "ARTIFACT", "help": "folder, STAGE-KEY or stage name"}


def add_verbs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Put the verbs on the command line."""
    verb = add("lineage", lineage, "what an artifact was made from", "store", "json")
    verb.add_argument("artifact", **ARTIFACT)
    verb = add("check", check, "recompute digests and keys of artifacts", "store", "json")
    verb.add_argument("artifact", nargs="?", **ARTIFACT)
    found = "find the page of a run; of a recipe, render it where missing"
    verb = add("report", report, found, "set", "mirror", "json")
    verb.add_argument("run", type=Path, metavar="RUN", help="a folder of artifacts, a report artifact, or a recipe")
    verb.add_argument("--store", metavar="DIR", default="runs", help="folder of the artifacts of a recipe")
    verb.add_argument("--open", action="store_true", help="open the page in the browser")
    verb = add("rollouts", rollouts, "write a page that browses the rollouts of RL stages", "store", "json")
    accepted = "an RL stage: folder, STAGE-KEY, stage name, or the draft folder of one that has not ended"
    verb.add_argument("artifacts", nargs="+", metavar="ARTIFACT", help=accepted)
    verb.add_argument("--out", type=Path, metavar="FILE", default=Path("rollouts.html"), help="the page to write")
    verb.add_argument("--groups", type=int, metavar="N", default=600, help="most groups on the page (default 600)")
    verb.add_argument("--open", action="store_true", help="open the page in the browser")


def lineage(args: argparse.Namespace) -> int:
    """The artifact and everything it was made from."""
    from tercet.store import Store

    store = Store(args.store)
    artifact = store.open(args.artifact)
    found = store.lineage(artifact)
    if args.json:
        return emit([a.record | {"path": str(a.path)} for a in found])
    say("\n".join(_tree(artifact, {a.path.name: a for a in found}, set())))
    return 0


def _tree(artifact: Artifact, found: dict[str, Artifact], seen: set[str], indent: str = "") -> Iterator[str]:
    """Lines of a tree; an artifact that was shown before is only named."""
    again = artifact.path.name in seen
    seen.add(artifact.path.name)
    seconds = "" if again else f"  {artifact.record['seconds']:.0f} s"
    yield f"{indent}{artifact.path.name}  ({artifact.kind}){seconds}{'  …' if again and artifact.inputs else ''}"
    for name, key in {} if again else artifact.inputs.items():
        yield from _tree(found[f"{name}-{key}"], found, seen, indent + "  ")


def check(args: argparse.Namespace) -> int:
    """Digests and keys of artifacts, recomputed; exit code 3 when one has changed."""
    from tercet.store import Store, StoreError

    store = Store(args.store)
    artifacts = [store.open(args.artifact)] if args.artifact else list(store)
    if not artifacts:
        raise StoreError(f"{store.root}: holds no artifacts; give the folder with --store")
    faults = {artifact.path.name: store.check(artifact) for artifact in artifacts}
    if args.json:
        emit({"artifacts": len(artifacts), "faults": {name: found for name, found in faults.items() if found}})
    else:
        for name, found in faults.items():
            say(f"{name}: {'; '.join(found) or 'intact'}")
    return 3 if any(faults.values()) else 0


def report(args: argparse.Namespace) -> int:
    """The paths of the pages, opened in the browser on request."""
    pages = _rendered(args) if args.run.suffix == ".toml" else _existing(args.run)
    if args.json:
        return emit([str(page) for page in pages])
    for page in pages:
        say(str(page))
        if args.open:
            webbrowser.open(page.as_uri())
    return 0


def _rendered(args: argparse.Namespace) -> list[Path]:
    """The report stages of a recipe, made where they are missing."""
    from rich.console import Console

    from tercet import pipeline
    from tercet.recipe import RecipeError, load
    from tercet.store import Store

    recipe = load(args.run, args.set)
    names = [name for name, spec in recipe.stage.items() if spec.kind == "report"]
    if not names:
        raise RecipeError(f"{args.run}: has no stage of kind report; add one")
    mirror = pipeline.read_mirror(args.mirror or os.environ.get("TERCET_MIRROR"))
    made = pipeline.run(recipe, Store(args.store), only=names, mirror=mirror, console=Console(stderr=True))
    return [made[name].payload / "index.html" for name in names]


def _existing(folder: Path) -> list[Path]:
    """The pages in a folder of artifacts, newest first, or of one report artifact."""
    from tercet.store import Artifact, Store, StoreError

    single = (folder / "artifact.json").is_file()
    artifacts = [Artifact.read(folder.absolute())] if single else list(Store(folder))
    pages = [artifact.payload / "index.html" for artifact in artifacts if artifact.kind == "report"]
    if not pages:
        raise StoreError(f"{folder}: holds no report artifact; run a recipe with a report stage")
    return sorted(pages, key=lambda page: page.stat().st_mtime, reverse=True)


def rollouts(args: argparse.Namespace) -> int:
    """A page of prompts with all their completions, and what it has of each stage."""
    from tercet.report import rollouts, unfinished
    from tercet.store import Store

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
