"""The part of speech of a text's first word, by the averaged perceptron of Honnibal (2013) that NLTK took over.

It tags from left to right, so that the first tag hangs on the first three tokens alone. NLTK's own weights decide
where its data are installed; what is carried here, `first_tag.json.gz`, are the older weights of the package
textblob-aptagger 0.2.0 (MIT licence, Matthew Honnibal; learned from the Wall Street Journal): those features that a
first word can have, rounded to a tenth, without what is below 0.2.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

FOLDER = "averaged_perceptron_tagger_eng"  # of NLTK's data
BEFORE, AFTER = ("-START2-", "-START-"), ("-END-", "-END2-")


class Tagger(NamedTuple):
    """`weights` of tags by feature, and the `tags` of words that have one only."""

    weights: Mapping[str, Mapping[str, float]]
    tags: Mapping[str, str]
    classes: Sequence[str]

    def first(self, tokens: Sequence[str]) -> str:
        """The Penn Treebank tag of the first token, e.g. "VB"."""
        word, *after = tokens[:3]
        if word in self.tags:
            return self.tags[word]
        second, third, *_ = *map(_normal, after), *AFTER
        return self._best(_features(word, second, third))

    def alone(self, word: str) -> str:
        """The tag of a word by its letters only, wherever it stands."""
        return self.tags.get(word) or self._best(["bias", f"i suffix {word[-3:]}", f"i word {_normal(word)}"])

    def _best(self, features: Sequence[str]) -> str:
        scores: Counter[str] = Counter()
        for feature in features:
            scores.update(self.weights.get(feature, {}))
        return max(self.classes, key=lambda tag: (scores[tag], tag))


def starts_with_verb(tokens: Sequence[str]) -> bool:
    """Whether the carried tagger takes the first token for a verb, as it stands or by itself; in lower case.

    A capital at the start of a text says nothing, and to these weights it says that the word is a name.
    """
    tagger, word = carried(), tokens[0].lower() if tokens else ""
    return word.isalpha() and ("VB" in tagger.first([word, *tokens[1:]]) or "VB" in tagger.alone(word))


def _features(word: str, second: str, third: str) -> list[str]:
    normal, (last, before) = _normal(word), BEFORE
    return [
        "bias",
        f"i suffix {word[-3:]}",
        f"i pref1 {word[:1]}",
        f"i-1 tag {before}",
        f"i-2 tag {last}",
        f"i tag+i-2 tag {before} {last}",
        f"i word {normal}",
        f"i-1 tag+i word {before} {normal}",
        f"i-1 word {last}",
        f"i-1 suffix {last[-3:]}",
        f"i-2 word {before}",
        f"i+1 word {second}",
        f"i+1 suffix {second[-3:]}",
        f"i+2 word {third}",
    ]


def _normal(word: str) -> str:
    if "-" in word and word[0] != "-":
        return "!HYPHEN"
    if word.isdigit() and len(word) == 4:
        return "!YEAR"
    return "!DIGITS" if word[:1].isdigit() else word.lower()


@cache
def carried() -> Tagger:
    """The tagger that this package carries."""
    data = files("tercet.verify.instructions").joinpath("first_tag.json.gz").read_bytes()
    read = json.loads(gzip.decompress(data))
    return Tagger(read["weights"], read["tags"], read["classes"])


def nltks() -> Tagger:
    """NLTK's, whose weights no package carries; LookupError where its data are not installed."""
    roots = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), str(Path.home() / "nltk_data")]
    roots += [f"{place}/nltk_data" for place in (sys.prefix, "/usr/share", "/usr/local/share", "/usr/lib")]
    folders = [Path(root, "taggers", FOLDER) for root in roots if root]
    found = next(filter(Path.is_dir, folders), None)
    if found is None:
        advice = f"install them with `python -m nltk.downloader {FOLDER}`, or grade by ifbench@2"
        raise LookupError(f"NLTK's tagger weights are not on this machine; {advice}")
    return _read(found)


@cache
def _read(folder: Path) -> Tagger:
    parts = ("weights", "tagdict", "classes")
    weights, tags, classes = (json.loads((folder / f"{FOLDER}.{part}.json").read_text("utf-8")) for part in parts)
    return Tagger(weights, tags, classes)
