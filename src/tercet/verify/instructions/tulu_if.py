"""`tulu_if@1`: the 25 instruction constraints of Tülu 3's RLVR training, with the corrected semantics.

They resemble the IFEval benchmark's checkers and are not the same: counts are "exactly N", words are substrings,
"around" is a tolerance. Four functions were wrong during the published runs (placeholders always passed, choice was
reversed, "!" ended no sentence, "around" meant exactly for capital words); here they do what the instruction says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tercet.verify.grade import Grade, is_text, is_texts, read_reference, unreadable
from tercet.verify.instructions.language import Argument, Check, Checker, bind, is_whole

ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
QUANTIFIERS = ("at least", "at most", "around")
UNCHECKED = ("func_name", "text")  # "text" may hold the constraint's own sentence; it is not an argument

# A space after . ? or ! ends a sentence, except after forms like "e.g." and "Mr."
SENTENCE_END = re.compile(r"(?<=[.?!])(?<!\w\.\w[.?!])(?<![A-Z][a-z]\.)\s")

ARGUMENTS: dict[str, Argument] = {
    "N": (is_whole, "a whole number from 0"),
    "i": (lambda value: is_whole(value, 1), "a whole number from 1"),
    "quantifier": (lambda value: value in QUANTIFIERS, f"one of {', '.join(QUANTIFIERS)}"),
    "letter": (lambda value: isinstance(value, str) and len(value) == 1, "a single character"),
    **dict.fromkeys(("keyword_list", "forbidden_words", "options"), (is_texts, "a list of texts")),
}
OTHER: Argument = (is_text, "a text")


def tulu_if(completion: str, reference: str) -> Grade:
    """`tulu_if@1`: 1 if the completion follows every constraint of the row, else 0; `detail` names what failed.

    The reference answer is JSON: one constraint `{"func_name": "validate_word_constraint", "N": 30, "quantifier":
    "at most"}`, as in the published rows (null arguments are ignored), or a list of constraints that must all hold.
    An empty completion follows nothing, although it has no comma.
    """
    constraints = [(str(spec.get("func_name")), _check(spec)) for spec in read_constraints(reference)]
    text = _clean(completion)
    if not text:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty")
    failed = []
    for name, check in constraints:
        try:
            followed = check(text)
        except Exception as error:
            return Grade(0.0, outcome="error", detail=f"{name}: {type(error).__name__}: {error}")
        if not followed:
            failed.append(name)
    return Grade(0.0, detail=f"failed: {', '.join(failed)}") if failed else Grade(1.0)


def read_constraints(reference: str) -> list[dict[str, Any]]:
    """The constraints of a reference answer, one or a list of them."""
    example = '{"func_name": "validate_word_constraint", "N": 30, "quantifier": "at most"} or a list of such objects'
    value = read_reference("tulu_if@1", reference, example)
    specs = [value] if isinstance(value, dict) else value
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, dict) for spec in specs):
        raise unreadable("tulu_if@1", f"as reference answer {example}", reference)
    return specs


def _check(spec: Mapping[str, Any]) -> Check:
    """The check of one constraint; nulls and the constraint's sentence are left aside."""
    given = {key: value for key, value in spec.items() if value is not None and key not in UNCHECKED}
    return bind(spec.get("func_name"), given, "tulu_if@1", FUNCTIONS, (ARGUMENTS, OTHER))


def _clean(completion: str) -> str:
    for marker in ROLE_MARKERS:
        completion = completion.replace(marker, "")
    return completion.strip()


def _compare(count: int, target: int, quantifier: str, tolerance: int) -> bool:
    if quantifier == "around":
        return abs(count - target) <= tolerance
    return count >= target if quantifier == "at least" else count <= target


def _tenth(target: int) -> int:
    return max(round(0.1 * target), 1)


def _language(text: str, language: str) -> bool:
    import langdetect

    langdetect.DetectorFactory.seed = 0  # its sampling is random otherwise
    return langdetect.detect(text) == language


def _divided_paragraphs(text: str, N: int) -> bool:
    parts = [part.strip() for part in text.split("* * *")]
    return len(parts) == N and all(parts)


def _paragraph_start(text: str, N: int, first_word: str, i: int) -> bool:
    parts = text.split("\n\n")
    return len(parts) == N and i <= N and parts[i - 1].strip().startswith(first_word)


def _sections(text: str, N: int, section_splitter: str) -> bool:
    parts = text.split(section_splitter)
    return len(parts) - (not parts[0]) == N


def _json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


FUNCTIONS: dict[str, Checker] = {
    "verify_keywords": lambda text, keyword_list: all(word.lower() in text.lower() for word in keyword_list),
    "verify_keyword_frequency": lambda text, word, N: re.findall(r"\w+", text.lower()).count(word.lower()) == N,
    "validate_forbidden_words": lambda text, forbidden_words: all(
        w.lower() not in text.lower() for w in forbidden_words
    ),
    "verify_letter_frequency": lambda text, letter, N: text.count(letter) == N,
    "validate_response_language": _language,
    "verify_paragraph_count": _divided_paragraphs,
    "validate_word_constraint": lambda text, N, quantifier: _compare(len(text.split()), N, quantifier, _tenth(N)),
    "verify_sentence_constraint": lambda text, N, quantifier: _compare(len(SENTENCE_END.split(text)), N, quantifier, 1),
    "validate_paragraphs": _paragraph_start,
    "verify_postscript": lambda text, postscript_marker: bool(text.partition(postscript_marker)[2].strip()),
    "validate_placeholders": lambda text, N: len(re.findall(r"\[.*?\]", text)) >= N,
    "verify_bullet_points": lambda text, N: sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N,
    "validate_title": lambda text: re.search(r"<<.*?>>", text) is not None,
    "validate_choice": lambda text, options: any(option in text for option in options),
    "validate_highlighted_sections": lambda text, N: len(re.findall(r"\*.*?\*", text)) >= N,
    "validate_sections": _sections,
    "validate_json_format": _json,
    "validate_repeat_prompt": lambda text, original_prompt: text.startswith(original_prompt),
    "validate_two_responses": _two_responses,
    "validate_uppercase": lambda text: text == text.upper(),
    "validate_lowercase": lambda text: text == text.lower(),
    "validate_frequency_capital_words": lambda text, N, quantifier: _compare(
        len(re.findall(r"\b[A-Z]+\b", text)), N, quantifier, _tenth(N)
    ),
    "validate_end": lambda text, end_phrase: text.endswith(end_phrase),
    "validate_quotation": lambda text: text.startswith('"') and text.endswith('"'),
    "validate_no_commas": lambda text: "," not in text,
}
