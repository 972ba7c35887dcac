"""Texts as words: the unit of a trace.

A word is a run of letters and digits, or one mark of punctuation; white space between words counts once, whatever it
is. Of scripts that write no spaces every character is a word. So a trace needs no model's tokenizer, and models of any
tokenizer share an index.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]

_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Thai and Lao, kana, Han
WORD = re.compile(rf"[^\W{_UNSPACED}]+|[{_UNSPACED}]|[^\w\s]")
END, UNKNOWN = 0, 0xFFFFFFFF  # the number after the words of a text; of a word that no indexed row has
_CLOSING, _OPENING = frozenset(",.;:!?)]}%"), frozenset("([{,;:")
_SENTENCE = re.compile(r"[.!?…。\uff01\uff1f][\"'”’)\]*]*(?=\s)|\n")  # ends of sentences and of lines


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return WORD.findall(text)


def places(text: str) -> list[tuple[int, int]]:
    """Where each word of a text stands: its first character, and the one behind its last."""
    return [found.span() for found in WORD.finditer(text)]


def hashes(words: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each word, by which an index knows it."""
    digests = (hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words)
    return np.frombuffer(b"".join(digests), np.uint64)


def sentence_ends(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """How many words stand before each end of a sentence or line, with 0 and the number of all words."""
    breaks = [found.end() for found in _SENTENCE.finditer(text)]
    starts = np.array([start for start, _ in spans], np.int64)
    return sorted({0, len(spans), *(int(word) for word in np.searchsorted(starts, breaks))})


def self_contained(words: Sequence[str], ends: Sequence[int], span: tuple[int, int], shortest: int) -> tuple[int, int]:
    """A span of words without what hangs over: fewer than `shortest` words of a sentence that is cut, odd punctuation.

    `ends` are those of sentences. Nothing is taken off a span that would leave it too short.
    """
    start, stop = span
    inner = [end for end in ends if start < end < stop]
    if inner and start not in ends and inner[0] - start < shortest <= stop - inner[0]:
        start = inner[0]
    if inner and stop not in ends and stop - inner[-1] < shortest <= inner[-1] - start:
        stop = inner[-1]
    while stop - start > shortest and words[start] in _CLOSING:
        start += 1
    while stop - start > shortest and words[stop - 1] in _OPENING:
        stop -= 1
    return start, stop
