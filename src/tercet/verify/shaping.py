"""Verifiers that pay rewards and belong to no benchmark: short answers, lengths, formats, and weighted sums.

Definitions follow the open-instruct verifiers (string_matcher, string_f1, flan, max_length, up_to_max_length).
"""

from __future__ import annotations

import math
import re
import string as characters
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tercet.outside import read_json
from tercet.sandbox.workers import WorkerError, WorkerTimeoutError, call
from tercet.verify import check_reference, verifier
from tercet.verify.grade import Grade, is_number, read_reference, unreadable

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", characters.punctuation)
FLAN = "The answer is:"
SCALE = 32_768.0  # the published M of the length rewards
INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
REASONED = re.compile(rf"\s*<think>{INSIDE}</think>\s*<answer>({INSIDE})</answer>\s*", re.DOTALL)
PATTERN_SECONDS = 2.0


def string(completion: str, reference: str) -> Grade:
    """`string@1`: the text in the last `<answer>...</answer>` is the reference answer, both SQuAD-normalised.

    Without the tags there is no answer. SQuAD normalisation: lower case, no punctuation, no articles, single blanks.
    """
    label = _label("string@1", reference)
    if "<answer>" not in completion or "</answer>" not in completion:
        return Grade(0.0, outcome="unparsed", detail="no <answer>...</answer> in the completion")
    answer = completion.rsplit("<answer>", 1)[1].split("</answer>", 1)[0].strip()
    return Grade(float(squad(answer) == label), answer)


def flan(completion: str, reference: str) -> Grade:
    """`flan@1`: what follows the last "The answer is:", or all where it is missing, is the reference answer.

    Both are SQuAD-normalised.
    """
    label = _label("flan@1", reference)
    answer = completion.rsplit(FLAN, 1)[-1].strip()
    right = float(squad(answer) == label)
    return Grade(right, answer) if FLAN in completion else Grade(right, outcome="unparsed", detail=f"no {FLAN!r}")


def f1(completion: str, reference: str) -> Grade:
    """`f1@1`: F1 of the SQuAD-normalised words of completion and reference answer, as bags.

    Only what follows the last `</think>` counts, and answer tags are not words. The reference answer is a text, or a
    JSON list of texts of which the best counts. `numbers`: precision and recall against that label.
    """
    labels = _labels(reference)
    answer = re.sub(r"</?answer>", " ", completion.rsplit("</think>", 1)[-1])
    words = squad(answer).split()
    if not words:
        return Grade(0.0, outcome="unparsed", detail="the completion has no words")
    score, precision, recall = max(_overlap(words, label.split()) for label in labels)
    return Grade(score, " ".join(words)[:500], numbers={"precision": precision, "recall": recall})


def length(completion: str, reference: str) -> Grade:
    """`length@1`: 1 - |n - L| / M for n words; below 0 where n misses L by more than M, as in the published formula.

    The published reward counts the tokens of a tokenizer; this counts words (split at whitespace), which needs none
    and means the same for every model. Reference answer: L, `200`, or JSON `{"length": 200, "scale": 400}`; M is
    32,768 unless given. An empty completion gets 0 and not more.
    """
    wanted, scale = _wanted("length@1", reference)
    return _length(completion, lambda words: 1.0 - abs(words - wanted) / scale)


def up_to_length(completion: str, reference: str) -> Grade:
    """`up_to_length@1`: 1 for up to L words, 1 - (n - L) / M for n > L; words and reference answer as in `length@1`."""
    wanted, scale = _wanted("up_to_length@1", reference)
    return _length(completion, lambda words: 1.0 - max(0.0, words - wanted) / scale)


def form(completion: str, reference: str) -> Grade:
    r"""`format@1`: the whole completion matches the reference answer, a regular expression (`.` matches newlines too).

    An empty reference answer asks for `<think>...</think> <answer>...</answer>`, each tag once, nothing around but
    blanks (DeepSeek-R1). The answer in the Grade is what the group `(?P<answer>...)` has caught. A pattern that
    takes longer than two seconds is stopped.
    """
    if not reference:
        match = REASONED.fullmatch(completion)
        return Grade(float(match is not None), match[1].strip() if match else "")
    try:
        re.compile(reference, re.DOTALL)
    except re.error as error:
        raise unreadable("format@1", "a regular expression as reference answer", reference, error) from None
    try:
        found = call("tercet.verify.shaping:matched", (reference, completion), PATTERN_SECONDS)
    except WorkerTimeoutError as error:
        return Grade(0.0, outcome="timeout", detail=str(error))
    except WorkerError as error:
        return Grade(0.0, outcome="error", detail=str(error))
    return Grade(float(found is not None), found or "")


def matched(pattern: str, text: str) -> str | None:
    """What the group `answer` caught in a match of the whole text, if any; None without a match."""
    match = re.fullmatch(pattern, text, re.DOTALL)
    return (match.groupdict().get("answer") or "") if match else None


