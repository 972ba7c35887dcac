"""What the instruction verifiers share: arguments of checks, languages, strict and loose grading.

langdetect is imported and its tables built at the first call, once per process; nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any

from tercet.outside import read_json
from tercet.verify.grade import Grade, VerifierError, unreadable

Check = Callable[[str], bool]
Checker = Callable[..., bool]  # a function of the text, then of the constraint's arguments under their own names
Argument = tuple[Callable[[Any], bool], str]  # whether a value fits, and in words what does
Instruction = tuple[str, dict[str, Any]]  # an id such as "length_constraints:number_words", and its arguments


def read_instructions(reference: str, verifier: str) -> tuple[list[Instruction], dict[str, Any]]:
    """The `(id, arguments)` pairs of a benchmark row, and the row itself; null arguments are dropped.

    The reference answer is the public row as JSON: `{"instruction_id_list": [...], "kwargs": [{...}, ...], "prompt":
    "..."}`. Whole floats become ints, because tables stored by column turn counts into floats.
    """
    try:
        row = read_json(reference)
        ids, kwargs = row["instruction_id_list"], row["kwargs"]
        pairs = [(str(name), {k: _whole(v) for k, v in (given or {}).items() if v is not None})
                 for name, given in zip(ids, kwargs, strict=True)]  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        expected = 'a JSON row {"instruction_id_list": [...], "kwargs": [...]} with lists of one length'
        raise unreadable(verifier, expected, reference, f"{type(error).__name__}: {error}") from error
    if not pairs:
        raise unreadable(verifier, "at least one instruction in the reference answer", reference)
    return pairs, row


def bind(
    name: Any,
    given: Mapping[str, Any],
    verifier: str,
    checkers: Mapping[str, Checker],
    arguments: tuple[Mapping[str, Argument], Argument],
) -> Check:
    """The check of one constraint as a function of the text; a wrong argument is a `VerifierError`.

    `arguments` says what fits each argument by name, and what fits those it does not name.
    """
    if not isinstance(name, str) or name not in checkers:
        raise VerifierError(f"{verifier} knows no instruction {name!r}; expected one of {', '.join(sorted(checkers))}")
    _, *names = signature(checkers[name]).parameters
    if set(given) != set(names):
        raise VerifierError(f"{verifier}: {name} expects the arguments {sorted(names)}; got {sorted(given)}")
    known, other = arguments
    for key in names:
        fits, expected = known.get(key, other)
        if not fits(given[key]):
            raise VerifierError(f"{verifier}: {name} expects {key} to be {expected}; got {given[key]!r:.60}")
    return partial(checkers[name], **given)


def is_whole(value: object, least: float = 0) -> bool:
    """Whether an argument is a whole number from `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def grade_instructions(response: str, checks: Sequence[tuple[str, Check]]) -> Grade:
    """Grade a response against `(id, check)` pairs; the score is 1 if every one holds loosely.

    Strict asks the check about the response as it is, loose about each of `loose_texts`; a blank response follows
    nothing. `numbers`: "strict" and "loose" (all hold, 0 or 1), "followed_strict" and "followed_loose" (how many
    hold), "constraints" (how many there are). A check that raises is not followed, and makes the outcome "error".
    """
    texts = loose_texts(response)
    strict, loose, failed, errors = 0, 0, [], []
    for name, check in checks:
        try:
            held = bool(response.strip()) and check(response)
            strict += held
            loose += held or any(check(text) for text in texts)
        except Exception as error:  # a defect of the check, kept apart from a wrong answer
            held = False
            errors.append(f"{name}: {type(error).__name__}: {error}")
        if not held:
            failed.append(name)
    followed = {"followed_strict": strict, "followed_loose": loose, "constraints": len(checks)}
    whole = {"strict": strict == len(checks), "loose": loose == len(checks)}
    numbers = {name: float(number) for name, number in (whole | followed).items()}
    detail = "; ".join(([f"failed: {', '.join(failed)}"] if failed else []) + errors)
    return Grade(numbers["loose"], outcome="error" if errors else "graded", detail=detail, numbers=numbers)


def loose_texts(response: str) -> list[str]:
    r"""The texts of which one must pass loosely: distinct, none blank, at most 8.

    The response; without its first line; without its last; without both (lines end at "\n"; shortened texts are
    stripped); and each of these with every asterisk deleted.
    """
    lines = response.split("\n")
    shortened = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    bases = [response, *shortened]
    texts = bases + [text.replace("*", "") for text in bases]
    return [text for text in dict.fromkeys(texts) if text.strip()]


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, e.g. "en" or "zh-cn"; None where nothing in the text shows it.

    langdetect draws at random; here every call starts from the same seed.
    """
    from langdetect import LangDetectException

    detector = _detectors().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def _detectors() -> Any:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory
