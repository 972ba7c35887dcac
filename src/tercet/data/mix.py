"""The mix, pair_mix and unpaired_mix stages: filter, dedupe, decontaminate and shuffle sources into one table.

What the reading of a source leaves out is in its account (`reading`). Every row that enters is kept, or listed in
`removed.parquet` with the rule that removed it, or left out by the sample that the recipe asked for: kept + removed =
sampled <= entered, per source. Which rows are sampled and the order of the
result are functions of the seed and the row ids alone. Rows wait on disk: memory holds the benchmark and some 60
bytes a row. Preference pairs are mixed alike; the filters look at both conversations. So are answers with a label,
which are duplicates only with the same answer and label.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tercet import machine
from tercet.data.datasheet import Datasheet, Tally, expectation, summary
from tercet.data.decontaminator import Decontaminator, Document, Found, Search, prove
from tercet.data.dedupe import Exact, Near, Seen, key_of, near_duplicates, row_key, text_of
from tercet.data.disk_list import DiskList, batched, in_order
from tercet.data.filters import Finding, checks, paper_filters
from tercet.data.process_pool import ProcessPool, pool_of
from tercet.data.sources import LOADERS, check_verifiers, chosen_side, from_hub, graders, label, lot, stand_in
from tercet.device.ray_data import ClusterPool
from tercet.journal import write_json
from tercet.recipe import MixtureSpec, SourceSpec
from tercet.rows import Pair, Row, RowError, Unpaired, pair_from, stream_rows
from tercet.rows_file import read_file
from tercet.rows_table import TableWriter
from tercet.store import Artifact, Context
from tercet.verify.pins import hidden

Entry = Row | Pair
KINDS_OF_ROWS: dict[str, type] = {"rows": Row, "pairs": Pair, "unpaired": Unpaired}  # by what the stage produces
Rules = dict[str, Callable[[Row], Finding | None]]
Pool = ProcessPool[list[Document], Found] | ClusterPool[list[Document], Found]
Numbers = npt.NDArray[np.int64]

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # an odd factor: multiples of it are spread over all 64-bit numbers
AT_ONCE = 1000  # rows that are searched, and written, together
WIDTH = 320  # longest excerpt of a removed row, in characters


@dataclass(frozen=True)
class Removed:
    """One line of `removed.parquet`; of a contaminated row both texts stand side by side."""

    source: str
    row: str
    rule: str
    detail: str
    task: str = ""
    item: str = ""
    coverage: float = 0.0
    row_text: str = ""
    benchmark_text: str = ""


def run(spec: MixtureSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet` (or `pairs.parquet`, `unpaired.parquet`), `removed.parquet` and `summary.json`.

    Benchmark items that could not be looked for are listed in `unsearched.jsonl`, where there are some.
    """
    cleaner = Decontaminator.of(spec, inputs)
    name, kind = spec.produces, KINDS_OF_ROWS[spec.produces]
    search: Search[list[Document]] = cleaner.search(list, each_row=True)
    with (
        pool_of(search, ctx.recipe.placement) as pool,
        TableWriter(out / "removed.parquet", Removed) as gone,
    ):
        mixing = Mixing(spec, inputs, ctx, cleaner, pool)
        for source in spec.sources:
            for removed in mixing.take(source):
                gone.write(removed)
        # These two rules need all rows: which share of a benchmark a set copies, and which row of near twins is first.
        left = np.arange(len(mixing.kept.places))
        for rule in (mixing.without_contaminated_sets, mixing.without_twins):
            left, removed = rule(left)
            gone.write(removed)
        tallies = mixing.tallies
        lost: Counter[str] = sum((tally.removed for tally in tallies), Counter())
        if not len(left):
            raise RowError(f"mix {ctx.name!r}: no row is left of {lost.total()}; see the rules: {dict(lost)}")
        expected = expectation(spec, tallies, strict=all(from_hub(source, ctx.mirror) for source in spec.sources))
        sheet, named = Datasheet.of(spec, inputs), set[str]()
        with TableWriter(out / f"{name}.parquet", kind) as table:
            for some in batched(mixing.shuffled(left), AT_ONCE):
                table.write([entry for _, entry in some])
                named |= graders(entry for _, entry in some)
                sheet.count([(tallies[source].source, entry) for source, entry in some])
        # The proof reads the file that was written, not what memory holds.
        written = batched((_document(entry, spec.where) for entry in _stored(out / f"{name}.parquet")), AT_ONCE)
        prove(pool, written, rows=sheet.rows)
    if lines := cleaner.unsearched():
        (out / "unsearched.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    about = summary(mixing.tallies, sheet, cleaner, spec)
    own = hidden(named, ctx)
    code = {"verifiers": own} if own else {}  # later stages see by it that the code is still the same
    write_json(out / "summary.json", {"of": name, **about, "expected": expected, **code})
    contaminated = lost["contaminated"] + lost["contaminated set"]
    return {name: float(sheet.rows), "removed": float(lost.total()), "contaminated": float(contaminated)}


@dataclass
class KeptRows:
    """The rows that no rule has removed so far: on disk, with the number of each row's source and its sort key."""

    entries: DiskList[Entry]
    places: array[int] = field(default_factory=lambda: array("Q"))
    keys: array[int] = field(default_factory=lambda: array("Q"))  # the mixture is sorted by them
    sources: array[int] = field(default_factory=lambda: array("H"))
    ids: Seen = field(default_factory=Seen)
    again: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry, source: int, key: Callable[[str], int]) -> None:
        """Keep a row under an unused id; `key` gives the sort key of the id."""
        entry = replace(entry, id=self.unused_id(entry.id))
        self.places.append(self.entries.append(entry))
        self.keys.append(key(entry.id))
        self.sources.append(source)

    def unused_id(self, name: str) -> str:
        """The id, with ~2, ~3, ... behind it when it is taken."""
        found = name
        while self.ids.get(key_of(found)) is not None:
            self.again[name] += 1
            found = f"{name}~{self.again[name] + 1}"
        self.ids.add(key_of(found), 0)
        return found


