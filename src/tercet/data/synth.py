"""The synth stage: a seeded generator writes a table of rows."""

from __future__ import annotations

from pathlib import Path

from tercet.data.generators import calls, constraints, contaminated, talk, words
from tercet.recipe import SynthSpec
from tercet.rows import write_table
from tercet.store import Artifact, Context

GENERATORS = {
    "words@1": words.generate,
    "calls@1": calls.generate,
    "constraints@1": constraints.generate,
    "talk@1": talk.generate,
    "facts@1": talk.generate_facts,
    "contaminated@1": contaminated.generate,
}


def run(spec: SynthSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet`; the rows depend on generator, number, split and seed alone."""
    rows = GENERATORS[spec.generator](spec.rows, spec.split, ctx.seed)
    write_table(out / "rows.parquet", rows)
    return {"rows": len(rows), "templates": len({row.template for row in rows})}
