"""`tulu_if@1`: the 25 instruction constraints of Tülu 3's RLVR training, with the corrected semantics.

They resemble the IFEval benchmark's checkers and are not the same: counts are "exactly N", words are substrings,
"around" is a tolerance. Four functions were wrong during the published runs (placeholders always passed, choice was
reversed, "!" ended no sentence, "around" meant exactly for capital words); here they do what the instruction says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tercet.verify.grade import Grade, VerifierError

ROLE_MARKERS = ("<|system|>", "<|user|>", "<|assistant|>")
QUANTIFIERS = ("at least", "at most", "around")
UNCHECKED = ("func_name", "text")  # "text" may hold the constraint's own sentence; it is not an argument

# A space after . ? or ! ends a sentence, except after forms like "e.g." and "Mr."
SENTENCE_END = re.compile(r"(?<=[.?!])(?<!\w\.\w[.?!])(?<![A-Z][a-z]\.)\s")

EXPECTED = {
    "N": "a whole number from 0",
    "i": "a whole number from 1",
    "quantifier": f"one of {', '.join(QUANTIFIERS)}",
    "letter": "a single character",
    "keyword_list": "a list of words",
    "forbidden_words": "a list of words",
    "options": "a list of texts",
}


def tulu_if(completion: str, truth: str) -> Grade:
    """`tulu_if@1`: 1 if the completion follows every constraint of the truth, else 0; `detail` names what failed.

    The truth is JSON: one constraint `{"func_name": "validate_word_constraint", "N": 30, "quantifier": "at most"}`,
    as in the published rows (null arguments are ignored), or a list of constraints that must all hold. An empty
    completion follows nothing, although it has no comma.
    """
    constraints = [(_arguments(spec), spec["func_name"]) for spec in _parse(truth)]
    text = _clean(completion)
    if not text:
        return Grade(0.0, outcome="unparsed", detail="the completion is empty")
    failed = []
    for arguments, name in constraints:
        try:
            followed = FUNCTIONS[name][0](text, *arguments)
        except Exception as error:
            return Grade(0.0, outcome="error", detail=f"{name}: {type(error).__name__}: {error}")
        if not followed:
            failed.append(name)
    return Grade(0.0, detail=f"failed: {', '.join(failed)}") if failed else Grade(1.0)


def check_constraint(constraint: dict[str, Any], text: str) -> bool:
    """Whether `text` follows one constraint object; a checker's own exception passes through."""
    arguments = _arguments(constraint)
    return FUNCTIONS[constraint["func_name"]][0](_clean(text), *arguments)


def _parse(truth: str) -> list[dict[str, Any]]:
    example = '{"func_name": "validate_word_constraint", "N": 30, "quantifier": "at most"} or a list of such objects'
    try:
        value = json.loads(truth)
    except json.JSONDecodeError as error:
        raise VerifierError(f"tulu_if@1 expects JSON as truth, {example}; got {truth!r:.80} ({error.msg})") from None
    specs = [value] if isinstance(value, dict) else value
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, dict) for spec in specs):
        raise VerifierError(f"tulu_if@1 expects as truth {example}; got {truth!r:.80}")
    return specs


def _arguments(spec: dict[str, Any]) -> list[Any]:
    """The arguments of a constraint in the order of its function; nulls and the sentence are left aside."""
    name = spec.get("func_name")
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise VerifierError(f"unknown constraint func_name {name!r}; expected one of {', '.join(sorted(FUNCTIONS))}")
    given = {key: value for key, value in spec.items() if value is not None and key not in UNCHECKED}
    names = FUNCTIONS[name][1]
    if set(given) != set(names):
        expected = ", ".join(names) or "no arguments"
        raise VerifierError(f"constraint {name} expects {expected}; got {', '.join(sorted(given)) or 'none'}")
    for key, value in given.items():
        if not _fits(key, value):
            raise VerifierError(f"constraint {name}: {key} must be {EXPECTED.get(key, 'a text')}; got {value!r:.80}")
    return [given[key] for key in names]


def _fits(key: str, value: Any) -> bool:
    if key in ("N", "i"):
        return isinstance(value, int) and not isinstance(value, bool) and value >= (1 if key == "i" else 0)
    if key == "quantifier":
        return value in QUANTIFIERS
    if key in ("keyword_list", "forbidden_words", "options"):
        return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)
    return isinstance(value, str) and bool(value) and (key != "letter" or len(value) == 1)


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


