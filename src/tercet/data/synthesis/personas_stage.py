"""The stage `personas`: a model writes prompts and answers from seeds, and those that pass their check are kept.

How rows are made and checked is in `tercet.data.synthesis.personas`, what requests cost in
`tercet.data.synthesis.requests`.
"""

from __future__ import annotations

from pathlib import Path

from tercet.data.disk_list import batched
from tercet.data.reading import Reading
from tercet.data.sources import draw, label, load
from tercet.data.synthesis.personas import SeedCounts, synthesise
from tercet.data.synthesis.personas_checks import AnswerPlan
from tercet.data.synthesis.requests import PIECE, logged_model, open_log, title, write_requests
from tercet.journal import write_json
from tercet.recipe import PersonasSpec
from tercet.rows import Row, RowError
from tercet.rows_table import TableWriter
from tercet.store import Artifact, Context


def run(spec: PersonasSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet`, `summary.json` and `requests.parquet`."""
    reading, counts, author = Reading(), SeedCounts(), inputs[spec.model]
    seeds = read_seeds(spec, inputs, ctx, reading)
    for sentence in reading.sentences(label(spec.seeds)):
        ctx.track.note(sentence)
    plan = AnswerPlan(spec.answers, spec.agree, spec.temperature, spec.author_temperature, spec.max_new_tokens)
    with open_log(spec, ctx) as log:

        def progress(_answers: int = 0) -> None:
            settled = counts.kept + counts.dropped.total()
            ctx.track.progress(settled, len(seeds), f"seeds; {log.spent.answers} answers")

        def track() -> None:
            ctx.track.log(counts.read, rows=counts.kept, dropped=counts.dropped.total(), **log.spent.numbers)

        with logged_model(log, author, spec, ctx, progress) as writer, TableWriter(out / "rows.parquet", Row) as table:
            for rows in batched(synthesise(spec.write, seeds, writer, ctx.seed, plan=plan, counts=counts), PIECE):
                table.write(rows)
                track()
        paid = write_requests(log, [(title(author), writer)], out)
        track()
        progress()
    if not counts.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.dropped.most_common())
        raise RuntimeError(
            f"personas {ctx.name!r}: no row from {len(seeds)} seeds ({reasons}); another author, more `answers`, a "
            "lower `agree` or more `max_new_tokens` may help"
        )
    source = {"source": label(spec.seeds), "read": reading.read} | reading.plain()
    made = {"seeds": counts.read, "rows": counts.kept, "dropped": dict(sorted(counts.dropped.items()))}
    summary = {"of": "rows", "write": spec.write, "model": title(author), **source, **made, **paid}
    write_json(out / "summary.json", summary)
    return {"rows": float(counts.kept), "seeds": float(len(seeds)), "cost": float(paid["requests"]["cost"])}


def read_seeds(spec: PersonasSpec, inputs: dict[str, Artifact], ctx: Context, reading: Reading) -> list[str]:
    """The first user turn of every row of the source, or of a seeded sample of `rows` of them."""
    source = spec.seeds
    if odd := [name for name in ("fraction", "without", "examples") if getattr(source, name)]:
        raise RowError(f"the seeds of {ctx.name!r} have `{odd[0]}`, which only a mixture knows; use `rows`, or a mix")
    found = load(source.model_copy(update={"require_answer": False}), inputs, ctx.mirror, reading)
    wanted = [number for number in (spec.rows, source.rows) if number is not None]
    chosen = draw(found, min(wanted), seed=ctx.seed, key=lambda row: row.id) if wanted else found
    seeds = [row.user_turns[0] for row in chosen]
    if not seeds:
        raise RowError(f"{label(source)}: expected at least one persona or instruction, found none")
    return seeds
