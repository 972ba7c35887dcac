"""The verifier of DROP: an answer is a list of spans, compared as sets of normalised words (exact match and F1).

The rules are those of the official evaluation; the reference alternatives are tried one by one and the best counts.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from fractions import Fraction

from tercet.verify.grade import Grade, is_texts, read_reference, unreadable
from tercet.verify.numbers import numbers_in, plain, read_number, spelled
from tercet.verify.stated import final_number, places, sentence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def drop(completion: str, reference: str) -> Grade:
    """`drop@1`: the best F1 of the completion, taken as one span, against any gold answer; `numbers` has em and f1.

    The reference answer is a JSON list of alternatives, each a list of spans; a number or a date is one span:
    `[["12"], ["3 May 1990"], ["Smith", "Jones"]]`.
    """
    golds = _golds("drop@1", reference)
    return _best(completion.strip(), [em_f1(completion.strip(), gold) for gold in golds])


def drop_by_value(completion: str, reference: str) -> Grade:
    """`drop@2`: as `drop@1`, with numbers by their value and the answer that the completion states last.

    Where the gold answer is one number, the number that the completion states is compared, whatever its unit; else
    numbers are words that agree in sign and value, so "-3" is not "3" and "24.8%" is "24.8".
    """
    golds = _golds("drop@2", reference)
    stated = next((sentence(place.text) for place in places(completion) if place.stated and place.text.strip()), "")
    answer, found = (stated or completion).strip(), final_number(completion)
    scores = [em_f1(answer, gold, _valued) for gold in golds]
    for gold in golds:
        if len(gold) == 1 and found and found[0].value is not None and found[0].value == read_number(gold[0]):
            scores.append((1.0, 1.0))
    return _best(answer, scores)


def _golds(verifier: str, reference: str) -> list[list[str]]:
    example = '[["12"], ["Smith", "Jones"]]'
    golds = read_reference(verifier, reference, example)
    if not isinstance(golds, list) or not golds or not all(map(is_texts, golds)):
        raise unreadable(verifier, f"a list of alternatives, each a list of spans, e.g. {example}", reference)
    return golds


def _best(answer: str, scores: Sequence[tuple[float, float]]) -> Grade:
    if not answer:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty", numbers={"em": 0.0, "f1": 0.0})
    em, f1 = max(em for em, _ in scores), max(f1 for _, f1 in scores)
    return Grade(f1, answer, numbers={"em": em, "f1": f1})


def em_f1(predicted: str, gold: Sequence[str], normal: Callable[[str], str] | None = None) -> tuple[float, float]:
    """Exact match (0 or 1) and F1 (0 to 1, two decimals) of a predicted span against the spans of one gold answer.

    The official evaluation pairs spans one to one so that the sum of their F1 is largest, and divides it by the number
    of spans of the longer list; a completion is one span, so its best pair counts. `normal` instead of `normalise`.
    """
    text, *gold_texts = map(normal or normalise, (predicted, *gold))
    words = set(text.split())
    best = max(_bag_f1(words, set(other.split())) for other in gold_texts)
    return float([text] == gold_texts), round(best / len(gold_texts), 2)


def normalise(span: str) -> str:
    """Lower-case words without punctuation and articles, numbers as floats: "The top-5" is "top 5.0".

    Words end at spaces and hyphens, so a minus sign is lost. Only a word that reads as a number keeps its dot.
    """
    words = (_normal_word(word) for word in re.split("[ -]", span))
    return " ".join(word for word in words if word)


def _valued(span: str) -> str:
    """`normalise` with every number as its value behind a mark: "a 3.50-yard pass" is "#3.5 yard pass"."""
    text, place, words = plain(span), 0, []
    for number in (one for one in numbers_in(text) if one.value is not None):
        words += [normalise(text[place : number.start]), f"#{spelled(number.value or Fraction(0))}"]
        place = number.end
    return " ".join([*words, normalise(text[place:])]).strip()


def _normal_word(word: str) -> str:
    word = word.lower()
    word = word if _is_number(word) else word.translate(PUNCTUATION)
    word = str(float(word)) if _is_number(word) else word
    return " ".join(ARTICLES.sub(" ", word).split())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _bag_f1(words: set[str], gold: set[str]) -> float:
    """F1 of two sets of words; 0 when the gold has numbers and none of them was predicted."""
    numbers = {word for word in gold if word.startswith("#") or _is_number(word)}
    if numbers and not numbers & words:
        return 0.0
    shared = len(words & gold)
    precision = shared / len(words) if words else 1.0
    recall = shared / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
