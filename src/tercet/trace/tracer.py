"""Where the words of an answer come from: spans that stand verbatim in the rows a model was trained on.

As OLMoTrace does (arXiv 2504.07096): maximal spans by suffix arrays, cut to what stands by itself, the rarest first
by the product of their words' frequencies, and the rows of each span by their relevance to prompt and answer (BM25).
A span has eight or more words (`words`), whatever the model's tokenizer makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tercet.records import stated_licences
from tercet.store import Artifact, Store, StoreError
from tercet.trace import texts
from tercet.trace.index import Say, TraceIndex, WordPlace, opened
from tercet.trace.relevance import excerpt, relevance
from tercet.trace.search import longest, maximal, outermost, positions, union
from tercet.trace.texts import Taught, TextRow
from tercet.trace.words import Ids, places, self_contained, sentence_ends, words_of

SHORTEST = 8  # words of a span
MOST_SPANS, MOST_ROWS = 10, 5
CANDIDATES = 10  # places of a span that are looked at to choose its rows
LARGEST = 200_000  # characters of an answer


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
    """An answer as it is searched for. Shape suffix: W words."""

    text: str
    words: list[str]
    where: list[tuple[int, int]]  # of each word, in characters
    asked: frozenset[str]  # the words of the answer and its prompt
    numbers: list[Ids]  # the words as each table's index numbers them
    rarity_W: NDArray[np.float64]  # minus the log of each word's frequency in all tables

    def rarity(self, span: tuple[int, int]) -> float:
        """Minus the log of the probability that words drawn one by one from the rows are those of a span."""
        return float(self.rarity_W[slice(*span)].sum())


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
        for one in found:
            store.intact(one.artifact.path)
        return cls([(one, opened(store, one, say), stated_licences(store.lineage(one.artifact))) for one in found])

    @property
    def about(self) -> list[dict[str, Any]]:
        """What is searched: the stages, the artifact, what its rows are, and how many rows and words it has."""
        return [
            {"stage": ", ".join(one.stages), "artifact": one.artifact.path.name, "what": one.what}
            | {"rows": index.rows, "words": index.num_words}
            for one, index, _ in self.tables
        ]

    def trace(self, text: str, prompt: str = "", *, most_spans: int = MOST_SPANS, most_rows: int = MOST_ROWS) -> Trace:
        """The spans of an answer; `prompt` helps to choose among the rows of each."""
        if len(text) > LARGEST:
            raise ValueError(f"expected an answer of at most {LARGEST:,} characters, got {len(text):,}")
        answer = self._read(text, prompt)
        spans = self._spans(answer)
        chosen = sorted(spans, key=lambda span: (-answer.rarity(span), span))[:most_spans]
        covered = union(spans)
        return Trace(
            spans=tuple(self._shown(answer, chosen, most_rows)),
            covered=tuple((answer.where[start][0], answer.where[stop - 1][1]) for start, stop in covered),
            words=len(answer.words),
            share=round(sum(stop - start for start, stop in covered) / max(1, len(answer.words)), 4),
        )

    def _read(self, text: str, prompt: str) -> TracedAnswer:
        words = words_of(text)
        numbers = [index.numbers(words) for _, index, _ in self.tables]
        counts = sum((index.counts(own) for (_, index, _), own in zip(self.tables, numbers, strict=True)), np.zeros(1))
        total = sum(index.num_words for _, index, _ in self.tables)
        rarities = np.log(max(1, total)) - np.log(np.maximum(counts, 1))
        return TracedAnswer(
            text, words, places(text), frozenset(words_of(prompt)) | frozenset(words), numbers, rarities
        )

    def _spans(self, answer: TracedAnswer) -> list[tuple[int, int]]:
        """The maximal spans of words of an answer, without what hangs over, in order."""
        lengths = np.zeros(len(answer.words), np.int64)
        for (_, index, _), numbers in zip(self.tables, answer.numbers, strict=True):
            lengths = np.maximum(lengths, longest(index, numbers, SHORTEST))
        ends = sentence_ends(answer.text, answer.where)
        return outermost([self_contained(answer.words, ends, span, SHORTEST) for span in maximal(lengths)])

    def _shown(self, answer: TracedAnswer, spans: Sequence[tuple[int, int]], most_rows: int) -> Iterator[TracedSpan]:
        """Spans with how often they stand in the rows, and the rows nearest to prompt and answer."""
        found = [
            positions(index, numbers, spans, CANDIDATES)
            for (_, index, _), numbers in zip(self.tables, answer.numbers, strict=True)
        ]
        for i, (first, last) in enumerate(spans):
            start, stop = answer.where[first][0], answer.where[last - 1][1]
            occurrences = [
                Occurrence(number, self.tables[number][1].place(position))
                for number, one in enumerate(found)
                for position in one[i][1]
            ]
            yield TracedSpan(
                text=answer.text[start:stop],
                start=start,
                stop=stop,
                words=last - first,
                count=sum(one[i][0] for one in found),
                rarity=round(answer.rarity((first, last)), 3),
                rows=tuple(self._nearest(answer, occurrences, answer.words[first:last], most_rows)),
            )

    def _nearest(
        self, answer: TracedAnswer, found: Sequence[Occurrence], words: list[str], most: int
    ) -> Iterator[TracedRow]:
        """The rows of a span of these words, the most relevant first."""
        first = {(one.table, one.place.row): one for one in reversed(found)}  # the first place in a row stands for it
        rows = [self.tables[one.table][1].row(one.place.row) for one in first.values()]
        scores = relevance(answer.asked, [words_of("\n".join(row.texts)) for row in rows])
        ranked = sorted(zip(scores, first.values(), rows, strict=True), key=lambda one: (-one[0], one[1]))
        for score, one, row in ranked[:most]:
            yield self._row(one, row, words, score)

    def _row(self, found: Occurrence, row: TextRow, words: list[str], score: float) -> TracedRow:
        table, _, licences = self.tables[found.table]
        text, at = row.texts[found.place.text], found.place.word
        where = places(text)
        if words_of(text)[at : at + len(words)] != words:
            raise StoreError(
                f"{table.path}: row {found.place.row} is not as its index has it; run `tercet gc --delete`"
            )
        shown, start, stop, cut = excerpt(text, where[at][0], where[at + len(words) - 1][1])
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
