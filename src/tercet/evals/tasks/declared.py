"""Tasks of two halves: the facts of `tasks.toml`, and the functions that read a record."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from tercet.evals.task import Generated, Task
from tercet.rows import Sampling, Source

Functions = dict[str, Any]  # fields of a `Task`: {"prompt": ..., "reference": ..., "gold": ...}

_FACTS: dict[str, dict[str, Any]] = tomllib.loads(
    files("tercet.evals.tasks").joinpath("tasks.toml").read_text(encoding="utf-8")
)


def declared(
    functions: Mapping[str, Functions], others: Mapping[str, Functions] = MappingProxyType({})
) -> tuple[Task, ...]:
    """A task of each name in `functions`. One whose table says `like` has all that it does not say itself from there.

    `others` has the functions of tasks in other modules, for their variants.
    """
    known = {**others, **functions}
    return tuple(Task(name=name, **_whole(name, known)) for name in functions)


def _whole(name: str, known: Mapping[str, Functions]) -> dict[str, Any]:
    facts = dict(_FACTS[name])
    below = _whole(facts.pop("like"), known) if "like" in facts else {"version": 1}
    return {**below, **_typed(facts), **known[name]}


def _typed(facts: dict[str, Any]) -> dict[str, Any]:
    """The values of a TOML table as the fields of a `Task` hold them."""
    found = dict(facts)
    for key in ("data", "examples"):
        if isinstance(own := found.get(key), list):
            found[key] = tuple(Source(**one) for one in own)
        elif own is not None:
            found[key] = Generated(**own)
    if sampling := found.get("sampling"):
        found["sampling"] = Sampling(**{**sampling, "stop": tuple(sampling.get("stop", ()))})
    if measures := found.get("measures"):
        found["measures"] = {name: tuple(keys) for name, keys in measures.items()}
    return found