class Mixing:
    """The state of one mixture: the rows kept so far, and the counts of each source."""

    def __init__(
        self, spec: MixtureSpec, inputs: Mapping[str, Artifact], ctx: Context, cleaner: Decontaminator, pool: Pool
    ) -> None:
        self.spec, self.inputs, self.ctx, self.cleaner, self.pool = spec, inputs, ctx, cleaner, pool
        self.kept = KeptRows(DiskList(ctx.work))
        self.tallies: list[Tally] = []
        self._filters: Rules = checks(spec.filters)
        self._exact: Rules = {"duplicate": Exact()} if spec.dedupe else {}
        self._labels: Counter[str] = Counter()

    def take(self, source: SourceSpec) -> Iterator[list[Removed]]:
        """Read one source and keep what no rule removes, or the sample of it that the recipe asks for."""
        tally = self._tally(source)
        read = LOADERS[self.spec.produces]
        entries: Iterator[Entry] = iter(read(source, self.inputs, self.ctx.mirror, tally.reading))
        if source.rows is not None or tally.share < 1:
            # A sample is the start of an order drawn from seed and ids, so a larger sample holds the smaller one.
            entries, there = in_order(entries, lambda entry: self._lot(tally.source, entry.id), self.ctx.work)
            entries = islice(entries, round(there * tally.share))
        filters = {**self._own_filters(source, tally), **self._filters}
        once = {**self._elsewhere(source), **self._exact}
        most = source.rows
        # `rows` counts what the rules leave: for each row they removed, one more is drawn, until there are enough.
        while most is None or tally.kept < most:
            before = tally.sampled
            yield from self._through(entries if most is None else islice(entries, most - tally.kept), filters, once)
            if most is None or tally.sampled == before:
                break
        for sentence in tally.reading.sentences(tally.source):
            self.ctx.track.note(sentence)
        if most is not None and tally.kept < most and not stand_in(source, self.ctx.mirror):
            raise RowError(
                f"source {tally.source!r} has {tally.kept} rows that no rule removes, of {tally.entered}; the recipe "
                f"asks for {most}: lower its `rows`, or repeat rows with a `fraction` above 1"
            )
        number = len(self.tallies)
        self.ctx.track.log(number - 1, read=tally.reading.read, sampled=tally.sampled, kept=tally.kept)
        self.ctx.track.progress(number, len(self.spec.sources), tally.source)

    def without_contaminated_sets(self, left: Numbers) -> tuple[Numbers, list[Removed]]:
        """Parts that copy too much of an unseen benchmark go as a whole."""
        reasons = {
            part: f"copies {cells[-1]['share']:.1%} of {cells[-1]['task']}, an unseen benchmark"
            for part, cells in self.cleaner.dropped().items()
        }
        if not reasons:
            return left, []
        return self._part(left, lambda i, entry: reasons.get(entry.source, ""), "contaminated set")

    def without_twins(self, left: Numbers) -> tuple[Numbers, list[Removed]]:
        """The first of near duplicates stays, over all sources."""
        if not self.spec.near or not len(left):
            return left, []
        near = Near(self.spec.near, seed=self.ctx.seed)
        found: dict[int, tuple[float, int]] = {}  # row -> similarity, the row that it is like
        for group in self._comparable(left):
            texts = partial(self._texts, group)
            for place, twin in near_duplicates(
                texts, near, workers=self.ctx.recipe.placement.workers or machine.cores()
            ).items():
                found[int(group[place])] = twin.similarity, int(group[twin.number])

        def like(i: int, entry: Entry) -> str:
            return f"{found[i][0]:.0%} like {self._entry(found[i][1]).id}" if i in found else ""

        return self._part(left, like, "near duplicate")

    def _comparable(self, left: Numbers) -> list[Numbers]:
        """Groups of rows that may be twins: all rows, or the good and the bad answers."""
        if self.spec.produces != "unpaired":
            return [left]
        good = np.array([getattr(self._entry(i), "good", False) for i in map(int, left)], bool)
        return [group for group in (left[good], left[~good]) if len(group)]

    def _texts(self, numbers: Numbers) -> Iterator[str]:
        return (text_of(_view(self._entry(i))) for i in map(int, numbers))

    def shuffled(self, left: Numbers) -> Iterator[tuple[int, Entry]]:
        """Every row that stays with its source's number, repeated as the recipe asks, in an order drawn from ids."""
        sources, keys = (np.asarray(part)[left] for part in (self.kept.sources, self.kept.keys))
        copies = np.ones(len(left), np.int64)
        for number, tally in enumerate(self.tallies):
            own = np.flatnonzero(sources == number)
            if tally.repeat > 1 and len(own):
                # 2.5 times 40 rows: all of them twice, and 20 of them, drawn by their keys, a third time.
                whole, rest = divmod(round(len(own) * tally.repeat), len(own))
                copies[own] = whole
                copies[own[np.argsort(keys[own] * _SPREAD, kind="stable")[:rest]]] += 1
                tally.repeated = int(copies[own].sum()) - len(own)
        which = np.repeat(np.arange(len(left)), copies)
        again = np.arange(len(which)) - np.repeat(np.cumsum(copies) - copies, copies)
        # The n-th copy of a row gets a key far from that of the first, so that copies do not stand together.
        for place in np.argsort(keys[which] + again.astype(np.uint64) * _SPREAD, kind="stable"):
            number = int(left[which[place]])
            entry = self._entry(number)
            yield self.kept.sources[number], replace(entry, id=self.kept.unused_id(entry.id)) if again[place] else entry

    def _through(self, entries: Iterable[Entry], filters: Rules, once: Rules) -> Iterator[list[Removed]]:
        """Keep what no rule removes; yield what is removed in batches, whose order does not depend on the workers."""
        tally, number = self.tallies[-1], len(self.tallies) - 1
        waiting = deque[tuple[list[Entry], list[Removed]]]()

        def jobs() -> Iterator[list[Document]]:
            for batch in batched(entries, AT_ONCE):
                tally.sampled += len(batch)
                check_verifiers(entry for entry in batch if isinstance(entry, Row))
                objections = [(entry, _objection(entry, filters, once)) for entry in batch]
                goes = [_removed(tally.source, entry, *objection) for entry, objection in objections if objection]
                stays = [entry for entry, objection in objections if not objection]
                waiting.append((stays, goes))
                yield [_document(entry, self.spec.where) for entry in stays]
                self.ctx.track.progress(number, len(self.spec.sources), f"{tally.source}, {tally.sampled:,} rows")

        for found in self.pool.map(jobs()):
            stays, goes = waiting.popleft()
            copying = {row.place: row for row in found.rows}
            for place, entry in enumerate(stays):
                if row := copying.get(place):
                    self.cleaner.note(entry.source, row)
                    goes.append(Removed(tally.source, entry.id, "contaminated", **self.cleaner.reason(row)))
                else:
                    self.kept.add(entry, number, partial(self._lot, "order", tally.source))
                    tally.kept += 1
            tally.removed.update(one.rule for one in goes)
            yield goes

    def _part(self, left: Numbers, why: Callable[[int, Entry], str], rule: str) -> tuple[Numbers, list[Removed]]:
        """Remove rows that were kept at first, each with its reason."""
        stays, goes = [], []
        for i in map(int, left):
            entry = self._entry(i)
            if reason := why(i, entry):
                tally = self.tallies[self.kept.sources[i]]
                goes.append(_removed(tally.source, entry, rule, Finding(reason, _view(entry).prompt[-1].content)))
                tally.kept -= 1
                tally.removed[rule] += 1
            else:
                stays.append(i)
        return np.array(stays, np.int64), goes

    def _entry(self, number: int) -> Entry:
        return self.kept.entries[self.kept.places[number]]

    def _tally(self, source: SourceSpec) -> Tally:
        """A new tally, under the source's name or, when that is taken, the name with ~2, ~3, ... behind it."""
        name = label(source)
        self._labels[name] += 1
        name = f"{name}~{self._labels[name]}" if self._labels[name] > 1 else name
        fraction = source.fraction or 1.0
        tally = Tally(name, expected=source.expect, share=min(1.0, fraction), repeat=max(1.0, fraction))
        self.tallies.append(tally)
        return tally

    def _own_filters(self, source: SourceSpec, tally: Tally) -> Rules:
        """The paper's filters that this source gets: those it names, else all but the paper's exemptions."""
        usual = paper_filters(tally.source) if self.spec.produces == "rows" else ("blank",)
        chosen = usual if source.filters is None else source.filters
        return checks({one: {} for one in chosen if one != "keywords" or self.spec.keywords})

    def _elsewhere(self, source: SourceSpec) -> Rules:
        """A rule against prompts that are in another stage."""
        if not source.without:
            return {}
        folder, seen = self.inputs[source.without].payload, Seen()
        for entry in _stored(next(file for kind in KINDS_OF_ROWS if (file := folder / f"{kind}.parquet").exists())):
            if seen.get(key := row_key(_view(entry))) is None:
                seen.add(key, 0)
        name = f"in {source.without}"
        return {name: lambda row: Finding(f"its prompt is {name}") if seen.get(row_key(row)) is not None else None}

    def _lot(self, *parts: str) -> int:
        return int.from_bytes(lot(self.ctx.seed, *parts)[:8], "big")


