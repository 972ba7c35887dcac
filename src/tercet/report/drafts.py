"""Rollouts of a stage that has not ended: a run that goes on, or one that an alarm stopped (hop 12, before the commit).

The draft's ledger `work/rollouts.jsonl` has the completions, its `job.json` names the rows they answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet.report.facts import Object, Stage
from tercet.report.rollouts import FILE
from tercet.rows import Row, RowError, read_rows, write_table

LEDGER = "work/rollouts.jsonl"


def is_draft(folder: Path) -> bool:
    """Whether the folder is a stage's draft rather than an artefact."""
    return (folder / "job.json").is_file() and not (folder / "artifact.json").is_file()


def unfinished(folder: Path, scratch: Path) -> Stage:
    """The whole rounds that the draft's ledger has, as a table in `scratch` with the columns of a finished stage.

    Advantages are not there: they are computed where a round is learned from.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    spec = job["recipe"]["stage"].get(job["name"], {})
    if not (folder / LEDGER).is_file():
        raise RowError(f"{folder}: no {LEDGER}; only stages of kind rlvr and ppo keep one, from their first round on")
    rows = {row.id: row for row in read_rows(Path(job["inputs"][spec["prompts"]]) / "payload" / "rows.parquet")}
    records = [record for line in _whole(folder / LEDGER) for record in _completions(line, rows)]
    if not records:
        raise RowError(f"{folder / LEDGER}: holds no whole round yet; try again later")
    (scratch / "payload" / FILE).parent.mkdir(parents=True, exist_ok=True)
    write_table(scratch / "payload" / FILE, records)
    return Stage(job["name"], spec["kind"], folder.absolute().name.rpartition("-")[2], scratch, inputs={})


def _whole(path: Path) -> Iterator[Object]:
    """The groups of every round that was closed, with the version that wrote them; the last line may be cut short."""
    held: list[Object] = []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                return
            if not record.get("done"):
                held.append(record)
                continue
            yield from (one | {"version": record["version"]} for one in held)
            held = []


def _completions(group: Object, rows: dict[str, Row]) -> Iterator[dict[str, Any]]:
    row = rows[group["prompt_id"]]
    for number, one in enumerate(group["samples"]):
        _, answer, outcome, *_ = one["grade"]
        yield {
            "step": group["round"],
            "prompt_id": row.id,
            "sample": number,
            "verifier": row.verifier,
            "truth": row.truth,
            "prompt": row.prompt[-1].content,
            "answer": answer,
            "outcome": outcome,
            "parts": json.dumps(one["parts"]),
            "length": len(one["ids"]),
            "version": group["version"],
            **{name: one[name] for name in ("text", "score", "reward", "stop")},
        }
