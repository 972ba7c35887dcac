"""Decontamination of whole files: scan them past an exam, decide what goes, write what stays, prove it clean.

Files are streamed in batches, any number of processes search them, and results are put together in the order of the
rows, so that what comes out never depends on how many processes there were. Kept in memory are the index, a few
batches, a few bytes a row and, for each exam item that a set copies, its best copy.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.data.crew import Crew
from tercet.data.decontam import Index, excerpt
from tercet.data.feed import Batch, Writer, batches, user_texts

LARGE = 32 << 20  # bytes of rows for which processes are started at once

Cell = tuple[str, str]  # a set of training rows and an exam task: ("sharegpt", "alpacaeval@1")


@dataclass(frozen=True)
class Policy:
    """What counts as contaminated and what then happens (paper §3.2).

    A row copies an item above `threshold`. A set is contaminated by an exam when its rows copy more than `share` of
    the exam's items: then all of the set goes if the exam is among `unseen`, else the rows that copy. With `spare`
    rows that copy stay in sets that are not contaminated, as in the paper; without, they go too.
    """

    threshold: float = 0.5
    share: float = 0.02
    unseen: frozenset[str] = frozenset()
    spare: bool = False


@dataclass(frozen=True)
class Copy:
    """The best copy of an exam item in a set: which row, how much, and both texts side by side."""

    coverage: float
    row: str
    matched: str
    row_text: str
    exam_text: str


@dataclass
class Copied:
    """An exam item that a set copies: by how many rows, and the first of the best."""

    rows: int = 0
    best: Copy | None = None


@dataclass
class Sweep:
    """What a scan found. A row is known by its number over all files; `origin` holds the number of each row's set."""

    sources: dict[str, int] = field(default_factory=dict)
    origin: array[int] = field(default_factory=lambda: array("I"))
    tokens: int = 0
    copied: dict[Cell, dict[int, Copied]] = field(default_factory=dict)
    rows: dict[tuple[Cell, ...], array[int]] = field(default_factory=dict)  # rows by the cells that they count in


@dataclass(frozen=True)
class _Found:
    """A batch's part of a sweep; a hit is a row's place in the batch and its items with coverage."""

    sources: list[str]
    tokens: int
    hits: list[tuple[int, list[int]]]
    copies: list[tuple[int, int, Copy]]  # row's place, item, what to show


class _Searcher:
    """Searches batches; builds a copy's texts only where it is better than the set's best it has seen."""

    def __init__(self, index: Index, threshold: float) -> None:
        self.index = index
        self.threshold = threshold
        self._best: dict[tuple[str, int], float] = {}

    def __call__(self, batch: Batch) -> _Found:
        texts, sources, names = [], [], []
        for place, (value, where) in enumerate(batch.objects()):
            texts.append(user_texts(value, where))
            source = next((value[key] for key in ("source", "dataset") if value.get(key)), batch.path.name)
            sources.append(str(source))
            names.append(str(value.get("id") or f"{batch.path.name}-{batch.first + place}"))

        def better(row: int, item: int, coverage: float) -> bool:
            return coverage > self._best.get((sources[row], item), 0.0)

        hits, tokens = self.index.search(texts, self.threshold, better)
        copies = []
        for place, found in enumerate(hits):
            for hit in found:
                key = sources[place], hit.number
                if not better(place, hit.number, hit.coverage):
                    continue
                self._best[key] = hit.coverage
                texts_of = (texts[place][hit.document], hit.item.fields[hit.field])
                shown = (excerpt(text, hit.matched, n=self.index.n) for text in texts_of)
                copies.append((place, hit.number, Copy(hit.coverage, names[place], hit.matched, *shown)))
        numbers = [(place, [hit.number for hit in found]) for place, found in enumerate(hits) if found]
        return _Found(sources, tokens, numbers, copies)


def scan(files: Sequence[Path], index: Index, threshold: float = 0.5, workers: int = 1) -> Sweep:
    """Every row of some files past the exam, by `workers` processes; RowError names file and row of a bad one."""
    sweep = Sweep()
    large = sum(file.stat().st_size for file in files if file.exists()) > LARGE
    with Crew(_Searcher(index, threshold), workers, 0 if large else None) as crew:
        _gather(crew.map(_stream(files)), sweep, index)
    return sweep


def _gather(parts: Iterable[_Found], sweep: Sweep, index: Index) -> None:
    """Put the parts of a sweep together, in their order."""
    for found in parts:
        start = len(sweep.origin)
        sweep.origin.extend(sweep.sources.setdefault(name, len(sweep.sources)) for name in found.sources)
        sweep.tokens += found.tokens
        for place, numbers in found.hits:
            cells = dict.fromkeys((found.sources[place], index.items[number].task) for number in numbers)
            sweep.rows.setdefault(tuple(cells), array("Q")).append(start + place)
            for number in numbers:
                cell = found.sources[place], index.items[number].task
                sweep.copied.setdefault(cell, {}).setdefault(number, Copied()).rows += 1
        for place, number, copy in found.copies:
            known = sweep.copied[found.sources[place], index.items[number].task][number]
            if known.best is None or copy.coverage > known.best.coverage:
                known.best = copy


