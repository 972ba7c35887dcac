"""Which training rows copy a benchmark: the 8-gram rule of the paper (§3.2), and phrases where an item is shorter.

The benchmark is indexed once and the corpus is streamed past it, so memory depends on the benchmark alone. Each user
turn of a row is one document. For a benchmark field of L tokens and a document d, M_d is the set of the field's
positions that lie in an n-gram which d contains too:

    score(field, d) = |M_d| / L      coverage(item, d) = mean of score over the item's fields

A field without any token (a question that has no passage) is no field. A row's coverage of an item is the largest over
its documents, and the row copies the item when that is strictly above the threshold. In exact mode a field scores 1
when d holds all of it as one phrase, however short, and a row copies an item when one document holds every field.

A field shorter than n tokens has no n-gram, so it is looked for as a phrase. An item of such fields alone is copied by
a document that holds them all and all that stands `beside` them (the options of a multiple-choice question); if these
are fewer than `FEW` tokens, by one that says nothing else. With longer fields, the mean of their scores is the coverage
where the document holds the short ones. Texts are read as they stand and as a reader sees them, and the larger coverage
counts (`tercet.data.readings`). Both find only more than the paper's rule; `published` leaves both out.

Two deliberate differences from the published scripts: both sides go through the same analyser (the scripts cut the
benchmark side with spaCy, which splits clitics and keeps punctuation as tokens, and so breaks n-grams that the corpus
side has), and the search is complete (the scripts ask a search engine for the first hundred hits of each n-gram).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tercet.data.benchmark_items import FEW, BenchmarkItem, Fields, holds
from tercet.data.ngrams import END, SEPARATORS, Grams, Numbers, PhraseTable, WordHashes, WordIds, analyse, encode
from tercet.data.readings import BREAKS, normalised

Shown = Callable[[int, int, float], bool]  # whether the words are wanted that a row, or document, copies of an item

_WORD = re.compile(f"[^{re.escape(SEPARATORS)}]+")


@dataclass(frozen=True)
class Hit:
    """One benchmark item that a row copies: how much of it, and the longest copied run in the analyser's tokens."""

    item: BenchmarkItem
    coverage: float
    matched: str
    document: int = 0  # the row's text that copies
    field: int = 0  # the item's field where the longest copied run stands
    number: int = 0  # of the item in the index


@dataclass(frozen=True)
class _Shares:
    """What documents share with fields, sorted by document, then place; a part is one document and one field."""

    places: Numbers  # (n-grams,) where in the benchmark a shared n-gram starts
    parts: Numbers  # (parts + 1,) the first n-gram of each part, and their number
    documents: Numbers  # (parts,)
    fields: Numbers  # (parts,)
    covered: Numbers  # (parts,) tokens of the field


