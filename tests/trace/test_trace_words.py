"""Words of texts, and spans that stand by themselves."""

from __future__ import annotations

import pytest

from tercet.trace.words import places, self_contained, sentence_ends, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.5 km,\n\tsaid x_1!", ["It", "'", "s", "3", ".", "5", "km", ",", "said", "x_1", "!"]),
        ("数据 and ข้อ", ["数", "据", "and", *"ข้อ"]),
        ("Grüße", ["Grüße"]),
        ("  ", []),
        ("\ud800", ["\ud800"]),
    ],
)
def test_words_are_letters_digits_and_single_marks(text, words):
    assert words_of(text) == words
    assert [text[a:b] for a, b in places(text)] == words


def cut(text: str, start: str, stop: str, shortest: int = 4) -> str:
    """The span of a text from one word to another, without what hangs over."""
    words, where = words_of(text), places(text)
    span = (words.index(start), words.index(stop) + 1)
    a, b = self_contained(words, sentence_ends(text, where), span, shortest)
    return text[where[a][0] : where[b - 1][1]]


TEXT = "We saw him there. The heron ate six whole cakes. Then it slept (soundly) for days."


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        ("him", "Then", "The heron ate six whole cakes."),  # short rests of two sentences that are cut
        ("We", "cakes", "We saw him there. The heron ate six whole cakes"),  # a whole sentence stays, short as it is
        ("ate", "soundly", "ate six whole cakes. Then it slept (soundly"),  # neither rest is short
        ("him", "heron", "him there. The heron"),  # nothing is left of it otherwise
        ("The", "(", "The heron ate six whole cakes. Then it slept"),
    ],
)
def test_what_hangs_over_is_cut_where_enough_is_left(start, stop, found):
    assert cut(TEXT, start, stop) == found


def test_a_line_ends_as_a_sentence_does():
    assert cut("- one\n- two three four five\n- six", "one", "five", 5) == "- two three four five"
