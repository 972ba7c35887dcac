"""What rows of a file would become: their layout, the account of reading them, their lengths, and the first of them.

`tercet data FILE` prints it, so that a file can be looked at before a recipe names it. Nothing stops the reading but a
file that cannot be read at all: bad rows are counted.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from tercet import hub
from tercet.data.adapters import PAIRS
from tercet.data.layouts import recognise
from tercet.data.reading import Reading, reason_of
from tercet.data.sources import LENIENT, LOADERS, PEEK
from tercet.recipe import SourceSpec
from tercet.rows import Message, Pair, Row, RowError, Source, is_context, plain

Need = Literal["rows", "pairs", "unpaired"]
Entry = Row | Pair
Measure = Callable[[Entry], dict[str, int]]  # names of parts -> their lengths; ValueError where it cannot be trained

QUANTILES = (("min", 0.0), ("10 %", 0.1), ("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("max", 1.0))


@dataclass
class Preview:
    """The rows of one file: the first of them, and the lengths of all."""

    counted: str  # "words", or the tokens of which model
    reading: Reading = field(default_factory=Reading)
    first: list[Entry] = field(default_factory=list)
    lengths: dict[str, array[int]] = field(default_factory=dict)  # part -> its length in each row
    verifiers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # why the model's template cannot render rows -> rows
    problem: str = ""  # why nothing more could be read

    def read(
        self, source: SourceSpec, need: Need, mirror: Mapping[str, str], measure: Measure, shown: int = 5
    ) -> Iterator[int]:
        """Read all rows of a source; after each, how many objects were read, for a display of progress."""
        lenient = source.model_copy(update={"max_bad": 1.0, "require_answer": False})
        try:
            for entry in LOADERS[need](lenient, {}, mirror, self.reading):
                self.first += [entry] * (len(self.first) < shown)
                if isinstance(entry, Row) and entry.verifier:
                    self.verifiers[entry.verifier] += 1
                self._measure(entry, measure)
                yield self.reading.read
        except RowError as error:
            self.problem = str(error)

    def _measure(self, entry: Entry, measure: Measure) -> None:
        try:
            for part, length in measure(entry).items():
                self.lengths.setdefault(part, array("I")).append(length)
        except ValueError as error:
            self.refused[reason_of(str(error).partition("\n")[0], "row")] += 1

    def table(self) -> list[dict[str, Any]]:
        """A line for each part: its length at the quantiles, and the sum over all rows."""
        return [
            {"part": part}
            | {name: int(np.quantile(lengths, q, method="nearest")) for name, q in QUANTILES}
            | {"sum": sum(lengths)}
            for part, lengths in self.lengths.items()
        ]

    def plain(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "said": self.reading.said,
            "read": self.reading.read,
            "kept": self.reading.kept,
            **self.reading.plain(),
            "verifiers": dict(self.verifiers.most_common()),
            "counted": self.counted,
            "lengths": self.table(),
            "refused": dict(self.refused.most_common()),
            "rows": [plain(entry) for entry in self.first],
            "problem": self.problem,
        }


def words_of(entry: Entry) -> dict[str, int]:
    """The words of a prompt, of a row and its trained turns, or of a pair's prompt and answers."""
    if isinstance(entry, Pair):
        sides = {"chosen": entry.chosen[-1:], "rejected": entry.rejected[-1:]}
        return {name: _words(turns) for name, turns in ({"prompt": entry.prompt} | sides).items()}
    if entry.answer is None or entry.verifier:
        return {"prompt": _words(entry.prompt)}
    return {"row": _words(entry.messages), "trained": _words(turn for turn in entry.messages if is_trained(turn))}


def is_trained(turn: Message) -> bool:
    """Whether SFT trains a turn."""
    return turn.role == "assistant" and not is_context(turn)


def _words(turns: Any) -> int:
    return sum(len(turn.content.split()) for turn in turns)


def need_of(source: SourceSpec, mirror: Mapping[str, str]) -> Need:
    """What a file gives: pairs, answers with labels, or rows, by its adapter, or by the layout of its first rows."""
    if source.adapter != "auto":
        return "pairs" if source.adapter in PAIRS else "unpaired" if source.adapter == "kto" else "rows"
    head = islice(hub.stream(Source(source.path, source.subset, source.split), mirror, LENIENT), PEEK)
    try:
        gives = recognise([raw for raw, _ in head if raw]).gives
        return "pairs" if gives == "pairs" else "unpaired" if gives == "unpaired" else "rows"
    except RowError:  # which the reading will say with its place
        return "rows"