class Index:
    """The n-grams and phrases of a benchmark, ready to be looked up."""

    def __init__(
        self, items: Iterable[BenchmarkItem], n: int = 8, *, exact: bool = False, published: bool = False
    ) -> None:
        """Index `items` by n-grams of `n` tokens, or by whole fields where `exact`; `published` is the paper's rule."""
        if n < 1:
            raise ValueError(f"n-grams need at least one token, got n = {n}")
        self.items, self.n, self.exact, self.published = tuple(items), n, exact, published
        self._fields = fields = Fields(self.items, n, published=published)
        self.ways = fields.ways(exact=exact, published=published)
        self._spelling = list(fields.words)
        self._word_hashes = WordHashes(fields.words)
        self._grams = None if exact else self._grams_of(fields)
        whole = fields.own & (fields.lengths > 0) if exact else fields.short() & (not published)
        self._phrases = PhraseTable(fields.ids, fields.starts[whole], fields.lengths[whole], fields.entries[whole], n)
        # What scores are divided by at most: short fields count nothing, or the document holds them.
        self._least = fields.num if published else np.maximum(fields.num_long, 1)

    def hits(self, row_texts: Sequence[str], threshold: float = 0.5) -> list[Hit]:
        """The items that one row copies above `threshold`, in benchmark order; `row_texts` are the row's user turns."""
        return self.search([row_texts], threshold)[0][0]

    def search(
        self, rows: Sequence[Sequence[str]], threshold: float = 0.5, shown: Shown = lambda row, item, coverage: True
    ) -> tuple[list[list[Hit]], int]:
        """The items that each of some rows copies, and how many tokens were read; much faster than row by row.

        A hit's `matched` holds the copied words where `shown(row, item, coverage)`, else nothing.
        """
        read_as = (lambda text: [text]) if self.published else self._fields.readings.of_row
        each = [(number, place, read_as(text)) for number, row in enumerate(rows) for place, text in enumerate(row)]
        documents = [text for _, _, texts in each for text in texts]
        owner = [(number, place) for number, place, texts in each for _ in texts]
        best: list[dict[int, Hit]] = [{} for _ in rows]
        if self._word_hashes.unique:
            # Word hashes are fast and miss nothing; the few documents that they find are read again exactly.
            whole = self._word_hashes.encode(documents)
            suspects: Sequence[int] = self._suspects(whole, threshold)
            read = encode((documents[number] for number in suspects), self._fields.words)
        else:
            suspects, whole = range(len(documents)), encode(documents, self._fields.words)
            read = whole

        def row_shown(document: int, item: int, coverage: float) -> bool:
            return shown(owner[suspects[document]][0], item, coverage)

        for number, hit in self._copies(read, threshold, row_shown):
            row, place = owner[suspects[number]]
            known = best[row].get(hit.number)
            if known is None or hit.coverage > known.coverage:
                best[row][hit.number] = Hit(hit.item, hit.coverage, hit.matched, place, hit.field, hit.number)
        # A text counts once: its last form, which is the text as it stands where there are two.
        lasts = np.cumsum([len(texts) for _, _, texts in each], dtype=np.int64) - 1
        num_tokens = int(whole.lengths[lasts].sum())
        return [[found[number] for number in sorted(found)] for found in best], num_tokens

    def _grams_of(self, fields: Fields) -> Grams | None:
        """The n-grams of fields that have some."""
        rest = np.repeat(fields.ends, fields.lengths + 1) - np.arange(len(fields.ids))  # tokens left in the field
        places = np.flatnonzero((rest >= self.n) & np.repeat(fields.own, fields.lengths + 1))
        return Grams(fields.ids, places, self.n) if len(places) else None

    def _shares(self, read: WordIds) -> _Shares:
        """Every n-gram that a document and a field share, grouped."""
        size = len(self._fields.ids) + 1
        keys = [np.empty(0, np.int64)]  # a pair of document and place as one number
        for here, there in self._grams.find(read.ids) if self._grams else ():
            keys.append(_distinct(np.searchsorted(read.ends, here) * size + there))
        documents, places = np.divmod(_distinct(np.concatenate(keys)), size)
        fields = np.searchsorted(self._fields.ends, places)
        new = _changes(documents, fields)
        # An n-gram covers n tokens, or as many as there are until the next shared one of the same field begins.
        gains = np.full(len(places), self.n)
        gains[:-1][~new[1:]] = np.minimum(np.diff(places), self.n)[~new[1:]]
        firsts = np.flatnonzero(new)
        covered = np.add.reduceat(gains, firsts) if len(firsts) else gains
        return _Shares(places, np.append(firsts, len(places)), documents[firsts], fields[firsts], covered)

    def _copies(self, read: WordIds, threshold: float, shown: Shown) -> Iterator[tuple[int, Hit]]:
        """Documents and what they copy, by n-gram coverage and by phrases."""
        shares = self._shares(read)
        for parts in self._near(shares, threshold):
            document, entry = int(shares.documents[parts[0]]), int(self._fields.entries[shares.fields[parts[0]]])
            number = int(self._fields.items[entry])
            coverage = self._coverage(entry, shares, parts, read.of(document), threshold)
            if coverage > threshold:
                field, matched = self._longest_run(shares, parts) if shown(document, number, coverage) else (0, "")
                yield document, Hit(self.items[number], coverage, matched, field=field, number=number)
        for document, entry in self._held(read):
            number = int(self._fields.items[entry])
            own = [field for field in self._fields.of(entry) if self._fields.own[field]]
            longest = max(own, key=lambda field: self._fields.lengths[field])
            text = self._text(self._fields.text(longest))
            yield document, Hit(self.items[number], 1.0, text, field=int(self._fields.which[longest]), number=number)

    def _suspects(self, read: WordIds, threshold: float) -> Sequence[int]:
        """The documents that may copy something."""
        shares = self._shares(read)
        found = {int(shares.documents[parts[0]]) for parts in self._near(shares, threshold)}
        return sorted(found | {document for document, _ in self._held(read)})

    def _near(self, shares: _Shares, threshold: float) -> Iterator[range]:
        """The parts of each document and entry that may reach the threshold, up to rounding."""
        if not len(shares.covered):
            return
        entries = self._fields.entries[shares.fields]
        firsts = np.flatnonzero(_changes(shares.documents, entries))
        sums = np.add.reduceat(shares.covered / self._fields.lengths[shares.fields], firsts)
        lasts = np.append(firsts[1:], len(entries))
        for i in np.flatnonzero(sums / self._least[entries[firsts]] > threshold - 1e-9):
            yield range(int(firsts[i]), int(lasts[i]))

    def _coverage(self, entry: int, shares: _Shares, parts: range, document: Numbers, threshold: float) -> float:
        """Mean over the entry's fields, correctly rounded: one half is never a little more than one half."""
        fields = self._fields
        covered = ((int(shares.covered[part]), int(fields.lengths[shares.fields[part]])) for part in parts)
        total, num, long = (
            sum((Fraction(*pair) for pair in covered), Fraction(0)),
            fields.num[entry],
            fields.num_long[entry],
        )
        if num > long and not self.published and float(total / int(long)) > threshold:
            short = (field for field in fields.of(entry) if fields.own[field] and 0 < fields.lengths[field] < self.n)
            num = long if all(holds(document, fields.text(field)) for field in short) else num
        return float(total / int(num))

    def _longest_run(self, shares: _Shares, parts: range) -> tuple[int, str]:
        """The longest unbroken stretch of covered places, and which of the item's fields it lies in."""
        best = (0, 0, 0)  # length, start, field
        for part in parts:
            places = shares.places[shares.parts[part] : shares.parts[part + 1]]
            cuts = np.flatnonzero(np.diff(places) > self.n) + 1
            for first, last in pairwise((0, *cuts.tolist(), len(places))):
                start, end = int(places[first]), int(places[last - 1]) + self.n
                if end - start > best[0]:
                    best = (end - start, start, int(shares.fields[part]))
        length, start, field = best
        return int(self._fields.which[field]), self._text(self._fields.ids[start : start + length])

    def _held(self, read: WordIds) -> list[tuple[int, int]]:
        """Documents and the entries of which they hold every text as one phrase."""
        seen = set()
        for here, entries in self._phrases.find(read.ids):
            documents = np.searchsorted(read.ends, here)
            seen |= set(zip(documents.tolist(), entries.tolist(), strict=True))
        return sorted(pair for pair in seen if self._holds(read.of(pair[0]), pair[1]))

    def _holds(self, document: Numbers, entry: int) -> bool:
        """Whether a document holds an entry's texts, and nothing else where these are a few words."""
        fields = self._fields
        if not self.exact and fields.tokens[entry] < FEW and len(document) > fields.tokens[entry]:
            return False
        texts = (field for field in fields.of(entry) if fields.lengths[field] and (fields.own[field] or not self.exact))
        return all(holds(document, fields.text(field)) for field in texts)

    def _text(self, ids: Numbers) -> str:
        return " ".join(self._spelling[number] for number in ids.tolist() if number != END)


