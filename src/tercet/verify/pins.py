"""The code of a user's own that decides a stage's results: its digests are in the key, so an edit makes them stale.

Stages that grade (RL, on-policy pairs, evaluations) hold the digests of all verifiers that they or the stages of their
rows name: in the recipe, or in a local file of rows. A mixture and a benchmark only carry the names: an edit of a
reward does not make them stale, nor what is trained on them without it.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tercet.recipe import BASE, Recipe, RecipeError
from tercet.store import Context
from tercet.verify.plugins import GROUP, ChangedCodeError, custom_digest, found_in
from tercet.verify.user_code import named_in


def code_of(recipe: Recipe, name: str, cache: Path) -> dict[str, str]:
    """The code that decides the results of a stage, name -> digest; `cache` remembers what files of rows name."""
    spec = recipe.spec(name)
    found: dict[str, str] = pkgutil.resolve_name(spec.code)(spec, recipe.folder) if spec.code else {}
    return found | verifiers_of(recipe, name, cache) if spec.grades else found


def verifiers_of(recipe: Recipe, name: str, cache: Path) -> dict[str, str]:
    """The user's verifiers that a stage and the stages of its rows name, with their digests."""
    stages, seen, found = [name], {BASE, name}, dict[str, str]()
    for one in stages:
        found |= _named(recipe, one, cache)
        for ref in recipe.stage[one].references():
            rows = ref.loc[0] != "against" and ref.loc[-1] != "without" and ref.name not in seen
            if rows and recipe.spec(ref.name).produces in ("rows", "benchmark"):
                stages.append(ref.name)
                seen.add(ref.name)
    return {own: digest for own, digest in found.items() if digest}


def hidden(named: set[str], ctx: Context) -> dict[str, str]:
    """Those verifiers of a mixture's rows whose digest is in no key, as neither the recipe nor its files name them."""
    own = {one: digest for one in sorted(named) if (digest := custom_digest(one))}
    shown = verifiers_of(ctx.recipe, ctx.name, ctx.store.cache) if own else {}
    return {one: digest for one, digest in own.items() if one not in shown}


def check_hidden(payload: Path) -> None:
    """Raise ChangedCodeError where a hidden verifier of a folder of rows has changed since they were made."""
    summary = payload / "summary.json"
    kept: Mapping[str, str] = {}
    if summary.is_file():
        kept = json.loads(summary.read_text(encoding="utf-8")).get("verifiers", {})
    for own, digest in kept.items():
        if (now := custom_digest(own)) != digest:
            raise ChangedCodeError(
                f"{own} has changed since the rows of {payload.parent.name} were made (from {digest} to {now}): remove "
                "that folder and run again. Named in the source, its digest is in the keys, and results become stale"
            )


def _named(recipe: Recipe, name: str, cache: Path) -> dict[str, str]:
    """What a stage itself names, with the digests (empty for verifiers that are ours)."""
    spec, found = recipe.stage[name], dict[str, str]()
    for loc, verifier in spec.verifiers():
        try:
            found[verifier] = custom_digest(verifier, recipe.folder)
        except (ValueError, ImportError) as error:
            raise RecipeError(f"[stage.{name}] {'.'.join(map(str, loc))}: {error}", ("stage", name, *loc)) from None
    if spec.produces in ("rows", "benchmark"):
        for file in spec.local_files():
            path = (recipe.folder / Path(file.path).expanduser()).resolve()
            for own in named_in(path, cache, found_in(GROUP)) if path.is_file() else ():
                with suppress(ValueError):  # a text may look like the name of a verifier
                    found[own] = custom_digest(own, recipe.folder)
    if spec.graders:
        found |= pkgutil.resolve_name(spec.graders)(spec, recipe.folder)
    return found
