"""How a user's verifier is called, and how its verdict is read: the worker's side of plugins.py.

What a function is given follows from the names of its parameters, any of them in any order:

    score(completion, answer)                                             short
    score(prompt, completion, answer, info)                               with the prompt and further columns
    score(prompts, completions, **columns) -> list[float]                 TRL; lists of one
    compute_score(data_source, solution_str, ground_truth, extra_info)    verl

The completion is the answer without the thought before it, unless the function has a true attribute `sees_thoughts`.
Parameters with a default that are none of these keep it. Prompts and completions are texts, or lists of turns where the
parameter's annotation speaks of dicts (`completions: list[list[dict[str, str]]]`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

from tercet.outside import read_json
from tercet.rows import Messages
from tercet.verify.grade import NO_GRADE, Grade, VerifierError
from tercet.verify.llm_judges import spoken
from tercet.verify.user_code import UserCodeError, described, load, pinned

FORMS = (
    "(completion, answer), (prompt, completion, answer, info), TRL's (prompts, completions, **columns) or verl's "
    "(data_source, solution_str, ground_truth, extra_info)"
)
COMPLETION = ("completion", "solution_str")
REFERENCE = ("answer", "ground_truth", "reference", "info", "extra_info")
ONE = (*COMPLETION, *REFERENCE, "prompt", "data_source")
TRAINER = ("completion_ids", "prompt_ids", "trainer_state", "log_extra", "log_metric")  # what only TRL's trainer has

TEXT = 100_000  # characters of an answer or a detail that are kept
OUTCOMES = ("graded", "unparsed", "truncated", "timeout", "error")


class WrongGradeError(TypeError):
    """What a function returned is no grade."""


pinned_once = cache(pinned)  # a worker has the code that it imported first, whatever becomes of the file


@dataclass(frozen=True)
class Submission:
    """A completion to be graded, with the row's prompt, reference answer and source."""

    completion: str
    reference: str
    prompt: Messages = ()
    source: str = ""


@dataclass(frozen=True)
class Signature:
    """The parameters of a function: all, those without a default, those that take turns; `rest` has `**columns`."""

    names: frozenset[str]
    needed: tuple[str, ...]
    turns: frozenset[str]
    rest: bool

    @property
    def lists(self) -> bool:
        """Whether it takes lists, as TRL's do."""
        return bool(self.names & {"prompts", "completions"})

    @property
    def reads_reference(self) -> bool:
        """Whether it is given the reference answer."""
        return self.lists or bool(self.names & {*REFERENCE})

    def arguments(self, one: Submission) -> dict[str, Any]:
        """What the function is given; VerifierError for columns that it needs and the row lacks."""
        answer, info = unpacked(one.reference)
        if self.lists:
            columns = {"answer": answer, "data_source": one.source, **info}
            columns |= {name: self._said(name, one) for name in ("prompts", "completions")}
            missing = [name for name in self.needed if name not in columns]
            if len(missing) > 1:
                there = ", ".join(sorted({"answer", *info}))
                raise VerifierError(f"{' and '.join(missing)}: no such columns beside {there}; name them in `info`")
            columns |= dict.fromkeys(missing, answer)  # the only one that is no column is the function's name for it
            return {name: [value] for name, value in columns.items() if self.rest or name in self.names}
        values = {name: info if "info" in name else answer for name in REFERENCE}
        values |= {name: self._said(name, one) for name in (*COMPLETION, "prompt")} | {"data_source": one.source}
        return {name: value for name, value in values.items() if name in self.names}

    def _said(self, name: str, one: Submission) -> Any:
        """Prompt or completion, as text or as turns."""
        if name.startswith("prompt"):
            turns, text = [{"role": turn.role, "content": turn.content} for turn in one.prompt], spoken(one.prompt)
        else:
            turns, text = [{"role": "assistant", "content": one.completion}], one.completion
        return turns if name in self.turns else text


def describe(where: str, digest: str) -> tuple[str, bool, bool]:
    """What stands against a function, if anything; whether it reads the reference answer; whether it sees thoughts."""
    try:
        called, how = function(where, digest)
        return "", how.reads_reference, bool(getattr(called, "sees_thoughts", False))
    except Exception as error:
        return str(error) if isinstance(error, UserCodeError) else described(error), True, False


def fault(where: str, digest: str, reference: str) -> str:
    """Why a function cannot read a reference answer: the VerifierError that it raises on it and an empty completion."""
    called, how = function(where, digest)
    try:
        read(called(**how.arguments(Submission("", reference))), listed=how.lists)
    except (VerifierError, WrongGradeError) as error:
        return str(error)
    except Exception:  # an accident on the empty completion says nothing about the reference answer
        return ""
    return ""


