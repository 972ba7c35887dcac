"""Rows at hand before a run: of artifacts, local files, the mirror and our generators, as their stages give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tercet.data.sources import both_sides
from tercet.data.synth import GENERATORS
from tercet.preflight.facts import Facts
from tercet.preflight.sources import head
from tercet.recipe import MixtureSpec, SynthSpec
from tercet.rows import Pair, Row, Unpaired, pair_from, row_from
from tercet.rows_file import read_file

SAMPLE = 100  # rows of one source
FIRST = 20_000  # rows of an artifact, which is shuffled, among which the sources are looked for


class SampledRows(NamedTuple):
    """Some rows of a stage, and the sources (or stages) of which none is at hand."""

    rows: list[Row | Pair]
    away: list[str]


def sample(facts: Facts, name: str, count: int = SAMPLE) -> SampledRows:
    """At most `count` rows of each source of a stage; a file that cannot be read gives none, as an obstacle says."""
    spec = facts.recipe.spec(name)
    if name in facts.made:
        return SampledRows(list(_stored(facts.made[name] / f"{spec.produces}.parquet", count)), [])
    if isinstance(spec, SynthSpec):
        seed = facts.recipe.seed_of(name)
        return SampledRows(list(GENERATORS[spec.generator](min(spec.rows, count), spec.split, seed)), [])
    found = SampledRows([], [])
    if not isinstance(spec, MixtureSpec):
        return SampledRows([], [name])
    for source in spec.sources:
        part = sample(facts, source.stage, count) if source.stage else None
        if part is None:
            try:
                rows = head(facts, spec, source, count)
            except ValueError:
                rows = None
            part = SampledRows([], [source.path]) if rows is None else SampledRows(list(rows), [])
        found.rows.extend(_fitting(part.rows, spec.produces))
        found.away.extend(part.away)
    return found


def _fitting(rows: list[Row | Pair], produces: str) -> Iterator[Row | Pair]:
    """Pairs as answers with labels, where these are wanted."""
    for row in rows:
        yield from both_sides(row) if produces == "unpaired" and isinstance(row, Pair) else (row,)


def _stored(file: Path, count: int) -> Iterator[Row | Pair]:
    """Rows of an artifact's table, at most `count` of each source."""
    seen: Counter[str] = Counter()
    for number, value in enumerate(islice(read_file(file), FIRST)):
        source = str(value.get("source", ""))
        seen[source] += 1
        if seen[source] > count:
            continue
        where = f"{file}: row {number}"
        if file.stem == "pairs":
            yield pair_from(value, where)
        elif file.stem == "unpaired":
            yield Unpaired(**vars(row_from(value, where)), good=bool(value["good"]))
        else:
            yield row_from(value, where)
