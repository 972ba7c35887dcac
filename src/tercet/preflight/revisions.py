"""Hub ids without a commit: each is resolved once, remembered in the store, and pinned in key and artifact.

Without the network the commit that was resolved before counts, or that of the hub's own cache. What cannot be resolved
stays as it is, and is an obstacle of the stage that needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tercet.hub import HUB_ID, TABLE, local_file
from tercet.journal import DamagedError, seal, unseal
from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import BASE, ExamplesSpec, ModelSource, Recipe, SourceSpec
from tercet.recipe.specs import Loc
from tercet.rows import Source

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 10.0  # seconds for one answer of the hub


class Unpinned(NamedTuple):
    """A hub id whose commit nobody named: where it stands in the recipe, and whether it is a model."""

    loc: Loc
    name: str
    model: bool

    @property
    def key(self) -> str:
        """What its commit is remembered under."""
        return f"{'models' if self.model else 'datasets'}/{self.name}"


def unpinned(recipe: Recipe, mirror: Mapping[str, str]) -> Iterator[Unpinned]:
    """Every hub id of a recipe that has no revision; what the mirror replaces needs none."""
    for name in (BASE, *recipe.stage):
        yield from _of_stage(recipe, name, mirror)


def pinned(
    recipe: Recipe, cache: Path, mirror: Mapping[str, str], *, offline: bool = False
) -> tuple[Recipe, list[str]]:
    """The recipe with the commits of its hub ids, and a line for each that was asked for now."""
    wanted = list(unpinned(recipe, mirror))
    if not wanted:
        return recipe, []
    known, said = _remembered(cache / "revisions.json"), []
    for one in wanted:
        if one.key not in known and (commit := _resolved(one, offline=offline)):
            known[one.key] = commit
            said.append(f"{one.name}: resolved to commit {commit} and pinned; `tercet pin` writes it into the recipe")
    if said:
        cache.mkdir(parents=True, exist_ok=True)
        seal(cache / "revisions.json", json.dumps(known, indent=1, sort_keys=True))
    stages = dict(recipe.stage)
    base: Any = recipe.base
    for one in wanted:
        if not (commit := known.get(one.key, "")):
            continue
        if one.loc[0] == BASE:
            base = _with(base, one.loc[1:], commit)
        else:
            stages[str(one.loc[1])] = _with(stages[str(one.loc[1])], one.loc[2:], commit)
    found = recipe.model_copy(update={"base": base, "stage": stages})
    found._folder = recipe._folder
    return found, said


def commit_at(recipe: Recipe, loc: Loc) -> str:
    """The revision of the table at `loc`."""
    found: Any = recipe
    for key in loc:
        found = getattr(found, key) if isinstance(key, str) and not isinstance(found, dict) else found[key]
    return str(found.revision)


def resolvable(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Hub ids of a stage that have no commit still."""
    for one in _of_stage(facts.recipe, name, facts.mirror):
        what = f"the hub did not say which commit {one.name} stands at; try again with the network, or name one here"
        yield Obstacle(name, "revision", what)


CHECKS = (resolvable,)


def _of_stage(recipe: Recipe, name: str, mirror: Mapping[str, str]) -> Iterator[Unpinned]:
    """The ids of a stage that nothing on this machine stands in for: paths start at the recipe's folder."""
    for loc, spec in _tables((BASE,) if name == BASE else ("stage", name), recipe.spec(name)):
        model = isinstance(spec, ModelSource)
        path = str(spec.model if model else spec.path)
        source = Source(path) if model else Source(path, spec.subset, spec.split)
        hub_id = "/".join(path.removeprefix("hf:").split("/")[:2]) if path.startswith("hf:") else path
        here = local_file(source, mirror) or (recipe.folder / Path(path).expanduser()).exists()
        if not (spec.revision or here or (TABLE.search(path) and hub_id == path)) and HUB_ID.fullmatch(hub_id):
            yield Unpinned(loc, hub_id, model)


def _tables(loc: Loc, spec: Any) -> Iterator[tuple[Loc, Any]]:
    """The table at `loc` and those inside it, of the kinds that name something of the hub."""
    if isinstance(spec, ModelSource | SourceSpec | ExamplesSpec):
        yield loc, spec
    for key in type(spec).model_fields:
        value = getattr(spec, key)
        parts = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for place, one in parts:
            if isinstance(one, SourceSpec | ExamplesSpec):
                yield from _tables((*loc, key) if place is None else (*loc, key, place), one)


def _resolved(one: Unpinned, *, offline: bool) -> str:
    """The commit that `main` stands at now, or of the hub's cache; nothing where neither says it."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if not offline and not constants.HF_HUB_OFFLINE:
        api = HfApi()
        ask = api.model_info if one.model else api.dataset_info
        try:
            found = ask(one.name, timeout=TIMEOUT).sha or ""
        except (OSError, ValueError):  # all errors of the hub and of the network
            found = ""
        if COMMIT.fullmatch(found):
            return found
    kind = "model" if one.model else "dataset"
    cached = try_to_load_from_cache(one.name, "config.json" if one.model else "README.md", repo_type=kind)
    return Path(cached).parent.name if isinstance(cached, str) and COMMIT.fullmatch(Path(cached).parent.name) else ""


def _remembered(file: Path) -> dict[str, str]:
    """The commits of earlier runs; a damaged file is forgotten."""
    try:
        found = json.loads(unseal(file))
    except (FileNotFoundError, DamagedError, ValueError):
        return {}
    return {str(key): commit for key, commit in found.items() if COMMIT.fullmatch(str(commit))}


def _with(spec: Any, loc: Loc, commit: str) -> Any:
    """The spec with a commit in the table at `loc`."""
    if not loc:
        return spec.model_copy(update={"revision": commit})
    key, *rest = loc
    value = getattr(spec, str(key))
    if isinstance(value, tuple):
        place = int(rest[0])
        changed: Any = (*value[:place], _with(value[place], tuple(rest[1:]), commit), *value[place + 1 :])
    else:
        changed = _with(value, tuple(rest), commit)
    return spec.model_copy(update={str(key): changed})
