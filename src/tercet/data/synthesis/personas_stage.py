"""The stage `personas`: a model writes prompts and answers from seeds, and what stands its check is kept.

How rows are made and checked is in `tercet.data.synthesis.personas`, the accounting in
`tercet.data.synthesis.requests`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tercet.data.sources import Reading, draw, label, load
from tercet.data.synthesis.personas import SeedCounts, synthesise
from tercet.data.synthesis.personas_checks import AnswerPlan
from tercet.data.synthesis.request_log import RequestLog
from tercet.data.synthesis.requests import account, behind, open_ledger, pieces, title, write_summary
from tercet.recipe import PersonasSpec
from tercet.rows import Row, RowError, TableWriter

if TYPE_CHECKING:
    from tercet.store import Artifact, Context


def run(spec: PersonasSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet`, `summary.json` and `requests.parquet`."""
    reading, sheet, author = Reading(), SeedCounts(), inputs[spec.model]
    seeds = read_seeds(spec, inputs, ctx, reading)
    with open_ledger(spec, ctx) as ledger:

        def heard(_answers: int) -> None:
            settled = sheet.kept + sheet.dropped.total()
            ctx.track.progress(settled, len(seeds), f"seeds; {ledger.spent.answers} answers")

        plan = AnswerPlan(spec.answers, spec.agree, spec.temperature, spec.author_temperature, spec.max_new_tokens)
        with behind(ledger, author, spec, ctx, heard) as writer, TableWriter(out / "rows.parquet", Row) as table:
            for rows in pieces(synthesise(spec.write, seeds, writer, ctx.seed, plan=plan, sheet=sheet)):
                table.write(rows)
                _log(sheet, ledger, ctx)
        paid = account(ledger, [(title(author), writer)], out)
        _log(sheet, ledger, ctx)
        heard(0)
    if not sheet.kept:
        told = ", ".join(f"{count} {reason}" for reason, count in sheet.dropped.most_common())
        raise RuntimeError(
            f"personas {ctx.name!r}: no row from {len(seeds)} seeds ({told}); another author, more `answers`, a lower "
            "`agree` or more `max_new_tokens` may help"
        )
    source = {"source": label(spec.seeds), "read": reading.read, "skipped": dict(sorted(reading.skipped.items()))}
    made = {"seeds": sheet.read, "rows": sheet.kept, "dropped": dict(sorted(sheet.dropped.items()))}
    write_summary(out, {"of": "rows", "write": spec.write, "model": title(author), **source, **made, **paid})
    return {"rows": float(sheet.kept), "seeds": float(len(seeds)), "cost": float(paid["requests"]["cost"])}


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


def _log(sheet: SeedCounts, ledger: RequestLog, ctx: Context) -> None:
    """One line of the account so far."""
    spent = ledger.spent
    numbers = {"answers": spent.answers, "failed": spent.failed, "cost": spent.cost + spent.unknown_cost}
    ctx.track.log(sheet.read, rows=sheet.kept, dropped=sheet.dropped.total(), **numbers)
