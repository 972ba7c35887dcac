"""The `prompts` stage: write every question of an exam to a folder.

`mix` decontaminates against this folder and `eval` asks from it, so an exam that was trained around is exactly the exam
that is given. Payload: `exam.parquet` (one `Item` per row), `tasks.json` (the task cards) and, where prompts show
public worked examples, `examples.parquet` (one `Example` per row).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet import hub
from tercet.evals.suite import locked, tasks
from tercet.evals.task import Example, Generated, Item, Task, TaskError, card, examples_of, items, public_records
from tercet.journal import write_json
from tercet.recipe import Prompts, Synth
from tercet.rows import Row, read_rows, write_table
from tercet.verify import check_truth

if TYPE_CHECKING:
    from tercet.store import Artifact, Context


def run(spec: Prompts, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write the exam; returns the number of items, in all and per task."""
    made = _exam_rows(spec, inputs, ctx)
    exam: list[Item] = []
    shown: list[Example] = []
    cards = []
    for task in tasks(spec.tasks):
        ctx.track.progress(len(exam), len(exam), note=task.id)
        examples = hub.records(task.examples, ctx.mirror)
        found = items(task, _records(task, made, ctx.mirror), examples)
        if not found:
            raise TaskError(f"{task.id}: found no items; {_remedy(task)}")
        kept = _limited(found, spec.limit, seed=f"{ctx.seed}/{task.id}")
        _check_truths(kept)
        exam += kept
        shown += examples_of(task, examples)
        cards.append(replace(card(task, kept), locked=bool(locked([task.id]))))
    write_table(out / "exam.parquet", exam)
    if shown:
        write_table(out / "examples.parquet", shown)
    write_json(out / "tasks.json", [one.to_json() for one in cards])
    return {"items": float(len(exam)), **{one.name: float(one.num_items) for one in cards}}


def _exam_rows(spec: Prompts, inputs: dict[str, Artifact], ctx: Context) -> list[Row]:
    rows = []
    for name in spec.items:
        stage = ctx.recipe.stage[name]
        if not isinstance(stage, Synth) or stage.split != "exam":
            raise TaskError(f'stage {name!r} cannot give exam items; expected a synth stage with split = "exam"')
        rows += read_rows(inputs[name].payload / "rows.parquet")
    return rows


def _records(task: Task, made: list[Row], mirror: dict[str, str]) -> list[Any]:
    if isinstance(task.data, Generated):
        return [row for row in made if row.source == task.data.generator]
    return public_records(task, mirror)


def _check_truths(kept: list[Item]) -> None:
    """Let every judge read every truth now, so that a bad one stops here and not in the middle of an exam."""
    for item in kept:
        if name := item.verifier or item.judge:
            check_truth(name, item.truth)


def _remedy(task: Task) -> str:
    if isinstance(task.data, Generated):
        return f'add a synth stage with generator = "{task.data.generator}" and split = "exam", and name it in `items`'
    return f"{task.data[0].path} is empty"


def _limited(found: list[Item], limit: int | None, seed: str) -> list[Item]:
    """The first `limit` of a seeded shuffle, back in the task's own order."""
    if limit is None or limit >= len(found):
        return found
    kept = list(range(len(found)))
    random.Random(seed).shuffle(kept)
    return [found[i] for i in sorted(kept[:limit])]
