"""The stage `rated_pairs`: models answer prompts, an LLM judge rates the answers, and the ratings become pairs.

For each prompt it is drawn, from the seed and the row alone, which models answer: `drawn` of the pool, or the policy
and one other. Only these are asked (the paper asks all and then draws, which gives such pairs at a higher price). The
models answer one after another and the judge comes last, so that one local model at a time is in memory. How answers
are rated is in `tercet.data.synthesis.ratings`, what requests cost in `tercet.data.synthesis.requests`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tercet.data.dedupe import row_key
from tercet.data.disk_list import batched
from tercet.data.sources import draw, lot
from tercet.data.synthesis import ratings
from tercet.data.synthesis.ratings import ASPECTS, CandidateAnswer, RatingCounts, RatingPlan
from tercet.data.synthesis.request_log import LoggedModel, RequestLog, completion, request_key
from tercet.data.synthesis.requests import PIECE, logged_model, open_log, title, write_requests
from tercet.journal import write_json
from tercet.recipe import RatedPairsSpec
from tercet.rows import Pair, Row, RowError, Sampling, read_rows
from tercet.rows_queue import in_turn
from tercet.rows_table import TableWriter
from tercet.store import Artifact, Context

SEED = "judged"  # in the seed of the answers: another word would draw other answers
FAILED = "an answer could not be had"


@dataclass
class RatingWork:
    """Which models each prompt is put to (row id -> models, in the order the judge sees them), and what became of it.

    Models go by `title`; `repeats` are prompts that came before in other rows.
    """

    rows: Sequence[Row]
    repeats: int
    models: Mapping[str, Sequence[str]]
    sampling: Sampling
    asked: dict[str, LoggedModel] = field(default_factory=dict)
    no_answer: Counter[str] = field(default_factory=Counter)

    @property
    def max_requests(self) -> int:
        """How many there will be at most."""
        return sum(map(len, self.models.values())) + len(ASPECTS) * len(self.rows)


def run(spec: RatedPairsSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `pairs.parquet`, `summary.json` and `requests.parquet`."""
    pool = {title(inputs[name]): inputs[name] for name in [*spec.pool, *[spec.own] * bool(spec.own)]}
    judge, counts, num_answers = inputs[spec.judge], RatingCounts(), 0
    work = plan_work(spec, list(pool), title(inputs[spec.own]) if spec.own else "", inputs[spec.prompts], ctx.seed)
    plan = RatingPlan(title(judge), spec.paper, spec.ties, spec.judge_tokens)
    with open_log(spec, ctx) as log:

        def progress(answers: int) -> None:
            nonlocal num_answers
            num_answers += answers
            cost = log.spent.numbers["cost"]
            ctx.track.progress(num_answers, work.max_requests, f"requests; cost {cost:.4g}")

        for name, model in pool.items():
            with logged_model(log, model, spec, ctx, progress) as writer:
                ask(work, name, writer)
            ctx.track.log(num_answers, **log.spent.numbers, pairs=0)
        with (
            logged_model(log, judge, spec, ctx, progress) as reader,
            TableWriter(out / "pairs.parquet", Pair) as table,
        ):
            rated = ratings.judge(answered(work, log), reader, ctx.seed, plan=plan, counts=counts)
            for pairs in batched(rated, PIECE):
                table.write(pairs)
                ctx.track.log(num_answers, **log.spent.numbers, pairs=counts.kept)
        paid = write_requests(log, [*work.asked.items(), (f"{title(judge)} (judge)", reader)], out)
    summary = summarise(work, counts)
    if not counts.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in summary["no_pair"].items())
        raise RuntimeError(f"rated_pairs {ctx.name!r}: no pair from {len(work.rows)} prompts ({reasons})")
    write_json(out / "summary.json", summary | paid)
    ctx.track.progress(work.max_requests, work.max_requests, "requests")
    return {"pairs": float(counts.kept), "prompts": float(len(work.rows)), "cost": float(paid["requests"]["cost"])}


def plan_work(spec: RatedPairsSpec, names: Sequence[str], own: str, prompts: Artifact, seed: int) -> RatingWork:
    """The prompts, without repeats and as many as the recipe says, each with the models that answer it."""
    if len(names) < 2:
        raise RowError(f"answers of {names[0]} alone cannot be compared; give `pool` a second model, or name `own`")
    rows, repeats = distinct_prompts(read_rows(prompts.payload / "rows.parquet"))
    if spec.rows is not None:
        rows = draw(rows, spec.rows, seed=seed, key=lambda row: row.id)
    if not rows:
        raise RowError(f"{prompts.path.name}: expected rows with prompts, found none")
    models = {row.id: ratings.draw_models(names, seed, row.id, number=spec.drawn, own=own) for row in rows}
    own_seed = int.from_bytes(lot(seed, SEED, "answers")[:4], "big")
    sampling = Sampling(spec.max_new_tokens, spec.temperature, seed=own_seed, fit=True)
    return RatingWork(rows, repeats, models, sampling)


def distinct_prompts(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows whose prompt did not come before in other words of the same letters, and how many are left out.

    An id that came before with another prompt gets a number, so that ids stay unique.
    """
    kept: dict[int, Row] = {}
    ids: set[str] = set()
    for row in rows:
        if (key := row_key(row)) in kept:
            continue
        name, number = row.id, 2
        while name in ids:
            name, number = f"{row.id}#{number}", number + 1
        ids.add(name)
        kept[key] = replace(row, id=name)
    return list(kept.values()), len(rows) - len(kept)


def ask(work: RatingWork, name: str, model: LoggedModel) -> None:
    """Put a model's prompts to it; the answers are in the request log then."""
    work.asked[name] = model
    pieces = batched((row for row in work.rows if name in work.models[row.id]), PIECE)
    for _ in in_turn(lambda rows: model.complete([row.prompt for row in rows], work.sampling), pieces, model.ahead):
        pass  # the answers are on disk


def answered(work: RatingWork, log: RequestLog) -> Iterator[tuple[Row, list[CandidateAnswer]]]:
    """Each prompt with all its answers; one that lacks an answer is counted and left out."""
    for row in work.rows:
        keys = {name: request_key(work.asked[name].model, row.prompt, work.sampling, 0) for name in work.models[row.id]}
        lines = {name: log.find(key) for name, key in keys.items()}
        answers = [CandidateAnswer(name, completion(line).text) for name, line in lines.items() if line]
        if len(answers) < len(lines):
            work.no_answer[FAILED] += 1
        else:
            yield row, answers


def summarise(work: RatingWork, counts: RatingCounts) -> dict[str, Any]:
    """The numbers of `summary.json` but for the requests: those of every stage of pairs, and the judge's statistics."""
    no_pair = dict(sorted((Counter(counts.dropped) + work.no_answer).items()))
    made = {"of": "pairs", "prompts": len(work.rows), "repeats": work.repeats, "rules": {"rated_pairs": counts.kept}}
    return made | {"no_pair": no_pair} | ratings.statistics(counts)