def grade(where: str, digest: str, one: Submission) -> dict[str, Any] | None:
    """The fields of a submission's grade, plain values; None where the code is no longer that of the digest."""
    if pinned_once(where) != digest:
        return None
    try:
        called, how = function(where, digest)
        return vars(read(called(**how.arguments(one)), listed=how.lists))
    except WrongGradeError as error:
        return vars(Grade(0.0, outcome="error", detail=f"{NO_GRADE}: {error}"))
    except Exception as error:
        return vars(Grade(0.0, outcome="error", detail=_text(described(error))))


@cache
def function(where: str, digest: str) -> tuple[Callable[..., Any], Signature]:
    """The function that `where` names, of this digest, and how it is called."""
    if not callable(found := load(where)):
        raise UserCodeError(f"{where.rpartition(':')[2]!r} is no function")
    return found, signature(found)


def signature(called: Callable[..., Any]) -> Signature:
    """How a function is called; UserCodeError for parameters that nothing is given for."""
    parameters = inspect.signature(called).parameters.values()
    plain = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    needed = tuple(one.name for one in plain if one.default is one.empty)
    turns = frozenset(one.name for one in plain if "dict" in str(one.annotation))
    rest = any(one.kind is one.VAR_KEYWORD for one in parameters)
    found = Signature(frozenset(one.name for one in plain), needed, turns, rest)
    unknown = [name for name in needed if name in TRAINER or not (found.lists or name in ONE)]
    unknown += [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]
    if unknown:
        raise UserCodeError(f"it has the parameter {unknown[0]!r}, which nothing is given for; expected {FORMS}")
    if not found.names & {*COMPLETION, "completions"}:
        raise UserCodeError(f"it takes no completion; expected {FORMS}")
    return found


def unpacked(reference: str) -> tuple[Any, dict[str, Any]]:
    """Answer and further columns: of JSON `{"answer": ..., "info": {...}}`, else the text itself and none."""
    value = None
    if reference.startswith('{"answer"'):
        try:
            value = read_json(reference)
        except ValueError:
            value = None
    if isinstance(value, dict) and value.keys() == {"answer", "info"} and isinstance(value["info"], dict):
        return value["answer"], value["info"]
    return reference, {}


def read(value: Any, *, listed: bool) -> Grade:
    """The grade that a function means by a Grade, a finite number, a dict with a score, or (`listed`) a list of one.

    It holds plain texts and floats whatever the function returned, so that nothing of its classes leaves the worker.
    """
    if listed and isinstance(value, Sequence) and len(value) == 1:
        value = value[0]
    elif listed:
        raise WrongGradeError(f"expected a list of one number from the verifier, got {_shown(value)}")
    more: Mapping[str, Any] = {}
    if isinstance(value, Mapping) and "score" in value:
        value, more = value["score"], value
    score = _number(value.score if isinstance(value, Grade) else value)
    if score is None:
        expected = "a finite number, a tercet.verify.Grade or a dict with a finite 'score'"
        raise WrongGradeError(f"expected {expected} from the verifier, got {_shown(value)}")
    if isinstance(value, Grade):
        return _plain(value, score)
    numbers = {_text(name): one for name, kept in more.items() if (one := _number(kept)) is not None}
    numbers = {name: one for name, one in numbers.items() if name != "score" and not isinstance(more[name], bool)}
    return Grade(score, _text(more.get("answer") or more.get("pred") or ""), numbers=numbers)


def _plain(grade: Grade, score: float) -> Grade:
    """A Grade of the function's own making, with every field of the type that it is declared with."""
    numbers = {name: _number(one) for name, one in dict(grade.numbers).items() if isinstance(name, str)}
    faults = {
        "answer": not isinstance(grade.answer, str),
        "detail": not isinstance(grade.detail, str),
        "outcome": grade.outcome not in OUTCOMES,
        "numbers": len(numbers) != len(grade.numbers) or None in numbers.values(),
    }
    if wrong := next((name for name, fault in faults.items() if fault), ""):
        raise WrongGradeError(f"the field {wrong!r} of a Grade cannot be {_shown(getattr(grade, wrong))}")
    found = {_text(name): one for name, one in numbers.items() if one is not None}
    return Grade(score, _text(grade.answer), str(grade.outcome), _text(grade.detail), found)


def _number(value: Any) -> float | None:
    """The finite float that a number of any library is; None of what is none."""
    try:
        found = float(value) if issubclass(type(value), Real) else math.nan  # an object may lie about its class
    except (ArithmeticError, TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _text(value: Any) -> str:
    """A plain text that can be written as UTF-8, cut where it is longer than any answer."""
    text = "".join(str(value)[:TEXT])
    return text.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    """What came, for a message; of what has a text of its own making only the type."""
    known = type(value) in (str, int, float, complex, bool, type(None))
    return f"{value!r:.80}" if known and (type(value) is not int or abs(value) < 1e80) else f"a {type(value).__name__}"
