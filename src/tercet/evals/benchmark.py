"""The `benchmark` stage: write every item of a benchmark to a folder.

`mix` decontaminates against this folder and `eval` asks from it, so training data are cleaned of exactly the items that
a model is evaluated on. Payload: `benchmark.parquet` (one `Item` per row), `tasks.json` (the task cards) and,
where prompts show public worked examples, `examples.parquet` (one `Example` per row).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from tercet import hub
from tercet.evals.suite import locked, tasks
from tercet.evals.task import Example, Generated, Item, Task, TaskError, card, examples_of, items, public_records
from tercet.journal import write_json
from tercet.recipe import BenchmarkSpec, SynthSpec
from tercet.rows import Row, read_rows, write_table
from tercet.store import Artifact, Context
from tercet.verify import check_reference


def run(spec: BenchmarkSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write the benchmark; returns the number of items, in all and per task."""
    made = _benchmark_rows(spec, inputs, ctx)
    benchmark: list[Item] = []
    shown: list[Example] = []
    cards = []
    for task in tasks(spec.tasks):
        ctx.track.progress(len(benchmark), len(benchmark), note=task.id)
        examples = hub.records(task.examples, ctx.mirror)
        found = items(task, _records(task, made, ctx.mirror), examples)
        if not found:
            raise TaskError(f"{task.id}: found no items; {_remedy(task)}")
        kept = _limited(found, spec.limit, seed=f"{ctx.seed}/{task.id}")
        _check_references(kept)
        benchmark += kept
        shown += examples_of(task, examples)
        cards.append(replace(card(task, kept), locked=bool(locked([task.id]))))
    write_table(out / "benchmark.parquet", benchmark)
    if shown:
        write_table(out / "examples.parquet", shown)
    write_json(out / "tasks.json", [one.to_json() for one in cards])
    return {"items": float(len(benchmark)), **{one.name: float(one.num_items) for one in cards}}


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
            check_reference(name, item.reference)


def _remedy(task: Task) -> str:
    if isinstance(task.data, Generated):
        return f'add a synth stage with generator = "{task.data.generator}" and split = "test", and name it in `items`'
    return f"{task.data[0].path} is empty"


def _limited(found: list[Item], limit: int | None, seed: str) -> list[Item]:
    """The first `limit` of a seeded shuffle, back in the task's own order."""
    if limit is None or limit >= len(found):
        return found
    kept = list(range(len(found)))
    random.Random(seed).shuffle(kept)
    return [found[i] for i in sorted(kept[:limit])]
