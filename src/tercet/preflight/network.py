"""What a stage fetches over the network, or asks there."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator
from urllib.parse import urlsplit

from tercet import hub
from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import URL, ModelSource
from tercet.rows import Source

HERE = ("localhost", "127.0.0.1", "::1")


def addresses(facts: Facts, name: str) -> Iterator[tuple[str, str]]:
    """Each thing that is not on this machine, with the key of the recipe that names it."""
    spec = facts.recipe.spec(name)
    if isinstance(spec, ModelSource):
        yield from _model(facts, name, spec)
    for loc, source in spec.origins():
        place = Source(source.path, source.subset, source.split)
        if source.path and not source.path.startswith("tercet:") and _away(place, facts):
            yield ".".join(map(str, (*loc, "path"))), source.path
        if (shown := source.examples) and _away(Source(shown.path, shown.subset, shown.split), facts):
            yield ".".join(map(str, (*loc, "examples"))), shown.path
    if spec.files:
        away = [
            source.path
            for source in pkgutil.resolve_name(spec.files)(spec, facts.recipe.folder)
            if _away(source, facts)
        ]
        yield from (("tasks", path) for path in dict.fromkeys(away))


def unreachable(facts: Facts, name: str) -> Iterator[Obstacle]:
    """The same as obstacles, for a run that may use no network."""
    if facts.recipe.spec(name).parallel:
        for tracker in facts.recipe.placement.report_to:
            if place := _sent(tracker):
                yield Obstacle(name, "placement.report_to", f"{tracker} sends to {place}, which --offline forbids")
    for key, what in addresses(facts, name):
        advice = "run it where there is a network first, or name local files for it with --mirror"
        yield Obstacle(name, key, f"{what} is not on this machine, and --offline forbids to fetch it; {advice}")


def _sent(tracker: str) -> str:
    """Where a tracker sends what it is told, and how it is kept here; empty where it is."""
    if tracker == "wandb" and os.environ.get("WANDB_MODE", "online") in ("online", "shared"):
        return "a server; set WANDB_MODE=offline, and `wandb sync` later"
    named = {"mlflow": ("MLFLOW_TRACKING_URI",), "trackio": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")}.get(tracker, ())
    away = [name for name in named if os.environ.get(name, "").startswith(URL) or name == "TRACKIO_SPACE_ID"]
    return next((f"where {name} says; unset it" for name in away if os.environ.get(name)), "")


def _model(facts: Facts, name: str, spec: ModelSource) -> Iterator[tuple[str, str]]:
    if spec.model.startswith(URL):
        if urlsplit(spec.model).hostname not in HERE:
            yield "model", spec.model
    elif not spec.model.startswith("tiny:") and facts.model(name).folder is None:
        yield "model", spec.model


def _away(source: Source, facts: Facts) -> bool:
    """Whether a source is a public one without a local file in its place."""
    if hub.local_file(source, facts.mirror):
        return False
    return source.path.startswith(("github:", "hf:")) or not (
        hub.is_local(source.path) or (facts.recipe.folder / source.path).exists()
    )
