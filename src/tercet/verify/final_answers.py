"""Short answers by what a completion states last: numbers as numbers, letters, and the kinds of BIG-Bench Hard.

The published protocols (answers.py) compare strings found by fixed patterns. These read the answer as a reader does:
stated.py says where it stands, numbers.py what a number is worth.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tercet.verify.answers import BBH, LetterReference, bbh_reference, choice_label, letter_reference
from tercet.verify.grade import Grade
from tercet.verify.numbers import number_reference, spelled
from tercet.verify.stated import final_letter, final_number, final_word, places, sentence

PAIRS = {"yes": ("yes", "no"), "true": ("true", "false"), "valid": ("valid", "invalid")}
CLOSING = re.compile(r"[\])}>](?:[\s,]*[\])}>])*")


def gsm8k(completion: str, reference: str) -> Grade:
    """`gsm8k@2`: the number that the completion states last equals the reference answer as a number, exactly.

    The reference answer is a number (`72`, `$1,234.50`, "18 dollars", a solution ending in `#### 72`), or JSON
    `{"answer": "3.14", "tolerance": 0.01}` where an answer may miss it by that much. Anything else is a VerifierError.
    A percent sign and units are not compared.
    """
    wanted = number_reference("gsm8k@2", reference)
    found = final_number(completion)
    if not found:
        return Grade(0.0, outcome="unparsed", detail="no number in the completion")
    number, text = found
    if number.value is None:
        return Grade(0.0, text, detail=f"{text!r:.60} is not one number, or can be read as several")
    return Grade(float(wanted.admits(number.value)), spelled(number.value))


def choice(completion: str, reference: str) -> Grade:
    """`choice@2`: the letter that the completion chooses last, found as in `letter@2` among A to J.

    The reference answer is a letter, "B" or "(B)".
    """
    return _letter_grade(completion, LetterReference(choice_label("choice@2", reference), "ABCDEFGHIJ"))


def letter(completion: str, reference: str) -> Grade:
    """`letter@2`: the letter that the completion chooses last, in capitals or not, in brackets, bold, a box, or bare.

    A choice taken back is none, nor is one of "A or B". Reference answer and `numbers["strict"]` as in `letter@1`.
    """
    how = letter_reference("letter@2", reference)
    strict = re.findall(how.strict, completion)[-1:] == [how.answer]
    return replace(_letter_grade(completion, how), numbers={"strict": float(strict)})


def bbh(completion: str, reference: str) -> Grade:
    """`bbh@2`: BIG-Bench Hard after reasoning: the answer that the completion states last, of the task's kind.

    Options are read as in `letter@2`, numbers as in `gsm8k@2`; "not valid" is "invalid"; the words of `word_sorting`
    may be parted by commas or lines, the brackets of `dyck_languages` by anything. Reference answer as in `bbh@1`.
    """
    gold, task = bbh_reference("bbh@2", reference)
    kind = BBH[task]
    if len(kind) == 1 and re.fullmatch(r"\([A-Z]\)", gold):
        found, expected = final_letter(completion, "ABCDEFGHIJKLMNOPQR"[: ord(kind) - ord("A") + 1]), gold[1:-1]
    elif pair := next((words for first, words in PAIRS.items() if first in kind), None):
        found, expected = final_word(completion, pair), gold.lower()
    elif r"\d" in kind:
        return gsm8k(completion, gold)
    elif task == "dyck_languages":
        found, expected = _brackets(completion), "".join(gold.split())
    else:
        expected = " ".join(words_of(gold))
        found = " ".join(_listed(completion, words_of(gold)))
    if not found:
        return Grade(0.0, outcome="unparsed", detail=f"no answer of the kind that {task} asks for")
    return Grade(float(found == expected), found)


def _letter_grade(completion: str, how: LetterReference) -> Grade:
    found = final_letter(completion, how.letters)
    if not found:
        return Grade(0.0, outcome="unparsed", detail="no answer letter in the completion")
    detail = "more than one answer letter" if len(found) > 1 else ""
    return Grade(float(found == how.answer), found, detail=detail)


def _brackets(completion: str) -> str:
    """The closing brackets behind the last statement that has some."""
    for place in places(completion):
        found = CLOSING.findall(place.text.lstrip().split("\n")[0] if place.stated else place.text)
        if found:
            return re.sub(r"[\s,]", "", found[0] if place.stated else found[-1])
    return ""


def _listed(completion: str, wanted: list[str]) -> list[str]:
    """The words behind the last statement, in one line or in several.

    They are the wanted ones where nothing but numbers, marks and "and" stands between these.
    """
    for place in places(completion):
        text = place.text.strip(' :*_`"\n').split("\n\n")[0] if place.stated else place.text.rstrip().split("\n")[-1]
        readings = [words_of(part) for part in (text.split("\n")[0], text, sentence(text), text.rpartition(":")[2])]
        if any(wanted in (words, [word for word in words if word != "and"]) for words in readings):
            return wanted
        if place.stated and readings[0]:
            return readings[0]
    return []


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without numbers and marks."""
    return re.findall(r"[^\W\d_][\w'&-]*", text.casefold())
