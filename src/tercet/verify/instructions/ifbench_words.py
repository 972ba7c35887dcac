"""The checkers of `ifbench@1` and `@2` that look at words in order: ids `words:*`, `sentence:*` and `repeat:*`."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import groupby, pairwise
from string import ascii_lowercase as LETTERS

import syllapy

from tercet.verify.instructions import first_tag
from tercet.verify.instructions.english import sentences, words
from tercet.verify.instructions.ifbench_count import ENDS, P, bare_words

PRIMES = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97}
TWO_CONSONANTS = re.compile("[b-df-hj-np-tv-z]{2}")
# The one sentence that `repeat:repeat_simple` asks for, lower-cased: 58 characters, known by their SHA-256.
SIMPLE_SENTENCE = "5e33157f37da8f137c1899801fb56dcae5fccd687d03c683439128ef87d1d0bb"


def alphabet(text: str) -> bool:
    """Each word starts with the letter after the one before it, z leading back to a; the first letter is free."""
    bare = bare_words(text)
    start = LETTERS.find(bare[0][0].lower()) if bare else -1
    return start >= 0 and all(word.lower()[0] == LETTERS[(start + place) % 26] for place, word in enumerate(bare))


def vowel(text: str) -> bool:
    """One line with at most three distinct vowels in all of it."""
    return "\n" not in text.strip() and len(set("aeiou") & set(text.lower())) <= 3


def consonants(text: str) -> bool:
    """Every word, punctuation and all, has two neighbouring consonants; y is one."""
    return all(TWO_CONSONANTS.search(word) for word in text.lower().split())


def palindrome(text: str) -> bool:
    """At least ten words of five characters or more read the same backwards; repeats count."""
    return sum(len(word) >= 5 and word == word[::-1] for word in bare_words(text.lower())) >= 10


def prime_lengths(text: str) -> bool:
    """Every word has a prime number of characters."""
    return all(len(word) in PRIMES for word in bare_words(text))


def start_verb(text: str) -> bool:
    """The first token is tagged as a verb (`VB...`) by NLTK's averaged perceptron, reading the whole text.

    Only NLTK's own weights decide as the reference does, and no package carries them: the check reads
    `averaged_perceptron_tagger_eng` where NLTK's data is installed, and raises LookupError where it is not.
    """
    tokens = words(text)
    return bool(tokens) and "VB" in first_tag.nltks().first(tokens)


def start_verb_carried(text: str) -> bool:
    """The first token is made of letters, and a verb to the tagger that this package carries."""
    return first_tag.starts_with_verb(words(text))


def repeats(text: str, small_n: int) -> bool:
    """No word occurs more than `small_n` times; `It's` and `its` are one word."""
    return all(count <= small_n for count in Counter(bare_words(text.lower())).values())


def odd_even_syllables(text: str) -> bool:
    """Odd and even numbers of syllables alternate, by the dictionary and the rules of syllapy."""
    parities = [syllapy.count(word) % 2 for word in bare_words(text.lower())]
    return all(a != b for a, b in pairwise(parities))


def last_first(text: str) -> bool:
    """The last word of each sentence is the first of the next; only the outer sides lose their punctuation."""
    for before, after in pairwise(sentences(text)):
        left, right = before.rstrip(ENDS).split(), after.lstrip(ENDS).split()
        if not left or not right or left[-1].lower() != right[0].lower():
            return False
    return True


def paragraph_last_first(text: str) -> bool:
    """Each line ends with the word it starts with; lines without a word are skipped."""
    lines = [line.strip().lower().strip(ENDS).split() for line in text.split("\n")]
    return all(line[0] == line[-1] for line in lines if line)


def no_consecutive(text: str) -> bool:
    """No two neighbouring words start with the same character."""
    return all(a[0] != b[0] for a, b in pairwise(bare_words(text.lower())))


def keywords_specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    """The `m`-th token of the `n`-th sentence is the keyword; punctuation tokens do not count."""
    found = sentences(text)
    if len(found) < n:
        return False
    tokens = [token for token in words(found[n - 1]) if any(char.isalnum() for char in token)]
    return len(tokens) >= m and tokens[m - 1].lower() == keyword.strip().lower()


def words_position(text: str, keyword: str) -> bool:
    """The second token and the second-to-last are the keyword; one final mark is not counted at the end only."""
    tokens = [token.lower() for token in words(text)]
    back = 3 if tokens and tokens[-1] in P else 2
    return len(tokens) >= back and tokens[1] == tokens[-back] == keyword.strip().lower()


def alliteration_increment(text: str) -> bool:
    """Each sentence has more alliteration than the one before: the summed lengths of its runs of equal initials."""
    return all(a < b for a, b in pairwise(_alliteration(sentence) for sentence in sentences(text)))


def _alliteration(sentence: str) -> int:
    bare = [word.lstrip(P) for word in sentence.lower().split()]
    runs = [len(list(run)) for _, run in groupby(word[0] for word in bare if word)]
    return sum(run for run in runs if run > 1)


def sentence_keyword(text: str, word: str, N: int) -> bool:
    """The `N`-th sentence contains the word; 0 reads the last sentence."""
    found = sentences(text)
    pattern = rf"\b{re.escape(word)}\b"
    return len(found) >= N and re.search(pattern, found[N - 1], re.IGNORECASE) is not None


def sentence_increment(text: str, small_n: int) -> bool:
    """Each sentence has exactly `small_n` words more than the one before."""
    counts = [len(bare_words(sentence)) for sentence in sentences(text)]
    return all(b == a + small_n for a, b in pairwise(counts))


def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    """The prompt again, but not the very same text: the first word is free, and so is the whitespace."""
    return text != prompt_to_repeat and text.split()[1:] == prompt_to_repeat.split()[1:]


def repeat_simple(text: str) -> bool:
    """The one sentence the instruction itself consists of, in any case."""
    return hashlib.sha256(text.strip().lower().encode("utf-8", "surrogatepass")).hexdigest() == SIMPLE_SENTENCE


def repeat_span(text: str, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    """The prompt's characters from `n_start` to `n_end`, both inclusive and counted from 0, in any case."""
    return text.strip().lower() == prompt_to_repeat[n_start : n_end + 1].strip().lower()