class WeightedVerifier(NamedTuple):
    """One part of a sum: its verifier, that one's reference answer, and what its score counts."""

    verifier: str
    reference: str
    weight: float = 1.0


def weighted(completion: str, reference: str) -> Grade:
    """`sum@1`: several verifiers of one completion; the weighted scores add up.

    Reference answer: JSON `[{"verifier": "gsm8k@1", "reference": "72", "weight": 1.0}, {"verifier": "format@1",
    "weight": 0.1}]`; reference answer and weight may be absent (empty, and 1). `numbers` holds each part's own score
    by its name, a second one of a name as `name#2`. An error of a part counts as its score 0 and is the outcome.
    """
    parts = parts_of(reference)
    return added(parts, [verifier(part.verifier)(completion, part.reference) for part in parts])


@lru_cache(maxsize=8192)
def parts_of(reference: str) -> tuple[WeightedVerifier, ...]:
    """The parts of a `sum@1` reference answer, each with a known verifier and a reference answer that it can read."""
    example = '[{"verifier": "gsm8k@1", "reference": "72", "weight": 1.0}]'
    value = read_reference("sum@1", reference, example)
    if not isinstance(value, list) or not value or not all(map(_is_part, value)):
        raise unreadable("sum@1", f"a JSON list of parts, {example}, none a sum@1", reference)
    found = [(one["verifier"], one.get("reference", ""), float(one.get("weight", 1.0))) for one in value]
    for name, own, _ in found:
        check_reference(name, own)
    return tuple(WeightedVerifier(*part) for part in found)


def added(parts: Sequence[WeightedVerifier], grades: Sequence[Grade]) -> Grade:
    """The grade of a sum. Its answer is the first that a part extracted; each detail names its verifier."""
    score = math.fsum(part.weight * counted(grade) for part, grade in zip(parts, grades, strict=True))
    outcomes = [grade.outcome for grade in grades]
    outcome = next((one for one in ("error", "timeout", "truncated", "graded") if one in outcomes), "unparsed")
    details = [f"{part.verifier}: {grade.detail}" for part, grade in zip(parts, grades, strict=True) if grade.detail]
    answer = next((grade.answer for grade in grades if grade.answer), "")
    names = [part.verifier for part in parts]
    return Grade(score, answer, outcome, "; ".join(details), by_name(names, [grade.score for grade in grades]))


def counted(grade: Grade) -> float:
    """The score that counts: an error of the verifier says nothing about the answer and earns nothing."""
    return 0.0 if grade.outcome == "error" else grade.score


def by_name(names: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Scores by the names of their verifiers; a name's second score is `name#2`."""
    found: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for name, score in zip(names, scores, strict=True):
        seen[name] += 1
        found[name if seen[name] == 1 else f"{name}#{seen[name]}"] = score
    return found


def squad(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single blanks."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def _label(verifier: str, reference: str) -> str:
    if not (label := squad(reference)):
        raise unreadable(verifier, "as reference answer a text with a word besides articles", reference)
    return label


def _labels(reference: str) -> list[str]:
    try:
        value = read_json(reference)
    except ValueError:
        value = reference
    several = isinstance(value, list) and bool(value) and all(isinstance(label, str) for label in value)
    return [_label("f1@1", label) for label in (value if several else [reference])]


def _overlap(words: list[str], label: list[str]) -> tuple[float, float, float]:
    """F1, precision and recall of two bags of words."""
    common = (Counter(words) & Counter(label)).total()
    precision, recall = common / len(words), common / len(label)
    return 2 * common / (len(words) + len(label)), precision, recall


def _wanted(verifier: str, reference: str) -> tuple[float, float]:
    """L and M of a length reward."""
    value: Any = read_reference(verifier, reference, '200 or {"length": 200, "scale": 400}')
    fields = value if isinstance(value, dict) else {"length": value}
    wanted, scale = (fields.get(key, default) for key, default in (("length", -1), ("scale", SCALE)))
    if set(fields) - {"length", "scale"} or not all(map(is_number, (wanted, scale))) or wanted < 0 or scale <= 0:
        form = '200 or {"length": 200, "scale": 400} with a positive scale'
        raise unreadable(verifier, f"a number of words from 0 as reference answer, {form}", reference)
    return float(wanted), float(scale)


def _length(completion: str, score: Callable[[int], float]) -> Grade:
    words = len(completion.split())
    if not words:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty", numbers={"words": 0.0})
    return Grade(score(words), str(words), numbers={"words": float(words)})


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= {"verifier", "reference", "weight"}
        and isinstance(value.get("verifier"), str)
        and value["verifier"] != "sum@1"
        and isinstance(value.get("reference", ""), str)
        and is_number(value.get("weight", 1.0))
    )