def shares(sweep: Sweep, index: Index) -> dict[Cell, float]:
    """The paper's table 37: the share of an exam's items that a set copies, for each pair with any."""
    sizes = Counter(item.task for item in index.items)
    return {cell: len(found) / sizes[cell[1]] for cell, found in sorted(sweep.copied.items())}


def verdicts(sweep: Sweep, index: Index, policy: Policy) -> dict[Cell, str]:
    """What happens in each cell: "set dropped", "rows removed", or "spared"."""
    found = {}
    for cell, share in shares(sweep, index).items():
        contaminated = share > policy.share
        dropped = contaminated and cell[1] in policy.unseen
        found[cell] = "set dropped" if dropped else "spared" if policy.spare and not contaminated else "rows removed"
    return found


def clean(files: Sequence[Path], out: Path, index: Index, policy: Policy, workers: int = 1) -> dict[str, Any]:
    """Write the rows that stay to `out`, prove by a scan of that file that they are clean, and return the report."""
    if out.exists() and any(out.samefile(file) for file in files):
        raise ValueError(f"{out} is one of the files to read; write to another")
    sweep = scan(files, index, policy.threshold, workers)
    found = verdicts(sweep, index, policy)
    gone = _gone(sweep, found)
    with Writer(out) as writer:
        start = 0
        for batch in _stream(files):
            writer.write(batch, (~gone[start : start + len(batch)]).tolist())
            start += len(batch)
        if start != len(gone):
            raise RuntimeError(f"the files had {len(gone)} rows and now have {start}; they changed while being read")
    spared = sum(int((~gone[np.asarray(rows)]).sum()) for rows in sweep.rows.values())
    stays = len(gone) - int(gone.sum())
    prove(out, index, policy.threshold, workers, expected=(stays, spared))
    whole = report(sweep, index, policy, gone)
    return {**whole, "files": [str(file) for file in files], "out": str(out), "proof": {"rows": stays, "copy": spared}}


def prove(
    path: Path, index: Index, threshold: float = 0.5, workers: int = 1, *, expected: tuple[int, int] | None = None
) -> None:
    """The second pass: RuntimeError when rows of `path` copy the exam. `expected`: (rows, those that copy)."""
    if not path.exists():  # nothing stayed, so no table was written
        return
    again = scan([path], index, threshold, workers)
    copying = sum(map(len, again.rows.values()))
    rows, spared = expected or (len(again.origin), 0)
    if len(again.origin) != rows or copying != spared:
        first = [copied.best.row for found in again.copied.values() for copied in found.values() if copied.best]
        raise RuntimeError(
            f"{path}: expected {rows} rows of which {spared} copy the exam, found {len(again.origin)} and {copying} "
            f"(e.g. {', '.join(first[:3]) or 'none'}); this is a bug, report it"
        )


def report(sweep: Sweep, index: Index, policy: Policy, gone: NDArray[np.bool_]) -> dict[str, Any]:
    """Everything that was found, as plain values: exams, sets, the matrix of both, and every copied item."""
    sizes = Counter(item.task for item in index.items)
    found, share = verdicts(sweep, index, policy), shares(sweep, index)
    origin = np.asarray(sweep.origin)
    read = np.bincount(origin, minlength=len(sweep.sources)).tolist()
    lost = np.bincount(origin[gone], minlength=len(sweep.sources)).tolist()
    items = [
        {"source": cell[0], "task": cell[1], "item": index.items[number].item, "rows": copied.rows}
        | (asdict(copied.best) if copied.best else {})
        for cell, numbers in sorted(sweep.copied.items())
        for number, copied in sorted(numbers.items())
    ]
    return {
        "rule": {"ngram": index.n, "exact": index.exact} | asdict(policy) | {"unseen": sorted(policy.unseen)},
        "rows": len(origin),
        "kept": len(origin) - int(gone.sum()),
        "removed": int(gone.sum()),
        "tokens": sweep.tokens,
        "exams": [{"task": task, "items": size} for task, size in sizes.items()],
        "sources": [
            {
                "source": name,
                "rows": read[number],
                "removed": lost[number],
                "dropped_for": [cell[1] for cell, what in found.items() if cell[0] == name and what == "set dropped"],
            }
            for name, number in sweep.sources.items()
        ],
        "matrix": [
            {
                "source": cell[0],
                "task": cell[1],
                "copied": len(sweep.copied[cell]),
                "items": sizes[cell[1]],
                "share": share[cell],
                "verdict": what,
            }
            for cell, what in found.items()
        ],
        "items": items,
    }


def _gone(sweep: Sweep, found: dict[Cell, str]) -> NDArray[np.bool_]:
    """Which rows go (rows,): those of dropped sets, and those that copy where rows are removed."""
    dropped = [sweep.sources[cell[0]] for cell, what in found.items() if what == "set dropped"]
    gone: NDArray[np.bool_] = np.isin(np.asarray(sweep.origin), dropped)
    for cells, rows in sweep.rows.items():
        if any(found[cell] == "rows removed" for cell in cells):
            gone[np.asarray(rows)] = True
    return gone


def _stream(files: Sequence[Path]) -> Iterator[Batch]:
    for file in files:
        yield from batches(file)
