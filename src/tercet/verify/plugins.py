"""Verifiers from a user's own package, found through the entry point group `tercet.verifiers`.

A package whose pyproject.toml says, under `[project.entry-points."tercet.verifiers"]`, `"mine@1" = "my_verifiers:mine"`
adds `mine@1` to the verifiers wherever it is installed: rows and recipes name it like one of ours. The function takes a
completion and a reference answer and returns a `tercet.verify.Grade`. It should refuse a reference answer that it
cannot read by a VerifierError, also with an empty completion: that is how rows are checked before training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from functools import cache, wraps
from importlib.metadata import EntryPoint, entry_points

from tercet.verify.grade import Grade, Verifier, VerifierError

GROUP = "tercet.verifiers"
NAME = re.compile(r"[\w.-]+@\w+")


def custom_verifier(name: str, ours: Collection[str]) -> Verifier | None:
    """The verifier that an installed package calls `name`, if any. `ours`: names that no package may take."""
    if name not in _found():
        return None
    entry = _only(name, ours)
    package = _package(entry)
    try:
        function = entry.load()
    except Exception as error:
        raise VerifierError(
            f"the verifier {name!r} of the package {package!r} cannot be imported from {entry.value!r} "
            f"({type(error).__name__}: {error}); repair or remove the package"
        ) from error
    if not callable(function):
        raise VerifierError(f"{entry.value!r} of the package {package!r} is no function; {name!r} needs one")
    return Verifier(name, _checked(function, f"{name} (package {package})"), package=package)


def custom_names(ours: Collection[str]) -> list[str]:
    """The names of all verifiers in installed packages; VerifierError for a name that two give or that is ours."""
    return sorted(_only(name, ours).name for name in _found())


@cache
def _found() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def _only(name: str, ours: Collection[str]) -> EntryPoint:
    entries = _found()[name]
    packages = " and ".join(sorted(repr(_package(entry)) for entry in entries))
    if name in ours:
        raise VerifierError(f"the package {packages} names a verifier {name!r}, which Tercet has; give it another name")
    if len(entries) > 1:
        raise VerifierError(f"the packages {packages} both name a verifier {name!r}; remove or rename one")
    if not NAME.fullmatch(name):
        raise VerifierError(f"the package {packages} names a verifier {name!r}; expected NAME@VERSION, e.g. 'mine@1'")
    return entries[0]


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module


def _checked(function: Callable[[str, str], Grade], whose: str) -> Callable[[str, str], Grade]:
    """The same function, whose results are checked: a reward of None or NaN must not reach the trainer."""

    @wraps(function)
    def checked(completion: str, reference: str) -> Grade:
        grade = function(completion, reference)
        if not isinstance(grade, Grade):
            raise VerifierError(f"{whose} returned {type(grade).__name__}; expected a tercet.verify.Grade")
        if not math.isfinite(grade.score):
            raise VerifierError(f"{whose} returned the score {grade.score}; expected a finite number")
        return grade

    return checked
