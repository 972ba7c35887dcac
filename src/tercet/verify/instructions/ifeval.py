r"""`ifeval@1` and `ifeval_reference@1`: the 25 constraints of IFEval (Zhou et al. 2023, arXiv:2311.07911).

Both decide as the public reference does, for better or worse: a keyword counts inside longer words, a bold run is one
highlight, a text without any letters is in every language. They differ in three places, where the reference
checks something else than the instruction says:

* keywords, forbidden words, and section and postscript markers are literal texts in ours, regular expressions in the
  reference;
* the n-th paragraph is the n-th non-blank one in ours; the reference counts the non-blank pieces and then indexes all
  of them, so that three line ends shift or empty the n-th;
* an argument of zero is used; the reference drops it and draws another at random.

Where the reference is random, both verifiers are not: a letter that is no letter ("#" and "!" in keys 1122 and 1129) is
counted as it is written, and the language detector has a fixed seed. JSON nested too deeply to read is not JSON (the
reference stops with an error).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from tercet.verify.grade import Grade, is_texts
from tercet.verify.instructions import language as shared
from tercet.verify.instructions.english import sentences, words
from tercet.verify.instructions.language import Argument, Checker, is_whole, language_of

RELATIONS = ("less than", "at least")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")
COUNTS = (
    "frequency", "let_frequency", "capital_frequency", "num_sentences", "num_words", "num_placeholders", "num_bullets",
    "num_highlights", "num_sections",
)  # fmt: skip
ARGUMENTS: dict[str, Argument] = {
    **dict.fromkeys(COUNTS, (is_whole, "a whole number from 0")),
    **dict.fromkeys(("num_paragraphs", "nth_paragraph"), (lambda value: is_whole(value, 1), "a whole number from 1")),
    **dict.fromkeys(("keywords", "forbidden_words"), (is_texts, "a list of texts")),
    **dict.fromkeys(
        ("relation", "let_relation", "capital_relation"),
        (lambda value: value in RELATIONS, " or ".join(map(repr, RELATIONS))),
    ),
    "letter": (lambda value: isinstance(value, str) and len(value.strip()) == 1, "a single character"),
}
OTHER: Argument = (lambda value: isinstance(value, str) and bool(value.strip()), "a text that is not blank")


def ifeval(completion: str, reference: str) -> Grade:
    """`ifeval@1`: 1 if the completion follows every constraint of the row loosely (prompt-level loose accuracy).

    The reference answer is a row of the public data as JSON: `{"key": 1000, "prompt": "...", "instruction_id_list":
    ["punctuation:no_comma"], "kwargs": [{}]}`. `numbers` gives strict and loose, and how many of how many constraints
    were followed; `detail` names what failed strictly.
    """
    return _grade(completion, reference, "ifeval@1", CHECKERS)


def ifeval_reference(completion: str, reference: str) -> Grade:
    """`ifeval_reference@1`: as `ifeval@1`, with the reference's own reading of keywords and of the n-th paragraph."""
    return _grade(completion, reference, "ifeval_reference@1", REFERENCE)


def _grade(completion: str, reference: str, verifier: str, checkers: dict[str, Checker]) -> Grade:
    checks = []
    for name, kwargs in shared.read_instructions(reference, verifier)[0]:
        given = {key: value for key, value in kwargs.items() if value not in ("", [])}  # as unset as a null
        checks.append((name, shared.bind(name, given, verifier, checkers, (ARGUMENTS, OTHER))))
    return shared.grade_instructions(completion, checks)


def _compare(count: int, bound: int, relation: str) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _existence_regex(text: str, keywords: list[str]) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


