"""Verifiers of short answers: the last number of a solution, the letter of a choice, one of 27 kinds of BIG-Bench Hard.

Where an answer is searched, forms are tried from the strict to the loose and the first form that hits decides, even
where a looser one would have hit elsewhere: that is how the published numbers were made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tercet.verify.grade import Grade, is_texts, read_reference, unreadable

NUMBER = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+")
COMMA = re.compile(r"(\d),(\d)")

BBH: dict[str, str] = tomllib.loads(Path(__file__).with_name("bbh.toml").read_text(encoding="utf-8"))
GPQA_FALLBACKS = tuple(map(re.compile, (r"\(([A-D])\)", r"The correct answer is: \(?([A-D])\b", r"\b([A-D])\b")))
WRAP = r"""[\s:*$"'`]*"""  # what may stand between the answer phrase and the answer: "the answer is: **(B)**"


def gsm8k(completion: str, reference: str) -> Grade:
    """`gsm8k@1`: the last number of the completion, as a string, equals the label (Tülu 3 RLVR, current behaviour).

    Commas between digits are removed first. There is no numeric tolerance: "5.0" is not "5". Without any number the
    whole text is compared. The reference answer is a bare label ("72") or a GSM8K solution ending in "#### 72".
    """
    label = _without_commas(reference.rsplit("####", 1)[-1].strip())
    if not label:
        raise unreadable("gsm8k@1", "the number as reference answer, e.g. '72' or '... #### 72'", reference)
    text = _without_commas(completion)
    numbers = NUMBER.findall(text)
    if not numbers:
        return Grade(float(text.lower() == label.lower()), outcome="unparsed", detail="no number in the completion")
    answer = numbers[-1]
    return Grade(float(answer.lower() == label.lower()), answer)


def choice(completion: str, reference: str) -> Grade:
    """`choice@1`: the letter chosen after free reasoning, found by the first fallback that hits (MMLU 0-shot CoT).

    In order: "therefore, the answer is X"; "answer is X"; "X is correct"; a bracketed letter; the last stand-alone
    capital A to D on the first line that has one. The reference answer is a letter, "B" or "(B)".
    """
    label = choice_label("choice@1", reference)
    letter = _first(_fallbacks("ABCDEFGHIJ", "ABCD"), completion).upper()
    if not letter:
        return Grade(0.0, outcome="unparsed", detail="no answer letter in the completion")
    return Grade(float(letter == label), letter)


def letter(completion: str, reference: str) -> Grade:
    """`letter@1`: the letter in the closing phrase that was asked for, else by the fallbacks (MMLU, MMLU-Pro, AGIEval).

    The strict form is "Therefore, the answer is (X)", or with `brackets` false "Therefore, the answer is: X" with or
    without brackets; its last occurrence counts. The fallbacks are those of `choice@1`, for the letters of the row.
    `numbers["strict"]` is 1 when the strict form was there and right. Reference answer: JSON
    `{"answer": "C", "letters": "ABCDEFGHIJ", "brackets": true}`.
    """
    label, letters, form = letter_reference("letter@1", reference)
    strict = re.findall(form, completion)
    softer = _first(_fallbacks(letters, letters.replace("I", "")), completion)
    return _letter_grade(strict, softer, label)


def gpqa(completion: str, reference: str) -> Grade:
    """`gpqa@1`: the last "Therefore, the answer is (X)", else the last bracketed letter, and so on.

    After these: the letter that follows "The correct answer is: ", then the last letter that stands alone. Letters are
    capitals A to D; `numbers["strict"]` is as in `letter@1`. The reference answer is a letter.
    """
    label = reference.strip().strip("()")
    if not re.fullmatch("[A-D]", label):
        raise unreadable("gpqa@1", "one letter from A to D as reference answer, e.g. 'B'", reference)
    strict = re.findall(r"Therefore, the answer is \(([A-D])\)", completion)
    return _letter_grade(strict, _first(GPQA_FALLBACKS, completion, last=True), label)


def bbh(completion: str, reference: str) -> Grade:
    """`bbh@1`: BIG-Bench Hard after reasoning ("cot-v1"): an answer of the task's kind, best after the answer phrase.

    In order, the last occurrence of each: "So the answer is X"; "answer is X" or "answer: X"; the first X on the line
    after "answer:", then after "answer"; X anywhere; for options, a capital of the task's range that stands alone.
    Options stand in brackets, or bare directly after the phrase. Compared without regard to case. Three rows of the
    public data have a reference answer that is no option ("Monsters, Inc"); there the words themselves count as an
    answer. Reference answer: JSON `{"answer": "(A)", "task": "date_understanding"}`.
    """
    gold, task = bbh_reference("bbh@1", reference)
    kind = BBH[task]
    literal = "" if re.fullmatch(_bbh_answer(kind), gold) else gold
    found = _first(_bbh_forms(kind, literal), completion, last=True).strip(" '")
    if not found:
        return Grade(0.0, outcome="unparsed", detail=f"no answer of the kind that {task} asks for")
    expected = gold[1:-1] if re.fullmatch(r"\([A-Z]\)", gold) else gold
    return Grade(float(found.casefold() == expected.casefold()), found)


def phrase(completion: str, reference: str) -> Grade:
    """`phrase@1`: the reference answer stands between the first "the answer is " and the last character of its line.

    How lm-evaluation-harness reads BIG-Bench Hard: no fallback, no cleaning. Reference answer as for `bbh@1`.
    """
    gold = read_reference("phrase@1", reference, '{"answer": "(A)"}')["answer"]
    found = re.search(r"(?<=the answer is )(.*)(?=.)", completion)
    if found is None:
        return Grade(0.0, outcome="unparsed", detail='no "the answer is" in the completion')
    return Grade(float(found[1] == gold), found[1])


def contains(completion: str, reference: str) -> Grade:
    """`contains@1`: some alias occurs in the completion as given, in lower case, or capitalised as a sentence (PopQA).

    Containment rewards rambling, so `numbers["first_line"]` says whether the first line alone would do. Reference
    answer: a JSON list of aliases.
    """
    example = '["United States of America", "USA"]'
    value = read_reference("contains@1", reference, example)
    if not is_texts(value):
        raise unreadable("contains@1", f"a JSON list of aliases, none empty, e.g. {example}", reference)
    lines = completion.strip().splitlines()
    if not lines:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty", numbers={"first_line": 0.0})
    hit = _alias_in(completion, value)
    first_line = {"first_line": float(bool(_alias_in(lines[0], value)))}
    return Grade(float(bool(hit)), hit or lines[0], numbers=first_line)


class LetterReference(NamedTuple):
    """The right letter, the letters of the row, and the pattern of the closing phrase that was asked for."""

    answer: str
    letters: str
    strict: str = ""


def choice_label(verifier: str, reference: str) -> str:
    """The letter of a reference answer, "B" or "(B)"."""
    label = reference.strip().strip("().").upper()
    if not re.fullmatch("[A-J]", label):
        raise unreadable(verifier, "one letter from A to J as reference answer, e.g. 'B'", reference)
    return label


def letter_reference(verifier: str, reference: str) -> LetterReference:
    """The reference answer of `letter@1` and `letter@2`."""
    example = '{"answer": "C", "letters": "ABCD", "brackets": true}'
    value = read_reference(verifier, reference, example)
    label, letters = (value.get(key) for key in ("answer", "letters")) if isinstance(value, dict) else ("", "")
    if not isinstance(letters, str) or not re.fullmatch("[A-Z]{2,}", letters) or label not in list(letters):
        raise unreadable(verifier, f"an answer among the letters, e.g. {example}", reference)
    form = rf"\(([{letters}])\)" if value.get("brackets", True) else rf":?\s*\(?([{letters}])\b"
    return LetterReference(str(label), letters, rf"Therefore, the answer is\s*{form}")


def bbh_reference(verifier: str, reference: str) -> tuple[str, str]:
    """The reference answer of `bbh@1` and `bbh@2`: the answer, and the task."""
    example = '{"answer": "(A)", "task": "date_understanding"}'
    value = read_reference(verifier, reference, example)
    if not isinstance(value, dict) or str(value.get("task")) not in BBH or not str(value.get("answer") or "").strip():
        raise unreadable(verifier, f"an answer and one of the {len(BBH)} tasks, e.g. {example}", reference)
    return str(value["answer"]).strip(), str(value["task"])


def _letter_grade(strict: Sequence[str], softer: str, label: str) -> Grade:
    """The last strict form decides; `softer` is what the fallbacks found."""
    found = strict[-1] if strict else softer.upper()
    right = float(found == label)
    numbers = {"strict": right if strict else 0.0}
    if not found:
        return Grade(0.0, outcome="unparsed", detail="no answer letter in the completion", numbers=numbers)
    return Grade(right, found, numbers=numbers)


def _first(forms: Sequence[re.Pattern[str]], text: str, *, last: bool = False) -> str:
    """What the first form that hits has captured, at its first or last occurrence; empty when none hits."""
    for form in forms:
        matches = list(form.finditer(text)) if last else [match for match in [form.search(text)] if match]
        if matches:
            return next(group for group in matches[-1].groups() if group)
    return ""


@lru_cache(maxsize=64)
def _fallbacks(letters: str, bare: str) -> tuple[re.Pattern[str], ...]:
    """The fallback forms of a chosen letter. The words match in any case.

    The letter must be a capital unless it stands in brackets: "the answer is a bit ..." is no choice of A. Letters that
    stand alone come from `bare`, so that the word "I" is no answer; the last one on the first line with one counts.
    """
    bracketed = rf"\(([{letters}{letters.lower()}])\)"
    either = rf"(?:{bracketed}|\(?([{letters}])\b)"
    forms = (
        rf"(?i:therefore,?\s+the\s+answer\s+is)\s*:?\s*{either}",
        rf"(?i:answer\s+is)\s*:?\s*{either}",
        rf"(?:{bracketed}|\b([{letters}])\b\)?)(?i:\s+is\s+correct)",
        bracketed,
        rf"(?m:^).*\b([{bare}])\b",
    )
    return tuple(re.compile(form) for form in forms)


def _bbh_answer(kind: str) -> str:
    """The form of an answer of this kind; an option stands in brackets."""
    return rf"\(([A-{kind}a-{kind.lower()}])\)" if len(kind) == 1 else rf"((?i:{kind}))"


@lru_cache(maxsize=64)
def _bbh_forms(kind: str, literal: str) -> tuple[re.Pattern[str], ...]:
    """The forms of `bbh@1`; `literal`, where not empty, counts as an answer as well."""
    anywhere = after_phrase = _bbh_answer(kind)
    alone: list[str] = []
    if len(kind) == 1:
        after_phrase = rf"{anywhere}|([A-{kind}])\b"
        alone = [rf"(?!I)\b([A-{kind}])\b"]
    if literal:
        words = rf"((?i:{re.escape(literal)}))"
        anywhere, after_phrase = f"{words}|{anywhere}", f"{words}|{after_phrase}"
    forms = [
        rf"(?i:so\s+the\s+answer\s+is){WRAP}(?:{after_phrase})",
        rf"(?i:answer(?:\s+is|\s*:)){WRAP}(?:{after_phrase})",
        rf"(?i:answer:).*?(?:{anywhere})",
        rf"(?i:answer\b).*?(?:{anywhere})",
        anywhere,
        *alone,
    ]
    return tuple(re.compile(form) for form in forms)


def _alias_in(text: str, aliases: Sequence[str]) -> str:
    """The first alias that occurs, in the spelling that was found."""
    spellings = (spelling for alias in aliases for spelling in (alias, alias.lower(), alias.capitalize()))
    return next((spelling for spelling in spellings if spelling in text), "")


def _without_commas(text: str) -> str:
    return COMMA.sub(r"\1\2", text)
