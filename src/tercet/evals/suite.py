"""Every task by name, the suites that group tasks, and how a suite becomes one number.

Each task is declared in a module of `tasks`, in a user's file (`my_tasks.py:mine`) or in an installed package, which
names it under `[project.entry-points."tercet.tasks"]`. A changed task is a new version; recipes name the version.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files as resource
from pathlib import Path
from typing import Any

from tercet.environments.names import code_of
from tercet.evals.task import Generated, Task, TaskError, bits_per_byte
from tercet.evals.tasks.dev import TASKS as DEV
from tercet.evals.tasks.lm import TASKS as LM
from tercet.evals.tasks.quick import TASKS as QUICK
from tercet.evals.tasks.safety import TASKS as SAFETY
from tercet.evals.tasks.unseen import TASKS as UNSEEN
from tercet.recipe import BenchmarkSpec, EvalSpec, Recipe, RecipeError
from tercet.records import TaskCard
from tercet.rows import Source
from tercet.verify import custom_digest
from tercet.verify.plugins import found_in, only, package_digest
from tercet.verify.user_code import is_user_code, load, located, pinned

TASKS = {task.id: task for task in (*QUICK, *DEV, *UNSEEN, *SAFETY, *LM)}
LOCKED = frozenset(task.id for task in UNSEEN)  # scored only where a recipe says so
BPB = ":bpb"
GROUP = "tercet.tasks"
HERE = Path()


@dataclass(frozen=True)
class Suite:
    """Tasks in the rows of a published table; a row is the mean of its tasks, the average that of the rows.

    Tasks `beside` are asked and not counted. `without` names averages that leave rows out: `{"10 rows": ["DROP"]}`.
    """

    rows: Mapping[str, Sequence[str]]
    beside: Sequence[str] = ()
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The ids of all its tasks."""
        return [*(name for names in self.rows.values() for name in names), *self.beside]


_TABLE = tomllib.loads(resource("tercet.evals").joinpath("suites.toml").read_text(encoding="utf-8"))
SUITES = {name: Suite(**table) for name, table in _TABLE.items()}


def task(name: str, folder: Path = HERE) -> Task:
    """The task with this name, e.g. `words@1`; `gsm8k:bpb@2` is the bits per byte of the right answers of `gsm8k@2`.

    `my_tasks.py:mine` is a Task in a file, or what a function there returns; a relative path starts at `folder`.
    """
    if name in TASKS:
        return TASKS[name]
    if is_user_code(name):
        where = located(name, folder)
        return _own(load(where), name, {name: pinned(where)})
    if name in found_in(GROUP):
        return _own(only(name, TASKS, GROUP).load(), name, {name: package_digest(name, GROUP)})
    plain, _, version = name.rpartition("@")
    if plain.endswith(BPB) and f"{plain.removesuffix(BPB)}@{version}" in TASKS:
        return bits_per_byte(TASKS[f"{plain.removesuffix(BPB)}@{version}"])
    raise TaskError(
        f"no benchmark task is called {name!r}; known tasks: {', '.join(TASKS)}; suites: {', '.join(SUITES)}; one of "
        "your own is named by its file, 'my_tasks.py:mine'"
    )


def _own(value: Any, name: str, code: dict[str, str]) -> Task:
    """A task that does not belong to the package."""
    made = value() if callable(value) else value
    if not isinstance(made, Task):
        raise TaskError(f"{name}: expected a tercet.evals.task.Task, or a function that returns one, got {made!r:.80}")
    if made.id in TASKS:
        raise TaskError(f"{name}: is called {made.id!r}, as a task of Tercet is; give it another name or version")
    return replace(made, code=code)


def tasks(names: Iterable[str], folder: Path = HERE) -> list[Task]:
    """The tasks of a list of task and suite names, in order, each once."""
    wanted = [member for name in names for member in (SUITES[name].tasks if name in SUITES else (name,))]
    found = [task(name, folder) for name in dict.fromkeys(wanted)]
    if twice := [one.id for i, one in enumerate(found) if one.id in [other.id for other in found[:i]]]:
        raise TaskError(f"two tasks are called {twice[0]!r}; give one of them another name or version")
    return found