def _frequency_regex(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(sum(1 for _ in re.finditer(keyword.strip(), text, re.IGNORECASE)), frequency, relation)


def _without(text: str, patterns: Iterable[str]) -> bool:
    return not any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def _language(text: str, language: str) -> bool:
    return language_of(text) in (language, None)


def _pieces(parts: list[str]) -> list[str]:
    """The parts between dividers, without a blank first and last one; none at all if a part between is blank."""
    inner = [part for i, part in enumerate(parts) if part.strip() or 0 < i < len(parts) - 1]
    return inner if all(part.strip() for part in inner) else []


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    filled = [part for part in text.split("\n\n") if part.strip()]
    right = len(filled) == num_paragraphs and nth_paragraph <= num_paragraphs
    return right and _first_word(filled[nth_paragraph - 1]) == first_word.lower()


def _nth_paragraph_unfiltered(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    right = sum(bool(part.strip()) for part in parts) == num_paragraphs and nth_paragraph <= num_paragraphs
    return right and _first_word(parts[nth_paragraph - 1]) == first_word.lower()


def _first_word(paragraph: str) -> str | None:
    """The first word in lower case, without leading quotes and up to its first mark; None for a blank paragraph."""
    found = paragraph.split(maxsplit=1)
    return re.split(r"[.,?!'\"]", found[0].lstrip("'").lstrip('"'), maxsplit=1)[0].lower() if found else None


def _postscript_regex(text: str, postscript_marker: str) -> bool:
    return re.search(POSTSCRIPTS.get(postscript_marker, postscript_marker.lower()), text.lower()) is not None


POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def _bullets(text: str, num_bullets: int) -> bool:
    # A lone "*" takes the next line as its own, so "*\n* a" is one bullet.
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    # In a bold run the single pattern finds only the empty edges, so it is counted once.
    found = re.findall(r"\*([^\n*]*)\*", text) + re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(run.strip()) for run in found) >= num_highlights


def _sections_regex(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{section_spliter.strip()}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    parts = _pieces(text.split("******"))
    return len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


CHECKERS: dict[str, Checker] = {
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: _compare(
        sum(word.isupper() for word in words(text)), capital_frequency, capital_relation
    ),
    "change_case:english_capital": lambda text: text.isupper() and _language(text, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and _language(text, "en"),
    "combination:repeat_prompt":
        lambda text, prompt_to_repeat: text.strip().lower().startswith(prompt_to_repeat.strip().lower()),
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders":
        lambda text, num_placeholders: len(re.findall(r"\[.*?\]", text)) >= num_placeholders,
    "detectable_content:postscript": lambda text, postscript_marker: _postscript_regex(
        text, postscript_marker if postscript_marker in POSTSCRIPTS else re.escape(postscript_marker)
    ),
    "detectable_format:constrained_response": lambda text: any(answer in text for answer in ANSWERS),
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: _sections_regex(
        text, re.escape(section_spliter.strip()), num_sections
    ),
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": lambda text, keywords: _existence_regex(text, list(map(re.escape, keywords))),
    "keywords:forbidden_words":
        lambda text, forbidden_words: _without(text, (rf"(?<!\w){re.escape(word)}(?!\w)" for word in forbidden_words)),
    "keywords:frequency": lambda text, keyword, frequency, relation: _frequency_regex(
        text, re.escape(keyword.strip()), frequency, relation
    ),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: _compare(
        text.lower().count(letter.strip().lower()), let_frequency, let_relation
    ),
    "language:response_language": _language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "length_constraints:number_paragraphs":
        lambda text, num_paragraphs: len(_pieces(re.split(r"\s?\*\*\*\s?", text))) == num_paragraphs,
    "length_constraints:number_sentences":
        lambda text, num_sentences, relation: _compare(len(sentences(text)), num_sentences, relation),
    "length_constraints:number_words":
        lambda text, num_words, relation: _compare(len(re.findall(r"\w+", text)), num_words, relation),
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker":
        lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": _quotation,
}  # fmt: skip

# The reference's own reading, where ours is another.
QUIRKS: dict[str, Checker] = {
    "detectable_content:postscript": _postscript_regex,
    "detectable_format:multiple_sections": _sections_regex,
    "keywords:existence": _existence_regex,
    "keywords:forbidden_words":
        lambda text, forbidden_words: _without(text, (rf"\b{word}\b" for word in forbidden_words)),
    "keywords:frequency": _frequency_regex,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_unfiltered,
}  # fmt: skip
REFERENCE = CHECKERS | QUIRKS