def _distinct(keys: Numbers) -> Numbers:
    """The different numbers in order; several times as fast as `numpy.unique`, which hashes them."""
    keys = np.sort(keys)
    return keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]


def _changes(one: Numbers, other: Numbers) -> NDArray[np.bool_]:
    """Where a pair of numbers differs from the pair before it; the first always does."""
    new = np.ones(len(one), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return new


def excerpt(text: str, matched: str, *, n: int = 8, margin: int = 40, width: int = 320) -> str:
    """The part of the raw `text` around the first n tokens of `matched`, in whichever reading they stand in it.

    Example: `excerpt("Well: Ann has 3 PENS.", "ann has 3 pens", n=4, margin=3)` is `"…l: Ann has 3 PENS."`.
    """
    wanted = matched.split(" ")
    head = wanted[:n]
    for spans in (_spans(text, seen=False), _spans(text, seen=True)):
        words = [word for word, _, _ in spans]
        places = [i for i in range(len(words) - len(head) + 1) if words[i : i + len(head)] == head]
        if places:
            break
    first = places[0] if places else 0
    last = min(first + len(wanted), len(spans)) - 1
    start = max(0, spans[first][1] - margin) if spans else 0
    end = min(len(text), (spans[last][2] if spans else 0) + margin, start + width)
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")


def _spans(text: str, *, seen: bool) -> list[tuple[str, int, int]]:
    """The words of a text and where each stands in it; as a reader sees them, or as they stand."""
    if not seen:
        return [(found.group().lower(), found.start(), found.end()) for found in _WORD.finditer(text)]
    text = BREAKS.sub(lambda found: " " * len(found.group()), text)
    each = ((analyse(normalised(found.group())), found) for found in _WORD.finditer(text))
    return [(word, found.start(), found.end()) for words, found in each for word in words]
