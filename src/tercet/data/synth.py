"""The synth stage: a seeded generator writes a table of rows."""

from __future__ import annotations

from pathlib import Path

from tercet.data import tables
from tercet.data.generators import constraints, contaminated, talk, words
from tercet.data.sources import TEMPLATE
from tercet.recipe import PersonasSpec, SynthSpec
from tercet.recipe.specs import ArtifactSpec
from tercet.rows import write_table
from tercet.store import Artifact, Context

GENERATORS = {
    "words@1": words.generate,
    "constraints@1": constraints.generate,
    "talk@1": talk.generate,
    "facts@1": talk.generate_facts,
    "contaminated@1": contaminated.generate,
}
TABLES = {  # the files of `tercet.data.tables` that a generator reads; {split} is the stage's split
    "words@1": ("words.toml", "words_{split}.jsonl"),
    "constraints@1": ("phrases.toml", "topics_{split}.jsonl"),
    "talk@1": ("talk_{split}.jsonl",),
    "facts@1": ("facts_{split}.jsonl",),
    "contaminated@1": ("words.toml", "words_test.jsonl", "phrases.toml", "topics_test.jsonl"),
}


def run(spec: SynthSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet`; the rows depend on generator, number, split and seed alone."""
    rows = GENERATORS[spec.generator](spec.rows, spec.split, ctx.seed)
    write_table(out / "rows.parquet", rows)
    return {"rows": len(rows), "templates": len({row.template for row in rows})}


def tables_read(spec: ArtifactSpec) -> dict[str, str]:
    """For a stage's key: the digest of the text tables that its rows are made of, if any."""
    read = ["hardcoded.jsonl"] if any(source.path == TEMPLATE for _, source in spec.origins()) else []
    if isinstance(spec, SynthSpec):
        read += [name.format(split=spec.split) for name in TABLES[spec.generator]]
    elif isinstance(spec, PersonasSpec):
        read += ["personas.toml", "phrases.toml"]
    return {"tables": tables.digest(read)} if read else {}
