"""The `benchmark` stage: write every item of a benchmark to a folder.

`mix` decontaminates against this folder and `eval` asks from it, so training data are cleaned of exactly the items that
a model is evaluated on. Payload: `benchmark.parquet` (one `Item` per row), `tasks.json` (the task cards) and,
where prompts show public worked examples, `examples.parquet` (one `Example` per row).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tercet import hub
from tercet.evals.own import TaskInput, own_tasks
from tercet.evals.suite import locked, tasks
from tercet.evals.task import Example, Generated, Item, Task, TaskError, card, examples_of, items, public_records
from tercet.journal import write_json
from tercet.recipe import BenchmarkSpec, SynthSpec
from tercet.records import TaskCard
from tercet.rows import Row, read_rows, write_table
from tercet.store import Artifact, Context
from tercet.verify import VerifierError, check_reference


def run(spec: BenchmarkSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write the benchmark; returns the number of items, in all and per task."""
    made = _benchmark_rows(spec, inputs, ctx)
    benchmark: list[Item] = []
    shown: list[Example] = []
    cards: list[TaskCard] = []
    for one in chain(_named(spec, made, ctx), own_tasks(spec, inputs, ctx)):
        task = one.task
        ctx.track.progress(len(benchmark), len(benchmark), note=task.id)
        found = items(task, one.records, one.examples)
        if not found:
            raise TaskError(f"{task.id}: found no items; {_remedy(task)}")
        if task.id in (other.name for other in cards):
            raise TaskError(f'two tasks of this stage are called {task.id!r}; name yours with `task = "NAME@1"`')
        kept = _limited(found, spec.limit, seed=f"{ctx.seed}/{task.id}")
        _check_references(kept)
        benchmark += kept
        shown += examples_of(task, one.examples)
        cards.append(_card(one, kept))
    write_table(out / "benchmark.parquet", benchmark)
    if shown:
        write_table(out / "examples.parquet", shown)
    write_json(out / "tasks.json", [one.to_json() for one in cards])
    return {"items": float(len(benchmark)), **{one.name: float(one.num_items) for one in cards}}


def _named(spec: BenchmarkSpec, made: list[Row], ctx: Context) -> Iterator[TaskInput]:
    """The tasks that the recipe names, each with its records and public examples."""
    for task in tasks(spec.tasks):
        examples = hub.records(task.examples, ctx.mirror)
        yield TaskInput(task, _records(task, made, ctx.mirror), examples)


def _card(one: TaskInput, kept: list[Item]) -> TaskCard:
    """The card of a task; of a user's rows also where they come from."""
    task, made = one.task, card(one.task, kept)
    if one.about is None:
        return replace(made, locked=not task.code and bool(locked([task.id])))
    # Shots are counted here: the turns of a longer conversation are not shots.
    return replace(made, data=one.about, shots=len(one.examples))


def _benchmark_rows(spec: BenchmarkSpec, inputs: dict[str, Artifact], ctx: Context) -> list[Row]:
    rows = []
    for name in spec.items:
        stage = ctx.recipe.stage[name]
        if not isinstance(stage, SynthSpec) or stage.split != "test":
            raise TaskError(f'stage {name!r} cannot give benchmark items; expected a synth stage with split = "test"')
        rows += read_rows(inputs[name].payload / "rows.parquet")
    return rows


def _records(task: Task, made: list[Row], mirror: dict[str, str]) -> list[Any]:
    if isinstance(task.data, Generated):
        return [row for row in made if row.source == task.data.generator]
    return public_records(task, mirror)


def _check_references(kept: list[Item]) -> None:
    """Read each reference answer as its verifier or judge does: a bad one stops this stage, not an evaluation."""
    for item in kept:
        if name := item.verifier or item.judge:
            try:
                check_reference(name, item.reference)
            except VerifierError as error:
                raise VerifierError(f"{item.task}, item {item.item!r}: {error}") from None


def _remedy(task: Task) -> str:
    if isinstance(task.data, Generated):
        return f'add a synth stage with generator = "{task.data.generator}" and split = "test", and name it in `items`'
    return f"{task.data[0].path} is empty" if task.data else "all its rows are worked examples; lower `shots`"


def _limited(found: list[Item], limit: int | None, seed: str) -> list[Item]:
    """The first `limit` of a seeded shuffle, back in the task's own order."""
    if limit is None or limit >= len(found):
        return found
    kept = list(range(len(found)))
    random.Random(seed).shuffle(kept)
    return [found[i] for i in sorted(kept[:limit])]
