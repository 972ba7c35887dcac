"""The verifier of DROP: an answer is a list of spans, compared as sets of normalised words (exact match and F1).

The rules are those of the official evaluation; the reference alternatives are tried one by one and the best counts.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tercet.verify.grade import Grade, is_texts, read_reference, unreadable

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def drop(completion: str, reference: str) -> Grade:
    """`drop@1`: the best F1 of the completion, taken as one span, against any gold answer; `numbers` has em and f1.

    The reference answer is a JSON list of alternatives, each a list of spans; a number or a date is one span:
    `[["12"], ["3 May 1990"], ["Smith", "Jones"]]`.
    """
    example = '[["12"], ["Smith", "Jones"]]'
    golds = read_reference("drop@1", reference, example)
    if not isinstance(golds, list) or not golds or not all(map(is_texts, golds)):
        raise unreadable("drop@1", f"a list of alternatives, each a list of spans, e.g. {example}", reference)
    answer = completion.strip()
    scores = [em_f1(answer, gold) for gold in golds]
    em, f1 = max(em for em, _ in scores), max(f1 for _, f1 in scores)
    if not answer:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty", numbers={"em": 0.0, "f1": 0.0})
    return Grade(f1, answer, numbers={"em": em, "f1": f1})


def em_f1(predicted: str, gold: Sequence[str]) -> tuple[float, float]:
    """Exact match (0 or 1) and F1 (0 to 1, two decimals) of a predicted span against the spans of one gold answer.

    The official evaluation pairs spans one to one so that the sum of their F1 is largest, and divides it by the number
    of spans of the longer list; a completion is one span, so its best pair counts.
    """
    text, gold_texts = normalise(predicted), [normalise(span) for span in gold]
    words = set(text.split())
    best = max(_bag_f1(words, set(other.split())) for other in gold_texts)
    return float([text] == gold_texts), round(best / len(gold_texts), 2)


def normalise(span: str) -> str:
    """Lower-case words without punctuation and articles, numbers as floats: "The top-5" is "top 5.0".

    Words end at spaces and hyphens, so a minus sign is lost. Only a word that reads as a number keeps its dot.
    """
    words = (_normal_word(word) for word in re.split("[ -]", span))
    return " ".join(word for word in words if word)


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
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & words:
        return 0.0
    shared = len(words & gold)
    precision = shared / len(words) if words else 1.0
    recall = shared / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
