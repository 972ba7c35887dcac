"""Decontamination inside a mixture: which rows go, which data sets go as a whole, and the proof that nothing is left.

A row that copies more than `threshold` of an exam item goes. A data set (the rows with one `source`) that copies more
than `share` of the items of an unseen exam goes as a whole (paper §3.2).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tercet.data.crew import Crew
from tercet.data.decontam import ExamItem, Index, excerpt, read_exam
from tercet.data.spool import batched
from tercet.recipe import Mixture
from tercet.rows import Pair, Row, pair_from, stream_rows
from tercet.rows_file import read_file

if TYPE_CHECKING:
    from tercet.store import Artifact

Texts = Sequence[Sequence[str]]  # the user turns of some rows
WIDTH = 320  # longest excerpt, in characters
_AT_ONCE = 1000


class Trace(NamedTuple):
    """What a row copies of one item: the item's number, how much, the words, and where both stand."""

    number: int
    coverage: float
    matched: str
    document: int
    field: int


@dataclass(frozen=True)
class Looker:
    """Rows past the index: a function that can be given to other processes."""

    index: Index
    threshold: float

    def __call__(self, texts: Texts) -> list[list[Trace]]:
        """What each row copies."""
        if not self.index.items:
            return [[] for _ in texts]
        found, _ = self.index.search(texts, self.threshold)
        return [[Trace(hit.number, hit.coverage, hit.matched, hit.document, hit.field) for hit in own] for own in found]


@dataclass
class Copies:
    """The exam of a mixture, and which items the parts of the mixture copy."""

    index: Index
    share: float
    unseen: frozenset[str]
    copied: dict[tuple[str, str], set[int]] = field(default_factory=dict)  # (part, task) -> items

    @classmethod
    def of(cls, spec: Mixture, inputs: Mapping[str, Artifact]) -> Copies:
        """The exam that the recipe names."""
        items: list[ExamItem] = []
        unseen: set[str] = set()
        for name in spec.against:
            found, locked = read_exam(inputs[name].payload, shots=spec.shots)
            items += found
            unseen |= locked
        return cls(Index(items, spec.ngram, exact=spec.exact), spec.share, frozenset(unseen))

    def note(self, part: str, traces: Sequence[Trace]) -> None:
        """Count what a row of a part copies."""
        for trace in traces:
            self.copied.setdefault((part, self.index.items[trace.number].task), set()).add(trace.number)

    def shown(self, row: Row, traces: Sequence[Trace]) -> dict[str, Any]:
        """Why a row goes, with both texts side by side where it copies most: columns of `removed.parquet`."""
        worst = max(traces, key=lambda trace: trace.coverage)
        item = self.index.items[worst.number]
        texts = row.user_turns[worst.document], item.fields[worst.field]
        ours, theirs = (excerpt(text, worst.matched, n=self.index.n, width=WIDTH) for text in texts)
        detail = f"copies {len(traces)} exam item{'s' if len(traces) > 1 else ''}"
        found = {"detail": detail, "task": item.task, "item": item.item, "coverage": worst.coverage}
        return {**found, "row_text": ours, "exam_text": theirs}

    def dropped(self) -> dict[str, str]:
        """The parts that go as a whole, and why."""
        return {
            cell["source"]: f"copies {cell['share']:.1%} of {cell['task']}, an unseen exam"
            for cell in self.matrix()
            if cell["verdict"] == "set dropped"
        }

    def matrix(self) -> list[dict[str, Any]]:
        """The paper's table 37: for each part and task the items copied, their share, and what follows."""
        sizes = Counter(item.task for item in self.index.items)
        cells = []
        for (part, task), items in sorted(self.copied.items()):
            share = len(items) / sizes[task]
            whole = task in self.unseen and share > self.share
            cell = {"source": part, "task": task, "copied": len(items), "items": sizes[task], "share": share}
            cells.append({**cell, "verdict": "set dropped" if whole else "rows removed"})
        return cells

    def exams(self) -> list[dict[str, Any]]:
        """Per task how many of its items any part copies."""
        sizes = Counter(item.task for item in self.index.items)
        copied: dict[str, set[int]] = {task: set() for task in sizes}
        for (_, task), items in self.copied.items():
            copied[task] |= items
        return [
            {"task": task, "items": sizes[task], "copied": len(items), "share": len(items) / sizes[task]}
            for task, items in sorted(copied.items())
        ]


def prove_clean(path: Path, crew: Crew[Texts, list[list[Trace]]]) -> None:
    """A second pass over what stays, as it was written: nothing may copy the exam."""
    waiting = deque[list[Row | Pair]]()

    def jobs() -> Iterator[Texts]:
        for some in batched(stored(path), _AT_ONCE):
            waiting.append(some)
            yield [view(row).user_turns for row in some]

    for found in crew.map(jobs()):
        for row, traces in zip(waiting.popleft(), found, strict=True):
            if traces:
                raise RuntimeError(f"row {row.id!r} still copies {len(traces)} exam items; this is a bug, report it")


def stored(path: Path) -> Iterator[Row | Pair]:
    """The rows (or the pairs, by the name) of an artefact's table, one after another."""
    if path.name != "pairs.parquet":
        return stream_rows(path)
    return (pair_from(value, f"{path}: row {number}") for number, value in enumerate(read_file(path)))


def view(entry: Row | Pair) -> Row:
    """A pair as the conversation that was chosen; a row as it is."""
    return entry if isinstance(entry, Row) else Row(entry.id, entry.chosen, entry.source, entry.skill)