def needs(names: Iterable[str]) -> list[tuple[str, int]]:
    """Generators, with row counts, whose benchmark rows these tasks are made of: `[("words@1", 120)]`."""
    rows: dict[str, int] = {}
    for wanted in tasks(names):
        if isinstance(wanted.data, Generated):
            rows[wanted.data.generator] = max(rows.get(wanted.data.generator, 0), wanted.data.rows)
    return list(rows.items())


def item_stages(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The stages that make the items of these tasks, as a recipe names them; empty where they read public data."""
    return {
        f"items-{name.partition('@')[0]}": {"kind": "synth", "generator": name, "rows": rows, "split": "test"}
        for name, rows in needs(names)
    }


def sources(names: Iterable[str], folder: Path = HERE) -> list[Source]:
    """Every public source that these tasks read: items and examples."""
    found: dict[Source, None] = {}
    for wanted in tasks(names, folder):
        found |= dict.fromkeys((*(() if isinstance(wanted.data, Generated) else wanted.data), *wanted.examples))
    return list(found)


def files(spec: BenchmarkSpec, folder: Path) -> list[Source]:
    """The public sources of a stage's tasks, which local files may stand for."""
    return sources(spec.tasks, folder)


def code(spec: BenchmarkSpec, folder: Path) -> dict[str, str]:
    """The code of a user's own behind a stage's tasks: name -> digest."""
    found = {name: digest for own in tasks(spec.tasks, folder) for name, digest in (own.code or {}).items()}
    return found | code_of(spec, folder)


def graders(spec: BenchmarkSpec, folder: Path) -> dict[str, str]:
    """The digests of the user's verifiers that a stage's tasks name."""
    return {own.verifier: custom_digest(own.verifier, folder) for own in tasks(spec.tasks, folder) if own.verifier}


def declared(card: TaskCard) -> Task | None:
    """The task of a card, where it is known by its name or by the code that the card names."""
    others = (card.verifier, (card.environment or {}).get("name"))
    own = next((name for name in card.code or {} if name not in others), None)
    return task(own) if own else TASKS.get(card.name)


def check_final(spec: EvalSpec, name: str, recipe: Recipe) -> None:
    """The unseen suite may be scored only in an evaluation stage marked final."""
    benchmark = recipe.stage[spec.benchmark]
    if not spec.final and isinstance(benchmark, BenchmarkSpec) and (names := locked(benchmark.tasks)):
        raise RecipeError(
            f"stage {name!r} would score {', '.join(names)} of the unseen suite; that is for one last eval "
            "stage marked `final = true` (on the command line: --final)",
            ("stage", name, "benchmark"),
        )


def locked(names: Iterable[str]) -> list[str]:
    """Those of these tasks that belong to the unseen suite."""
    ours = [name for name in names if not is_user_code(name)]
    return [wanted.id for wanted in tasks(ours) if wanted.id.replace(BPB, "") in LOCKED]


def averages(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The suites that these scores of tasks complete: every row, and the averages with their standard errors.

    An average is the unweighted mean of its rows; its error is sqrt(sum of squares) / number of rows, and is not known
    (None) where that of a row is not.
    """
    found = {}
    for name, suite in SUITES.items():
        counted = [member for members in suite.rows.values() for member in members]
        if name in ("quick", "lm") or not all(member in scores for member in counted):
            continue
        rows = {row: {**_mean([scores[one] for one in own]), "tasks": list(own)} for row, own in suite.rows.items()}
        means = {}
        for label, left in {f"{len(rows)} rows": (), **suite.without}.items():
            kept = [key for key in rows if key not in left]
            means[label] = {**_mean([rows[key] for key in kept]), "rows": kept}
        found[name] = {"rows": rows, "averages": means}
    return found


def _mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    errors = [part["stderr"] for part in parts]
    known = None not in errors
    return {
        "score": math.fsum(part["score"] for part in parts) / len(parts),
        "stderr": math.sqrt(math.fsum(error**2 for error in errors)) / len(parts) if known else None,
    }