def _keywords(text: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def _keyword_frequency(text: str, word: str, count: int) -> bool:
    return re.findall(r"\w+", text.lower()).count(word.lower()) == count


def _forbidden_words(text: str, words: list[str]) -> bool:
    return not any(word.lower() in text.lower() for word in words)


def _letter_frequency(text: str, letter: str, count: int) -> bool:
    return text.count(letter) == count


def _language(text: str, language: str) -> bool:
    import langdetect

    langdetect.DetectorFactory.seed = 0  # its sampling is random otherwise
    return langdetect.detect(text) == language


def _divided_paragraphs(text: str, count: int) -> bool:
    parts = [part.strip() for part in text.split("* * *")]
    return len(parts) == count and all(parts)


def _words(text: str, count: int, quantifier: str) -> bool:
    return _compare(len(text.split()), count, quantifier, _tenth(count))


def _sentences(text: str, count: int, quantifier: str) -> bool:
    return _compare(len(SENTENCE_END.split(text)), count, quantifier, 1)


def _paragraph_start(text: str, count: int, first_word: str, index: int) -> bool:
    parts = text.split("\n\n")
    return len(parts) == count and index <= count and parts[index - 1].strip().startswith(first_word)


def _postscript(text: str, marker: str) -> bool:
    return bool(text.partition(marker)[2].strip())


def _placeholders(text: str, count: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= count


def _bullets(text: str, count: int) -> bool:
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == count


def _title(text: str) -> bool:
    return re.search(r"<<.*?>>", text) is not None


def _choice(text: str, options: list[str]) -> bool:
    return any(option in text for option in options)


def _highlights(text: str, count: int) -> bool:
    return len(re.findall(r"\*.*?\*", text)) >= count


def _sections(text: str, count: int, splitter: str) -> bool:
    parts = text.split(splitter)
    return len(parts) - (not parts[0]) == count


def _json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _repeat(text: str, prompt: str) -> bool:
    return text.startswith(prompt)


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def _uppercase(text: str) -> bool:
    return text == text.upper()


def _lowercase(text: str) -> bool:
    return text == text.lower()


def _capital_words(text: str, count: int, quantifier: str) -> bool:
    return _compare(len(re.findall(r"\b[A-Z]+\b", text)), count, quantifier, _tenth(count))


def _end(text: str, phrase: str) -> bool:
    return text.endswith(phrase)


def _quotation(text: str) -> bool:
    return text.startswith('"') and text.endswith('"')


def _no_commas(text: str) -> bool:
    return "," not in text


FUNCTIONS: dict[str, tuple[Callable[..., bool], tuple[str, ...]]] = {
    "verify_keywords": (_keywords, ("keyword_list",)),
    "verify_keyword_frequency": (_keyword_frequency, ("word", "N")),
    "validate_forbidden_words": (_forbidden_words, ("forbidden_words",)),
    "verify_letter_frequency": (_letter_frequency, ("letter", "N")),
    "validate_response_language": (_language, ("language",)),
    "verify_paragraph_count": (_divided_paragraphs, ("N",)),
    "validate_word_constraint": (_words, ("N", "quantifier")),
    "verify_sentence_constraint": (_sentences, ("N", "quantifier")),
    "validate_paragraphs": (_paragraph_start, ("N", "first_word", "i")),
    "verify_postscript": (_postscript, ("postscript_marker",)),
    "validate_placeholders": (_placeholders, ("N",)),
    "verify_bullet_points": (_bullets, ("N",)),
    "validate_title": (_title, ()),
    "validate_choice": (_choice, ("options",)),
    "validate_highlighted_sections": (_highlights, ("N",)),
    "validate_sections": (_sections, ("N", "section_splitter")),
    "validate_json_format": (_json, ()),
    "validate_repeat_prompt": (_repeat, ("original_prompt",)),
    "validate_two_responses": (_two_responses, ()),
    "validate_uppercase": (_uppercase, ()),
    "validate_lowercase": (_lowercase, ()),
    "validate_frequency_capital_words": (_capital_words, ("N", "quantifier")),
    "validate_end": (_end, ("end_phrase",)),
    "validate_quotation": (_quotation, ()),
    "validate_no_commas": (_no_commas, ()),
}
