"""Which environments there are: ours by name and version, a class in a user's file, or one of an installed package."""

from __future__ import annotations

from pathlib import Path

from tercet.recipe import BenchmarkSpec, RecipeError, RLSpec
from tercet.verify.user_code import UserCodeError, is_user_code, located, pinned

OURS = {
    "calculator@1": "tercet.environments.calculator:Calculator",
    "guess@1": "tercet.environments.guess:Guess",
    "openenv@1": "tercet.environments.openenv:Adapted",
    "verifiers@1": "tercet.environments.verifiers_env:TasksetEpisode",
}


# Of ours, what plays code of others: the argument that names its module.
PLAYS = {"verifiers@1": "taskset"}


class EnvironmentNameError(ValueError):
    """No environment has this name; the message says what a name looks like."""


def where(name: str, folder: Path = Path()) -> str:
    """The class that a name means, as `module:Class` or `/path/to/file.py:Class`; paths start at `folder`."""
    if name in OURS:
        return OURS[name]
    if is_user_code(name):
        return located(name, folder)
    module, colon, kind = name.partition(":")
    if not (colon and kind.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise EnvironmentNameError(
            f"there is no environment {name!r}; expected {', '.join(OURS)}, a class in a file (`my_game.py:Game`), or "
            "one of an installed package (`package.module:Game`)"
        )
    return name


def code_of(spec: RLSpec | BenchmarkSpec, folder: Path) -> dict[str, str]:
    """The digest of a stage's environment where it is a user's own: an edit makes results stale."""
    if not spec.environment:
        return {}
    if played := spec.environment_args.get(PLAYS.get(spec.environment, "")):
        return _module(spec.environment, played)
    try:
        found = where(spec.environment, folder)
        return {} if spec.environment in OURS else {spec.environment: pinned(found)}
    except (EnvironmentNameError, UserCodeError, ImportError) as error:
        raise RecipeError(f"environment = {spec.environment!r}: {error}") from None


def _module(environment: str, name: str) -> dict[str, str]:
    """The digest of a module that an environment of ours plays; one that the package brings itself has none."""
    module = str(name).rsplit("/", 1)[-1].partition("@")[0].replace("-", "_").lower()  # as the package reads it
    try:
        return {f"{environment} {name}": pinned(f"{module}:")}
    except ImportError:
        return {}
