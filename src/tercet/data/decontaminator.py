"""Decontamination: which rows copy a benchmark, which rows and data sets are removed, and a proof (§3.2).

Mixtures and files are cleaned alike. A `Search` searches jobs of rows, in other processes where there are many. A
`Decontaminator` counts its findings in the order of the rows, so the number of processes changes no result. When all
rows were searched, it says which data sets are removed as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from tercet.data.benchmark_items import BenchmarkItem, Way, read_benchmark
from tercet.data.decontam import Hit, Index, excerpt
from tercet.data.process_pool import ProcessPool
from tercet.device.ray_data import ClusterPool

if TYPE_CHECKING:
    from tercet.recipe import MixtureSpec
    from tercet.store import Artifact

J = TypeVar("J")
WAYS: dict[Way, str] = {"n-grams": "by_ngrams", "phrase": "as_phrases", "whole turn": "as_turns", "": "unsearched"}
Cell = tuple[str, str]  # a data set and a benchmark task: ("sharegpt", "alpacaeval@1")


@dataclass(frozen=True)
class DecontaminationRule:
    """What counts as contaminated and what then happens (paper §3.2).

    A row copies an item above `threshold`. A data set is contaminated by a task when its rows copy more than `share` of
    the task's items: then all of the set goes if the task is among `unseen`, else the rows that copy. With `spare`
    rows that copy stay in sets that are not contaminated, as in the paper; without, they go too.
    """

    threshold: float = 0.5
    share: float = 0.02
    unseen: frozenset[str] = frozenset()
    spare: bool = False


class Document(NamedTuple):
    """The part of a row that is searched: its data set, its name, and its user turns or all turns."""

    source: str
    id: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Copy:
    """A row's copy of an item: how much of it, the longest copied run, and both texts side by side."""

    coverage: float
    row: str
    matched: str
    row_text: str
    benchmark_text: str


class RowCopies(NamedTuple):
    """A row that copies: its place in the job, its name, the numbers of the items, and the copies with their texts."""

    place: int
    id: str
    items: list[int]
    shown: dict[int, Copy]


class Found(NamedTuple):
    """The result of a job: the data set of every row, the tokens read, and the rows that copy."""

    sources: list[str]
    tokens: int
    rows: list[RowCopies]


@dataclass
class Search(Generic[J]):
    """Searches a job, of which `read` makes documents; a picklable function for other processes.

    Texts are made of each row's largest copy where `each_row`, else of copies larger than all that this search saw
    before of the same item in the same data set: making all texts would take longer than finding the copies.
    """

    index: Index
    threshold: float
    read: Callable[[J], Sequence[Document]]
    each_row: bool = False
    _best: dict[tuple[str, int], float] = field(default_factory=dict)

    def __call__(self, job: J) -> Found:
        """The rows of a job that copy."""
        rows = self.read(job)
        sources = [row.source for row in rows]
        if not self.index.items:
            return Found(sources, 0, [])

        def shown(place: int, item: int, coverage: float) -> bool:
            return self.each_row or coverage > self._best.get((sources[place], item), 0.0)

        found, tokens = self.index.search([row.texts for row in rows], self.threshold, shown)
        copies = [
            RowCopies(place, rows[place].id, [hit.number for hit in hits], self._shown(rows[place], hits))
            for place, hits in enumerate(found)
            if hits
        ]
        return Found(sources, tokens, copies)

    def _shown(self, row: Document, hits: Sequence[Hit]) -> dict[int, Copy]:
        largest = [max(hits, key=lambda hit: hit.coverage)]
        better = (hit for hit in hits if hit.coverage > self._best.get((row.source, hit.number), 0.0))
        shown = {}
        for hit in largest if self.each_row else better:
            self._best[row.source, hit.number] = hit.coverage
            texts = row.texts[hit.document], hit.item.fields[hit.field]
            sides = (excerpt(text, hit.matched, n=self.index.n) for text in texts)
            shown[hit.number] = Copy(hit.coverage, row.id, hit.matched, *sides)
        return shown


@dataclass
class Copied:
    """An item that a data set copies: by how many rows, and the first of the largest copies with texts."""

    rows: int = 0
    best: Copy | None = None


