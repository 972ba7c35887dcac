"""The datasheet of a mixture: the rows of each source, their licences, and how many each rule removed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tercet.data.catalogue import conflicts, find
from tercet.data.decontaminator import Decontaminator
from tercet.data.reading import Reading
from tercet.recipe import MixtureSpec
from tercet.rows import Message, Pair, Row, RowError, Unpaired
from tercet.store import Artifact

PAPER_FILTERS = ("keywords", "blank")


@dataclass
class Tally:
    """The counts of one source: `entered` rows came from the adapter, `sampled` rows met the rules."""

    source: str
    reading: Reading = field(default_factory=Reading)
    sampled: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    repeated: int = 0
    expected: int | None = None
    share: float = 1.0
    repeat: float = 1.0

    @property
    def found(self) -> int:
        """Rows as published sets count them: after the paper's filters, before duplicates and copies are removed."""
        by_filter = sum(number for rule, number in self.removed.items() if rule in PAPER_FILTERS)
        return round((self.sampled - by_filter) * self.repeat)

    @property
    def entered(self) -> int:
        """Rows that came from the adapter."""
        return self.reading.kept

    def plain(self) -> dict[str, Any]:
        """One entry of `sources` in `summary.json`."""
        names = ("entered", "sampled", "kept", "repeated", "expected")
        found = {"source": self.source, "said": self.reading.said, "read": self.reading.read} | self.reading.plain()
        return found | {name: getattr(self, name) for name in names} | {"removed": dict(sorted(self.removed.items()))}


@dataclass
class Datasheet:
    """Rows, tokens and turns in the mixture, for each source of the recipe and each part of it."""

    counted: str
    measure: Callable[[list[str]], list[int]]
    lines: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (source, part) -> rows, tokens, turns
    labels: dict[str, int] = field(default_factory=dict)  # good and bad rows, of unpaired answers

    @classmethod
    def of(cls, spec: MixtureSpec, inputs: Mapping[str, Artifact]) -> Datasheet:
        """A datasheet that counts tokens of the model the recipe names, or words."""
        if not spec.tokenizer:
            return cls("words", lambda texts: [len(text.split()) for text in texts])
        path = inputs[spec.tokenizer].payload / "tokenizer.json"
        if not path.is_file():
            raise RowError(f"tokenizer = {spec.tokenizer!r}: that model has no tokenizer.json; name a local model")
        from tokenizers import Tokenizer

        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # nothing else runs in this process
        tokenizer = Tokenizer.from_file(str(path))

        def measure(texts: list[str]) -> list[int]:
            return [len(found.ids) for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

        return cls(f"tokens of {spec.tokenizer}", measure)

    @property
    def rows(self) -> int:
        """The number of rows in the mixture."""
        return sum(line[0] for line in self.lines.values())

    def count(self, entries: Sequence[tuple[str, Row | Pair]]) -> None:
        """Add rows, each with the recipe's name of its source."""
        tokens = iter(self.measure([turn.content for _, entry in entries for turn in _turns(entry)]))
        for name, entry in entries:
            line = self.lines.setdefault((name, entry.source), [0, 0, 0])
            if isinstance(entry, Unpaired):
                label = "good" if entry.good else "bad"
                self.labels[label] = self.labels.get(label, 0) + 1
            conversation = entry.messages if isinstance(entry, Row) else entry.chosen
            line[0] += 1
            line[1] += sum(next(tokens) for _ in _turns(entry))
            line[2] += sum(turn.role != "system" for turn in conversation)

    def table(self) -> list[dict[str, Any]]:
        """The lines with the licence of each part, as far as the catalogue knows it."""
        found = []
        for (name, part), (rows, tokens, turns) in sorted(self.lines.items()):
            known = find(part) or find(name)
            licence, commercial = (known.licence, known.commercial) if known else ("not known here", "unknown")
            numbers = {"rows": rows, "tokens": tokens, "turns": round(turns / rows, 3)}
            found.append({"source": name, "part": part, **numbers, "licence": licence, "commercial": commercial})
        return found


def expectation(spec: MixtureSpec, tallies: Sequence[Tally], *, strict: bool) -> dict[str, Any] | None:
    """How the number of rows differs from what the recipe expects; RowError where it is too far off and `strict`."""
    pairs = [(tally.source, tally.expected, tally.found) for tally in tallies if tally.expected is not None]
    differences = [
        {"source": name, "expected": wanted, "found": found} for name, wanted, found in pairs if wanted != found
    ]
    if spec.expect is None:
        return {"rows": None, "found": None, "differences": differences} if pairs else None
    found = sum(tally.found for tally in tallies)
    if strict and abs(found - spec.expect) > spec.within * spec.expect:
        listed = "; ".join(f"{d['source']}: expected {d['expected']:,}, found {d['found']:,}" for d in differences)
        raise RowError(
            f"the sources give {found:,} rows, the recipe expects {spec.expect:,} (within {spec.within:.2%}). "
            f"{listed or 'No source says what it expects'}. Raise `within`, or correct `expect`, to go on"
        )
    return {"rows": spec.expect, "found": found, "differences": differences}


def summary(tallies: Sequence[Tally], sheet: Datasheet, cleaner: Decontaminator, spec: MixtureSpec) -> dict[str, Any]:
    """Everything about the mixture but its rows: the content of `summary.json`."""
    removed: Counter[str] = sum((tally.removed for tally in tallies), Counter())
    table = sheet.table()
    named = [line["part"] if find(line["part"]) else line["source"] for line in table]
    return {
        "rows": sheet.rows,
        "removed": dict(sorted(removed.items())),
        "sources": [tally.plain() for tally in tallies],
        "sheet": table,
        "counted": sheet.counted,
        "benchmarks": cleaner.benchmarks(),
        "matrix": cleaner.matrix(),
        "rule": {name: getattr(spec, name) for name in ("ngram", "threshold", "share", "exact", "where", "published")},
        "licences": conflicts(named) if spec.commercial else [],
        **({"labels": sheet.labels} if sheet.labels else {}),
    }


def _turns(entry: Row | Pair) -> Sequence[Message]:
    return entry.messages if isinstance(entry, Row) else (*entry.chosen, entry.rejected[-1])
