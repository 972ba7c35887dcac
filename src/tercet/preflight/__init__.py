"""What would stop a stage of a recipe, found before the first one runs: from the recipe, local files and this machine.

Every obstacle is certain: the stage would refuse it, hours later. What only a finished stage can tell is not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import Recipe, RecipeError

__all__ = ["Obstacle", "needs_network", "obstacles", "refuse"]

Check = Callable[[Facts, str], Iterator[Obstacle]]


def obstacles(
    recipe: Recipe,
    missing: Iterable[str],
    made: Mapping[str, Path],
    mirror: Mapping[str, str],
    *,
    offline: bool = False,
) -> list[Obstacle]:
    """Everything that would stop the stages which are to be made; `made` has the payloads of those that exist."""
    # The checks read rows and benchmarks: imported by the verbs that look, not at every start.
    from tercet.preflight import evaluation, machine, models, network, revisions, sources

    checks: tuple[Check, ...] = (
        *revisions.CHECKS,
        *sources.CHECKS,
        *models.CHECKS,
        *evaluation.CHECKS,
        *machine.CHECKS,
    )
    facts, missing = Facts(recipe, made, mirror), list(missing)
    found = [obstacle for name in missing for check in checks for obstacle in check(facts, name)]
    if offline:
        found += [obstacle for name in missing for obstacle in network.unreachable(facts, name)]
    return list(dict.fromkeys(found))


def needs_network(
    recipe: Recipe, missing: Iterable[str], made: Mapping[str, Path], mirror: Mapping[str, str]
) -> dict[str, list[str]]:
    """What each of these stages fetches over the network or asks there; stages that need none are left out."""
    from tercet.preflight import network

    facts = Facts(recipe, made, mirror)
    found = {name: list(dict.fromkeys(what for _, what in network.addresses(facts, name))) for name in missing}
    return {name: what for name, what in found.items() if what}


def refuse(found: Iterable[Obstacle]) -> None:
    """Raise one `RecipeError` that lists all obstacles, where there are some."""
    lines = [f"  {obstacle}" for obstacle in found]
    if lines:
        many = f"{len(lines)} things would stop" if len(lines) > 1 else "one thing would stop"
        raise RecipeError("\n".join([f"{many} this run, so nothing was started:", *lines]))
