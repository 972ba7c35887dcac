"""A text as a reader sees it, whatever marks and bytes a copy was written with.

`normalised` makes one of what looks alike: tabs, line ends and other white space, characters without a width, forms of
Unicode (NFKC) and case, quotes and dashes, HTML breaks and emphasis, Markdown emphasis. Decontamination compares texts
so read, and also as they stand where that could find more, so that nothing is lost by it: see `Readings`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import normalize

from tercet.data.ngrams import SEPARATORS, analyse

# Each begins with "<", which is searched for fast. No attributes: `a <b and c> d` is no tag.
BREAKS = re.compile(r"</?(?:br|p|div|li|tr|td)\s*/?>", re.IGNORECASE)
_EMPHASIS = re.compile(r"</?(?:b|i|em|strong|u)>", re.IGNORECASE)
_SPACED_TAG = re.compile(r"<[/a-z]+\s+/?>", re.IGNORECASE)

# What each mark becomes: white space, quotes, dashes; Markdown's marks around words; characters that nobody sees.
_SPACES = "\t\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_DOUBLE = "\u201c\u201d\u201e\u201f\u00ab\u00bb"
_SINGLE = "\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u02bc"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043"
_EMPHASIZES = "*_`"
_UNSEEN = (
    "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069"
    "\ufe0e\ufe0f\ufeff"
)
_MARKS = {
    **dict.fromkeys(_SPACES, " "),
    **dict.fromkeys(_DOUBLE, '"'),
    **dict.fromkeys(_SINGLE, "'"),
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys(_EMPHASIZES + _UNSEEN, ""),
}
_GONE = _EMPHASIZES.encode()
_SPACED = bytes.maketrans(_SPACES[:8].encode(), b" " * 8)
_WORDS = bytes(
    ord(" ") if chr(byte) in SEPARATORS else ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256)
)
_ANY = re.compile(f"[{re.escape(''.join(_MARKS))}]")


def normalised(text: str) -> str:
    """The text as a reader sees it; the case of ASCII letters is left to whoever compares.

    Example: `normalised("**Ann** has\\u00a0“3” pens<br>")` is `'ann has "3" pens '`.
    """
    if not text.isascii():
        # A spacing accent would become a space and a combining one: it is read as the quote that it stands for.
        text = normalize("NFKC", text.replace("\u00b4", "'")).casefold()
    if "<" in text:
        text = _EMPHASIS.sub("", BREAKS.sub(" ", text))
    if "&nbsp;" in text:
        text = text.replace("&nbsp;", " ")
    if not text.isascii():
        return _ANY.sub(lambda found: _MARKS[found.group()], text)
    raw = text.encode()
    seen = raw.translate(_SPACED, _GONE)
    return text if seen == raw else seen.decode()


class Readings:
    """In which forms texts are compared so that every copy is found that shows in the texts as they stand.

    Where each word of a benchmark's text is one word for a reader too, all that a row shares with it is still shared,
    word for word, when both are normalised. Other texts (a tab inside a word, a dash that is a word) lose words or get
    more, and with them another coverage: they are looked for in both forms. A row is read as it stands only if it has
    one of their words that a reader sees as another.
    """

    def __init__(self) -> None:
        """Nothing is looked for yet."""
        self._images: dict[str, list[str]] = {}
        self._others: set[bytes] = set()

    def of_item(self, texts: Sequence[str]) -> list[list[str]]:
        """The forms in which the texts of an item are looked for."""
        seen = [normalised(text) for text in texts]
        if all(map(self._same_words, texts, seen)):
            return [seen]
        others = {word for text in texts for word in analyse(text) if self._image(word) != [word]}
        self._others |= {word.encode("utf-8", "surrogatepass") for word in others}
        return [seen, list(texts)]

    def of_row(self, text: str) -> list[str]:
        """The forms in which a row's text is searched."""
        seen = normalised(text)
        if seen is text:
            return [seen]
        words = (
            (text if text.isascii() else text.lower()).encode("utf-8", "surrogatepass").translate(_WORDS).split(b" ")
        )
        # A tag or name that separators cut is no mark of one word.
        twice = not self._others.isdisjoint(words) or "&nbsp;" in text or ("<" in text and _SPACED_TAG.search(text))
        return [seen, text] if twice else [seen]

    def _same_words(self, text: str, seen: str) -> bool:
        images = [self._image(word) for word in analyse(text)] if seen is not text else []
        return seen is text or [[word] for word in analyse(seen)] == images

    def _image(self, word: str) -> list[str]:
        """The words that a reader sees in a word."""
        if word not in self._images:
            self._images[word] = analyse(normalised(word))
        return self._images[word]
