"""The items of benchmarks as decontamination looks for them: their texts, in both readings, as numbers of words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tercet.data.ngrams import Numbers, encode, vocabulary
from tercet.data.readings import Readings
from tercet.rows import RowError, read_table

Way = Literal["n-grams", "phrase", "whole turn", ""]  # how an item is looked for; an empty text: it cannot be

FEW = 5  # so few tokens stand in many texts that copy nothing ("What do you do?"): a turn must say nothing else


@dataclass(frozen=True)
class BenchmarkItem:
    """One benchmark item. Example: `BenchmarkItem("words@1", "17", ("Ann has 3 pens and ...",))`.

    `beside` are texts without which fields shorter than an n-gram are no copy: the options of "Which one is true?".
    """

    task: str
    item: str
    fields: tuple[str, ...]
    beside: tuple[str, ...] = ()


class Fields:
    """The texts of a benchmark. An entry is one reading of one item, and every field belongs to an entry.

    By field: `starts` and `ends` in `ids` (one without tokens owns no place), `lengths`, its entry `entries`, its
    number `which` among the item's texts, whether it is one of the item's `own` or stands beside them, and whether it
    is `long` enough for an n-gram. By entry: its item `items`, how many own fields have tokens (`num`) and are long
    (`num_long`), and all its `tokens`.
    """

    def __init__(self, items: Sequence[BenchmarkItem], n: int, *, published: bool) -> None:
        """Number the words of `items`; `published` reads them only as they stand."""
        self.readings = Readings()
        every: list[tuple[int, Sequence[str]]] = []
        for number, item in enumerate(items):
            texts = (*item.fields, *item.beside)
            every += [(number, form) for form in ([texts] if published else self.readings.of_item(texts))]
        sizes = np.array([len(texts) for _, texts in every], np.int64)
        self.words = vocabulary()
        found = encode((text for _, texts in every for text in texts), self.words, learn=True)
        self.ids, self.ends = found.ids, found.ends
        self.starts = np.concatenate(([0], found.ends + 1))[:-1]
        self.lengths = self.ends - self.starts
        self.items = np.array([number for number, _ in every], np.int64)
        self.entries = np.repeat(np.arange(len(every)), sizes)
        self.first = np.cumsum(sizes) - sizes  # an entry's first field
        self.which = np.arange(len(self.entries)) - self.first[self.entries]
        self.own = self.which < np.array([len(item.fields) for item in items], np.int64)[self.items][self.entries]
        self.long = self.own & (self.lengths >= n)
        self.num, self.num_long = self._count(self.own & (self.lengths > 0)), self._count(self.long)
        self.tokens = np.bincount(self.entries, self.lengths, len(every)).astype(np.int64)

    def of(self, entry: int) -> range:
        """The fields of an entry."""
        last = self.first[entry + 1] if entry + 1 < len(self.first) else len(self.entries)
        return range(int(self.first[entry]), int(last))

    def text(self, field: int) -> Numbers:
        """The words of a field."""
        return self.ids[self.starts[field] : self.ends[field]]

    def short(self) -> NDArray[np.bool_]:
        """The fields of items without any n-gram, in the reading of readers, what stands beside included."""
        first = np.append(True, np.diff(self.items) > 0)[: len(self.items)]
        return ((self.num > 0) & (self.num_long == 0) & first)[self.entries] & (self.lengths > 0)

    def ways(self, *, exact: bool, published: bool) -> list[Way]:
        """How each item is looked for."""
        found: dict[int, Way] = {}
        for entry, item in enumerate(self.items.tolist()):
            way: Way = "n-grams" if self.num_long[entry] else "whole turn" if self.tokens[entry] < FEW else "phrase"
            if exact or not self.num_long[entry]:
                way = "" if not self.num[entry] or (published and not exact) else "phrase" if exact else way
            if item not in found or exact or self.num_long[entry]:
                found[item] = found.get(item) or way
        return list(found.values())

    def _count(self, some: NDArray[np.bool_]) -> Numbers:
        return np.bincount(self.entries[some], minlength=len(self.items))


def holds(document: Numbers, text: Numbers) -> bool:
    """Whether the words of a text stand in a document as one phrase."""
    at = (
        np.flatnonzero(document[: len(document) - len(text) + 1] == text[0]) if len(text) <= len(document) else text[:0]
    )
    for k in range(1, len(text)):
        at = at[document[at + k] == text[k]]
    return bool(len(at))


def read_benchmark(payload: Path, *, shots: bool = True) -> tuple[list[BenchmarkItem], frozenset[str]]:
    """The items of a benchmark artifact with the fields that rows must not copy, and which of its tasks are unseen.

    The worked examples of its prompts (`examples.parquet`, where there is one) come after the items and count under
    tasks of their own: `gsm8k@2:examples`; without `shots` they are left out.
    """
    cards, benchmark, examples = (payload / name for name in ("tasks.json", "benchmark.parquet", "examples.parquet"))
    known = json.loads(cards.read_text(encoding="utf-8")) if cards.is_file() else []
    items = []
    for file in (benchmark, examples) if shots and examples.is_file() else (benchmark,):
        for number, value in enumerate(read_table(file)):
            if "fields" not in value or "task" not in value or "item" not in value:
                raise RowError(f"{file}, row {number}: expected task, item and fields, got the keys {sorted(value)}")
            texts = tuple(value["fields"] or ()), tuple(value.get("beside") or ())
            items.append(BenchmarkItem(value["task"], str(value["item"]), *texts))
    return items, frozenset(card["name"] for card in known if card.get("locked"))
