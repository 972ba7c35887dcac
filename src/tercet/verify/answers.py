"""Judges of short answers: the last number of a solution, the letter of a multiple-choice answer."""

from __future__ import annotations

import re

from tercet.verify.grade import Grade, VerifierError

NUMBER = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+")
COMMA = re.compile(r"(\d),(\d)")

# Explicit phrases may name any of ten options; a bare capital counts only up to D, so that the word "I" is no answer.
# The words match in any case. The letter must be a capital unless it stands in brackets: "the answer is a bit ..." is
# no choice of A.
LETTER = r"(?:\(([A-Ja-j])\)|\(?([A-J])\b)"
FALLBACKS = (
    re.compile(rf"(?i:therefore,?\s+the\s+answer\s+is)\s*:?\s*{LETTER}"),
    re.compile(rf"(?i:answer\s+is)\s*:?\s*{LETTER}"),
    re.compile(r"(?:\(([A-Ja-j])\)|\b([A-J])\b\)?)(?i:\s+is\s+correct)"),
    re.compile(r"\(([A-Ja-j])\)"),
    re.compile(r".*\b([A-D])\b"),
)


def gsm8k(completion: str, truth: str) -> Grade:
    """`gsm8k@1`: the last number of the completion, as a string, equals the label (Tülu 3 RLVR, current behaviour).

    Commas between digits are removed first. There is no numeric tolerance: "5.0" is not "5". Without any number the
    whole text is compared. The truth is a bare label ("72") or a GSM8K solution ending in "#### 72".
    """
    label = _without_commas(truth.rsplit("####", 1)[-1].strip())
    if not label:
        raise VerifierError(f"gsm8k@1 expects the number as truth, e.g. '72' or '... #### 72'; got {truth!r:.80}")
    text = _without_commas(completion)
    numbers = NUMBER.findall(text)
    if not numbers:
        return Grade(float(text.lower() == label.lower()), outcome="unparsed", detail="no number in the completion")
    answer = numbers[-1]
    return Grade(float(answer.lower() == label.lower()), answer)


def choice(completion: str, truth: str) -> Grade:
    """`choice@1`: the letter chosen after free reasoning, found by the first fallback that hits (MMLU 0-shot CoT).

    In order: "therefore, the answer is X"; "answer is X"; "X is correct"; a bracketed letter; the last stand-alone
    capital A to D on the first line that has one. The truth is a letter, "B" or "(B)".
    """
    label = truth.strip().strip("().").upper()
    if not re.fullmatch("[A-J]", label):
        raise VerifierError(f"choice@1 expects one letter from A to J as truth, e.g. 'B'; got {truth!r:.80}")
    for pattern in FALLBACKS:
        if match := pattern.search(completion):
            letter = next(group for group in match.groups() if group).upper()
            return Grade(float(letter == label), letter)
    return Grade(0.0, outcome="unparsed", detail="no answer letter in the completion")


def _without_commas(text: str) -> str:
    return COMMA.sub(r"\1\2", text)
