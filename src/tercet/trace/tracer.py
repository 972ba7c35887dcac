"""Where the words of an answer come from: spans that stand verbatim in the rows a model was trained on.

As OLMoTrace does (arXiv 2504.07096): maximal spans by suffix arrays, cut to what stands by itself, the rarest first
by the product of their words' frequencies, and the rows of each span by their relevance to prompt and answer (BM25).
A span has eight or more words (`words`), whatever the model's tokenizer makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from tercet.store import Artifact, Store, StoreError
from tercet.trace import texts
from tercet.trace.index import Say, TraceIndex, WordPlace, opened
from tercet.trace.relevance import excerpt, relevance
from tercet.trace.search import longest, maximal, outermost, positions, union
from tercet.trace.texts import Taught, TextRow
from tercet.trace.words import places, self_contained, sentence_ends, words_of

SHORTEST = 8  # words of a span
MOST_SPANS, MOST_ROWS = 10, 5
CANDIDATES = 20  # places of a span that are looked at to choose its rows
LARGEST = 1 << 20  # characters of an answer


@dataclass(frozen=True)
class TracedRow:
    """A row that has a span: `text` is an excerpt, with the span at [start, stop); `cut` says where more stands."""

    stage: str  # those that learned from it
    artifact: str
    number: int  # of the row in the artifact's table
    id: str
    source: str
    licence: str
    role: str
    text: str
    start: int
    stop: int
    cut: tuple[bool, bool]
    score: float


@dataclass(frozen=True)
class TracedSpan:
    """A part [start, stop) of the answer's characters; `rarity` is minus the log of its words' frequencies (nats)."""

    text: str
    start: int
    stop: int
    words: int
    count: int  # places in all rows
    rarity: float
    rows: tuple[TracedRow, ...]


@dataclass(frozen=True)
class Trace:
    """The spans of an answer, the rarest first; `covered` are the characters in any span, `share` that of its words."""

    spans: tuple[TracedSpan, ...]
    covered: tuple[tuple[int, int], ...]
    words: int
    share: float

    def to_json(self) -> dict[str, Any]:
        """The trace in plain values."""
        return asdict(self)


class TracedAnswer(NamedTuple):
    """A text to be traced: its words, where each stands, and the words of it and its prompt."""

    text: str
    words: list[str]
    where: list[tuple[int, int]]
    asked: frozenset[str]

    @classmethod
    def of(cls, text: str, prompt: str) -> TracedAnswer:
        """The answer to a prompt."""
        words = words_of(text)
        return cls(text, words, places(text), frozenset(words_of(prompt)) | frozenset(words))


class Occurrence(NamedTuple):
    """A place of a span: in which table, which row, which of its words."""

    table: int
    place: WordPlace


class Tracer:
    """The texts that a model, or all models of a lineage, learned from. Several threads may trace at once."""

    def __init__(self, tables: Sequence[tuple[Taught, TraceIndex, dict[str, str]]]) -> None:
        """Each table with its index and the licences of its sources."""
        self.tables = list(tables)

    @classmethod
    def open(cls, store: Store, artifact: Artifact, say: Say = lambda _text: None) -> Tracer:
        """All that was trained on before an artifact: a model, an evaluation or a report. Makes missing indexes."""
        line = store.lineage(artifact)
        if not (found := texts.taught(line)):
            raise StoreError(f"{artifact.path.name}: nothing in its lineage was trained, so no rows can be searched")
        return cls([(one, opened(store, one, say), texts.licences(store.lineage(one.artifact))) for one in found])

    @property
    def about(self) -> list[dict[str, Any]]:
        """What is searched: the stages, the artifact, what its rows are, and how many rows and words it has."""
        return [
            {"stage": ", ".join(one.stages), "artifact": one.artifact.path.name, "what": one.what}
            | {"rows": index.rows, "words": index.words}
            for one, index, _ in self.tables
        ]

    def trace(self, text: str, prompt: str = "", *, most_spans: int = MOST_SPANS, most_rows: int = MOST_ROWS) -> Trace:
        """The spans of an answer; `prompt` helps to choose among the rows of each."""
        if len(text) > LARGEST:
            raise ValueError(f"expected an answer of at most {LARGEST:,} characters, got {len(text):,}")
        answer, spans = TracedAnswer.of(text, prompt), self.spans(text)
        chosen = sorted(spans, key=lambda span: (-self.rarity(answer.words[slice(*span)]), span))[:most_spans]
        covered = union(spans)
        return Trace(
            spans=tuple(self._span(answer, span, most_rows) for span in chosen),
            covered=tuple((answer.where[start][0], answer.where[stop - 1][1]) for start, stop in covered),
            words=len(answer.words),
            share=round(sum(stop - start for start, stop in covered) / max(1, len(answer.words)), 4),
        )

    def spans(self, text: str, shortest: int = SHORTEST) -> list[tuple[int, int]]:
        """The maximal spans of words of a text, without what hangs over, in order."""
        words = words_of(text)
        lengths = np.zeros(len(words), np.int64)
        for _, index, _ in self.tables:
            lengths = np.maximum(lengths, longest(index, index.numbers(words), shortest))
        ends = sentence_ends(text, places(text))
        cut = [self_contained(words, ends, span, shortest) for span in maximal(lengths)]
        return outermost(cut)

    def rarity(self, words: Sequence[str]) -> float:
        """Minus the log of the probability that words drawn one by one from the rows are these."""
        total = sum(index.words for _, index, _ in self.tables)
        counts = sum(index.counts(words) for _, index, _ in self.tables)
        return float(np.sum(np.log(total) - np.log(np.maximum(counts, 1))))

    def _span(self, answer: TracedAnswer, span: tuple[int, int], most_rows: int) -> TracedSpan:
        words = answer.words[slice(*span)]
        total, found = 0, list[Occurrence]()
        for number, (_, index, _) in enumerate(self.tables):
            count, at = positions(index, index.numbers(answer.words), span, CANDIDATES)
            total += count
            found += [Occurrence(number, index.place(position)) for position in at]
        first = {(one.table, one.place.row): one for one in reversed(found)}  # the first place in a row stands for it
        rows = [self.tables[one.table][1].row(one.place.row) for one in first.values()]
        scores = relevance(answer.asked, [words_of("\n".join(row.texts)) for row in rows])
        ranked = sorted(zip(scores, first.values(), rows, strict=True), key=lambda one: (-one[0], one[1]))
        start, stop = answer.where[span[0]][0], answer.where[span[1] - 1][1]
        return TracedSpan(
            text=answer.text[start:stop],
            start=start,
            stop=stop,
            words=len(words),
            count=total,
            rarity=round(self.rarity(words), 3),
            rows=tuple(self._row(one, row, len(words), score) for score, one, row in ranked[:most_rows]),
        )

    def _row(self, found: Occurrence, row: TextRow, words: int, score: float) -> TracedRow:
        table, _, licences = self.tables[found.table]
        text, at = row.texts[found.place.text], found.place.word
        where = places(text)
        shown, start, stop, cut = excerpt(text, where[at][0], where[at + words - 1][1])
        own = texts.OWN if table.file == texts.ROLLOUTS else texts.UNSTATED
        return TracedRow(
            stage=", ".join(table.stages),
            artifact=table.artifact.path.name,
            number=found.place.row,
            id=row.id,
            source=row.source,
            licence=licences.get(row.source, own),
            role=row.roles[found.place.text],
            text=shown,
            start=start,
            stop=stop,
            cut=cut,
            score=round(score, 3),
        )