def _stored(path: Path) -> Iterator[Entry]:
    """The rows (or the pairs, by the name) of an artifact's table, one after another."""
    if path.name != "pairs.parquet":
        return stream_rows(path)
    return (pair_from(value, f"{path}: row {number}") for number, value in enumerate(read_file(path)))


def _view(entry: Entry) -> Row:
    """A pair as the conversation that was chosen; a row as it is."""
    return entry if isinstance(entry, Row) else chosen_side(entry)


def _document(entry: Entry, where: Literal["user", "all"]) -> Document:
    """The searched turns; where that is all of them, thoughts too, and the answer that was rejected."""
    if where == "user":
        return Document(entry.source, entry.id, _view(entry).user_turns)
    turns = (*entry.chosen, entry.rejected[-1]) if isinstance(entry, Pair) else entry.messages
    texts = [text for turn in turns for text in (turn.content, getattr(turn, "thought", "")) if text]
    return Document(entry.source, entry.id, list(dict.fromkeys(texts)))


def _objection(entry: Entry, filters: Rules, once: Rules) -> tuple[str, Finding] | None:
    """The first rule against a row, or against either side of a pair, and what it found."""
    both = [_view(entry)]
    if isinstance(entry, Pair):
        both.append(Row(entry.id, entry.rejected, entry.source, entry.skill))
    asked = [(name, rule, row) for name, rule in filters.items() for row in both]
    asked += [(name, rule, both[0]) for name, rule in once.items()]
    return next(((name, found) for name, rule, row in asked if (found := rule(row))), None)


def _removed(source: str, entry: Entry, rule: str, found: Finding) -> Removed:
    text = found.text or _view(entry).messages[-1].content
    return Removed(source, entry.id, rule, found.detail, row_text=text if len(text) <= WIDTH else text[:WIDTH] + "…")
