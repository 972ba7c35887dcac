"""Which of the rows that have a span are shown, and what of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

K1, B = 1.5, 0.75  # of BM25: how soon a repeated word counts no more, how much long rows lose
EXCERPT = 400  # characters of a row that are shown


def relevance(asked: Collection[str], rows: Sequence[Sequence[str]]) -> list[float]:
    """BM25 of each row, given as words, to the words of prompt and answer; words in fewer of these rows count more.

    score = Σ_w ln(1 + (N − n_w + ½) / (n_w + ½)) · f_w (k₁ + 1) / (f_w + k₁ (1 − b + b · length / mean length))
    """
    counts = [Counter(word for word in row if word in asked) for row in rows]
    having = Counter(word for found in counts for word in found)
    mean = sum(map(len, rows)) / max(1, len(rows)) or 1.0
    scores = []
    for row, found in zip(rows, counts, strict=True):
        size = K1 * (1 - B + B * len(row) / mean)
        weights = {word: math.log(1 + (len(rows) - n + 0.5) / (n + 0.5)) for word, n in having.items() if word in found}
        scores.append(math.fsum(weights[word] * f * (K1 + 1) / (f + size) for word, f in found.items()))
    return scores


def excerpt(text: str, start: int, stop: int, most: int = EXCERPT) -> tuple[str, int, int, tuple[bool, bool]]:
    """At most `most` characters of a text round [start, stop), where that stands in them, and which ends are cut.

    A span that is longer is cut at its end.
    """
    before = min(start, max(0, most - (stop - start)) // 3)
    begin = start - before
    end = min(len(text), max(begin + most, 0))
    begin = max(0, min(begin, end - most)) if end == len(text) else begin
    return text[begin:end], start - begin, min(stop, end) - begin, (begin > 0, end < len(text))