class Decontaminator:
    """Counts what the data sets copy of a benchmark and decides which rows and sets are removed."""

    def __init__(self, index: Index, rule: DecontaminationRule | None = None) -> None:
        self.index, self.rule = index, rule or DecontaminationRule()
        self.copied: dict[Cell, dict[int, Copied]] = {}
        self._sizes = Counter(item.task for item in index.items)

    @classmethod
    def of(cls, spec: MixtureSpec, inputs: Mapping[str, Artifact]) -> Decontaminator:
        """The benchmarks and the rule that a mixture's recipe names."""
        items: list[BenchmarkItem] = []
        unseen: set[str] = set()
        for name in spec.against:
            found, locked = read_benchmark(inputs[name].payload, shots=spec.shots)
            items += found
            unseen |= locked
        rule = DecontaminationRule(spec.threshold, spec.share, frozenset(unseen))
        return cls(Index(items, spec.ngram, exact=spec.exact, published=spec.published), rule)

    def search(self, read: Callable[[J], Sequence[Document]], *, each_row: bool = False) -> Search[J]:
        """A search for these items."""
        return Search(self.index, self.rule.threshold, read, each_row)

    def note(self, source: str, row: RowCopies) -> tuple[Cell, ...]:
        """Count the items that a row of a data set copies; returns the cells that it counts in."""
        cells: dict[Cell, None] = {}
        for number in row.items:
            cell = source, self.index.items[number].task
            cells[cell] = None
            found = self.copied.setdefault(cell, {}).setdefault(number, Copied())
            found.rows += 1
            copy = row.shown.get(number)
            if copy and (found.best is None or copy.coverage > found.best.coverage):
                found.best = copy
        return tuple(cells)

    def reason(self, row: RowCopies) -> dict[str, Any]:
        """Why a row is removed, with both texts where it copies most: columns of `removed.parquet`."""
        ((number, most),) = row.shown.items()
        item = self.index.items[number]
        detail = f"copies {len(row.items)} benchmark item{'s' if len(row.items) > 1 else ''}"
        named = {"detail": detail, "task": item.task, "item": item.item, "coverage": most.coverage}
        return {**named, "row_text": most.row_text, "benchmark_text": most.benchmark_text}

    def matrix(self) -> list[dict[str, Any]]:
        """The paper's table 37: the items copied, their share and the verdict, for each data set and task.

        The verdict is "set dropped", "rows removed" or "spared".
        """
        cells = []
        for (source, task), items in sorted(self.copied.items()):
            share = len(items) / self._sizes[task]
            cell = {"source": source, "task": task, "copied": len(items), "items": self._sizes[task], "share": share}
            cells.append({**cell, "verdict": self._verdict(task, share)})
        return cells

    def dropped(self) -> dict[str, list[dict[str, Any]]]:
        """The data sets that are removed as a whole, each with the cells of the matrix that say so."""
        found: dict[str, list[dict[str, Any]]] = {}
        for cell in self.matrix():
            if cell["verdict"] == "set dropped":
                found.setdefault(cell["source"], []).append(cell)
        return found

    def benchmarks(self) -> list[dict[str, Any]]:
        """Per task how many of its items any data set copies, and how its items were looked for."""
        copied: dict[str, set[int]] = {task: set() for task in self._sizes}
        for (_, task), items in self.copied.items():
            copied[task] |= items.keys()
        ways = Counter(zip((item.task for item in self.index.items), self.index.ways, strict=True))
        return [
            {"task": task, "items": self._sizes[task], "copied": len(items), "share": len(items) / self._sizes[task]}
            | {key: ways[task, way] for way, key in WAYS.items()}
            for task, items in sorted(copied.items())
        ]

    def unsearched(self) -> list[dict[str, str]]:
        """The items that could not be looked for: without a token, or by the paper's rule shorter than an n-gram."""
        pairs = zip(self.index.items, self.index.ways, strict=True)
        return [
            {"task": item.task, "item": item.item, "text": " | ".join(item.fields)} for item, way in pairs if not way
        ]

    def _verdict(self, task: str, share: float) -> str:
        contaminated = share > self.rule.share
        if contaminated and task in self.rule.unseen:
            return "set dropped"
        return "spared" if self.rule.spare and not contaminated else "rows removed"


def prove(
    pool: ProcessPool[J, Found] | ClusterPool[J, Found], jobs: Iterable[J], *, rows: int, spared: int = 0
) -> None:
    """The second pass, over what was written: RuntimeError unless it is `rows` rows of which `spared` copy an item."""
    number, left = 0, []
    for found in pool.map(jobs):
        number += len(found.sources)
        left += [row.id for row in found.rows]
    if (number, len(left)) != (rows, spared):
        raise RuntimeError(
            f"expected {rows} rows of which {spared} copy the benchmark, found {number} and {len(left)} "
            f"({', '.join(left[:3]) or 'none'}); this is a bug, report it"
        )
