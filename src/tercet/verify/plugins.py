"""Verifiers of a user: functions in a file of their own, `my_reward.py:score`, or in an installed package.

A package whose pyproject.toml says, under `[project.entry-points."tercet.verifiers"]`, `"mine@1" = "my_verifiers:mine"`
adds `mine@1` to the verifiers wherever it is installed. Rows and recipes name both like one of ours. What a function is
given and may return stands in signatures.py. It should refuse a reference answer that it cannot read by a
VerifierError, also with an empty completion: that is how rows are checked before training.

It runs in a worker process, which answers with plain values alone. One that hangs is ended (outcome "timeout"), and one
that raises, dies or returns no number has the outcome "error"; neither stops a run. `grade` and `rescore` end with the
row for which no grade was returned. The digest of its code is part of what a stage's key is made of.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from tercet.rows import Messages
from tercet.sandbox.workers import WorkerError, WorkerStartError, WorkerTimeoutError, call
from tercet.verify.grade import Grade, Verifier, VerifierError
from tercet.verify.signatures import Submission
from tercet.verify.user_code import UserCodeError, is_user_code, located, pinned

GROUP = "tercet.verifiers"
NAME = re.compile(r"[\w.-]+@\w+")
SECONDS = 60.0  # for one grade
WORKER = "tercet.verify.signatures"


class ChangedCodeError(RuntimeError):
    """The code of a verifier is not that which this run began with, so its grades would be of two kinds."""


def custom_verifier(name: str, ours: Collection[str]) -> Verifier | None:
    """The verifier that a file or an installed package calls `name`, if any. `ours`: names that no package may take."""
    if is_user_code(name):
        who, where, package = repr(name), _located(name), name.rpartition(":")[0]
    elif name in found_in(GROUP):
        entry = only(name, ours, GROUP)
        package = package_of(entry)
        who, where = f"{name!r} of the package {package!r}", f"{entry.module}:{entry.attr}"
    else:
        return None
    reads, sees = True, False
    try:
        digest = pinned(where)
        fault, reads, sees = call(f"{WORKER}:describe", (where, digest), SECONDS)
    except (ImportError, UserCodeError, WorkerTimeoutError, WorkerError, WorkerStartError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        raise VerifierError(f"the verifier {who}, {where}, cannot be used: {fault}; repair it, or name another one")
    function = UserFunction(name, where, digest)
    return Verifier(name, function, slow=True, needs_reference=reads, sees_thoughts=sees, package=package)


def check_custom(found: Verifier, reference: str) -> None:
    """Raise VerifierError where the function of a user's verifier does so for this reference answer."""
    own: UserFunction = found.loaded
    try:
        fault = call(f"{WORKER}:fault", (own.where, own.digest, reference), SECONDS)
    except (WorkerTimeoutError, WorkerError):  # an accident on the empty completion
        return
    if fault:
        raise VerifierError(fault if fault.startswith(found.name) else f"{found.name}: {fault}")


def custom_digest(name: str, folder: Path = Path()) -> str:
    """What a key holds of a user's verifier, which is not imported: its digest, of a package also name and version.

    Empty for one of ours and for an unknown name. Relative paths start at `folder`.
    """
    if is_user_code(name):
        return pinned(_located(name, folder))
    return package_digest(name, GROUP)


def package_digest(name: str, group: str) -> str:
    """The same of an entry point: `my-package 1.0 sha256:...`."""
    if not (entries := found_in(group).get(name)):
        return ""
    entry = entries[0]
    return f"{package_of(entry)} {entry.dist.version if entry.dist else ''} {pinned(entry.module)}"


def custom_names(ours: Collection[str]) -> list[str]:
    """The names of all verifiers in installed packages; VerifierError for a name that two give or that is ours."""
    return sorted(only(name, ours, GROUP).name for name in found_in(GROUP))


@cache
def found_in(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by their names."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def only(name: str, ours: Collection[str], group: str) -> EntryPoint:
    """The one entry point of this name; VerifierError where two have it, where we have it, or without a version."""
    entries, what = found_in(group)[name], group.rpartition(".")[2].removesuffix("s")
    packages = " and ".join(sorted(repr(package_of(entry)) for entry in entries))
    if name in ours:
        raise VerifierError(f"the package {packages} names a {what} {name!r}, which Tercet has; give it another name")
    if len(entries) > 1:
        raise VerifierError(f"the packages {packages} both name a {what} {name!r}; remove or rename one")
    if not NAME.fullmatch(name):
        raise VerifierError(f"the package {packages} names a {what} {name!r}; expected NAME@VERSION, e.g. 'mine@1'")
    return entries[0]


def package_of(entry: EntryPoint) -> str:
    """The distribution that an entry point belongs to."""
    return entry.dist.name if entry.dist else entry.module


def _located(name: str, folder: Path = Path()) -> str:
    try:
        return located(name, folder)
    except UserCodeError as error:
        raise VerifierError(f"the verifier {error}") from None


@dataclass(frozen=True)
class UserFunction:
    """A user's function, called where it can hang or die without harm; `digest` is that of its code."""

    name: str
    where: str
    digest: str

    def __call__(self, completion: str, reference: str, *, prompt: Messages = (), source: str = "") -> Grade:
        """The grade of a completion."""
        one = Submission(completion, reference, prompt, source)
        try:
            found: dict[str, Any] | None = call(f"{WORKER}:grade", (self.where, self.digest, one), SECONDS)
        except WorkerTimeoutError as error:
            return Grade(0.0, outcome="timeout", detail=str(error))
        except WorkerError as error:
            return Grade(0.0, outcome="error", detail=str(error))
        if found is None:
            raise ChangedCodeError(f"{self.name} has changed while this run used it; run the same command again")
        grade = Grade(**found)
        return replace(grade, detail=f"the verifier {self.name}: {grade.detail}") if grade.refused else grade
