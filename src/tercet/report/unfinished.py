"""Rollouts of a stage that has not ended: one that still runs, or that an alert stopped.

The rollout log `work/rollouts.jsonl` in the draft has the completions, its `job.json` names the rows they answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet import journal
from tercet.report.collect import Object, Stage
from tercet.report.rollouts import FILE
from tercet.rows import Row, RowError, read_rows, write_table

LOG = "work/rollouts.jsonl"


def is_draft(folder: Path) -> bool:
    """Whether the folder is a stage's draft rather than an artifact."""
    return (folder / "job.json").is_file() and not (folder / "artifact.json").is_file()


def unfinished(folder: Path, scratch: Path) -> Stage:
    """The whole rounds of the rollout log, as a table in `scratch` with the columns of a finished stage.

    It has no advantages: a stage computes them when it trains on a round.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    spec = job["recipe"]["stage"].get(job["name"], {})
    if not (folder / LOG).is_file():
        raise RowError(f"{folder}: no {LOG}; only stages of kind grpo and ppo keep one, from their first round on")
    rows = prompts(job)
    records = [record for line in journal.read(folder / LOG) for record in completions(line, rows)]
    if not records:
        raise RowError(f"{folder / LOG}: holds no whole round yet; try again later")
    (scratch / "payload" / FILE).parent.mkdir(parents=True, exist_ok=True)
    write_table(scratch / "payload" / FILE, records)
    return Stage(job["name"], spec["kind"], folder.absolute().name.rpartition("-")[2], scratch, inputs={})


def prompts(job: Object) -> dict[str, Row]:
    """The rows that an RL stage draws its prompts from, by name; `job` is its job.json."""
    spec = job["recipe"]["stage"][job["name"]]
    return {row.id: row for row in read_rows(Path(job["inputs"][spec["prompts"]]) / "payload" / "rows.parquet")}


def completions(line: Object, rows: dict[str, Row]) -> Iterator[dict[str, Any]]:
    """Those of one round, from its line of the log: a record for each group, and a closing one."""
    *groups, closing = line["records"]
    for group in groups:
        row = rows[group["prompt_id"]]
        for number, one in enumerate(group["samples"]):
            _, answer, outcome, *_ = one["grade"]
            yield {
                "step": line["round"],
                "prompt_id": row.id,
                "sample": number,
                "verifier": row.verifier,
                "reference": row.reference,
                "prompt": row.prompt[-1].content,
                "answer": answer,
                "outcome": outcome,
                "parts": json.dumps(one["parts"]),
                "length": len(one["ids"]),
                "version": group.get("first", closing["version"]),
                **({"version_last": group["last"], "replica": group["replica"]} if "draw" in group else {}),
                **{name: one[name] for name in ("text", "score", "reward", "stop")},
            }
