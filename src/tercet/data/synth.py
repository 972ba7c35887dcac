"""The synth stage: one of our seeded generators writes a table of rows (hop 2 and 4 of the road)."""

from __future__ import annotations

from pathlib import Path

from tercet.data import constraints, planted, talk, words
from tercet.recipe import Synth
from tercet.rows import write_table
from tercet.store import Artifact, Context

GENERATORS = {
    "words@1": words.generate,
    "constraints@1": constraints.generate,
    "talk@1": talk.generate,
    "facts@1": talk.generate_facts,
    "planted@1": planted.generate,
}


def run(spec: Synth, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet`; the stage has no inputs, its rows follow from generator, number, split and seed."""
    rows = GENERATORS[spec.generator](spec.rows, spec.split, ctx.seed)
    write_table(out / "rows.parquet", rows)
    return {"rows": len(rows), "templates": len({row.template for row in rows})}
