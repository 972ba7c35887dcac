"""The counting checkers of `ifbench@1`: ids `count:*` and `ratio:*`, bug for bug as the reference decides.

Shared by the sibling modules: the ASCII punctuation `P` and the two ways of dropping it. A word is what whitespace
separates, a `\\w+` run, or a token of `english.words`; every checker says which, because verdicts hang on it.
"""

from __future__ import annotations

import re
import string
import tomllib
from importlib.resources import files

from tercet.verify.instructions.english import sentences, words

P = string.punctuation
ENDS = P + " "  # what is stripped from the ends of a word
DELETE_P = str.maketrans("", "", P)

WORDS: dict[str, list[str]] = {
    kind: text.split()
    for kind, text in tomllib.loads(
        files("tercet.verify.instructions").joinpath("ifbench.toml").read_text(encoding="utf-8")
    ).items()
}
NAMES, CONJUNCTIONS = WORDS["names"], set(WORDS["conjunctions"])
PRONOUNS, STOP_WORDS = set(WORDS["pronouns"]), set(WORDS["stop_words"])
JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def bare_words(text: str) -> list[str]:
    """The words of `text` after deleting punctuation wherever it is: `don't 10-20` gives `dont`, `1020`."""
    return text.translate(DELETE_P).split()


def word_count_range(text: str, min_words: int, max_words: int) -> bool:
    """Between `min_words` and `max_words` runs of word characters: `don't` and `3.14` are two each."""
    return min_words <= len(re.findall(r"\w+", text)) <= max_words


def unique_word_count(text: str, N: int) -> bool:
    """At least N distinct words; all words that were only punctuation are one more."""
    return len({word.strip(ENDS) for word in text.lower().split()}) >= N


def conjunctions(text: str, small_n: int) -> bool:
    """At least `small_n` spellings of coordinating conjunctions: `and`, `And` and `and,` are three."""
    return len({word for word in text.split() if word.strip(ENDS).lower() in CONJUNCTIONS}) >= small_n


def person_names(text: str, N: int) -> bool:
    """At least N of the fifty names, as whole words in their own case."""
    return sum(re.search(rf"\b{name}\b", text) is not None for name in NAMES) >= N


def numbers(text: str, N: int) -> bool:
    """Exactly so many runs of digits once punctuation is deleted: `3.14` and `10-20` are one each."""
    return len(re.findall(r"\d+", text.translate(DELETE_P))) == N


def pronouns(text: str, N: int) -> bool:
    """At least N tokens that are pronouns, repeats and determiners (`this book`) included."""
    return sum(token in PRONOUNS for token in words(text.replace("/", " ").lower())) >= N


def punctuation(text: str) -> bool:
    """An interrobang (`?!`, `!?` or the one character), and all of `. , ! ? ; :` beside the first two-mark one."""
    if not any(mark in text for mark in ("?!", "!?", "‽")):
        return False
    rest = text.replace("?!" if "?!" in text else "!?", "", 1)
    return all(mark in rest for mark in ".,!?;:")


def keywords_multiple(text: str, keyword1: str, keyword2: str, keyword3: str, keyword4: str, keyword5: str) -> bool:
    """The five keywords occur exactly 1, 2, 3, 5 and 7 times, as lower-cased substrings."""
    keywords = (keyword1, keyword2, keyword3, keyword4, keyword5)
    return [text.lower().count(keyword.strip().lower()) for keyword in keywords] == [1, 2, 3, 5, 7]


def words_japanese(text: str, N: int) -> bool:
    """Every `N`-th word has a kana or a Chinese character; words of digits or of punctuation are exempt.

    An N of 0 divides by zero, as in the reference.
    """
    chosen = [word.strip(P) for place, word in enumerate(text.split(), 1) if place % N == 0]
    return all(not word or word.isdigit() or JAPANESE.search(word) for word in chosen)


def stop_words(text: str, percentage: float) -> bool:
    """At most so many per cent of the runs of word characters are stop words; no word at all fails."""
    runs = re.findall(r"\w+", text)
    return bool(runs) and sum(run.lower() in STOP_WORDS for run in runs) / len(runs) * 100 <= percentage


def sentence_type(text: str) -> bool:
    """Twice as many sentences end in `.` as in `?`; none of either passes."""
    ends = [sentence[-1:] for sentence in sentences(text)]
    return ends.count(".") == 2 * ends.count("?")


def sentence_balance(text: str) -> bool:
    """As many sentences end in `.` as in `?` and in `!`; none of any passes."""
    ends = [sentence[-1:] for sentence in sentences(text)]
    return ends.count(".") == ends.count("?") == ends.count("!")


def overlap(text: str, reference_text: str, percentage: float) -> bool:
    """The share of the text's distinct trigrams that the reference has too is within 2 points of `percentage`."""
    own, other = _trigrams(text), _trigrams(reference_text)
    return bool(own) and percentage - 2 <= len(own & other) / len(own) * 100 <= percentage + 2


def _trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}


def sentence_words(text: str) -> bool:
    """Exactly three sentences of equal length in characters; that their words differ is not checked."""
    lengths = [len(sentence.strip()) for sentence in sentences(text)]
    return len(lengths) == 3 and len(set(lengths)) == 1
