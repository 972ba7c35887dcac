"""What a verifier returns, what its callers must know of it, and how it reads a reference answer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tercet.outside import read_json, unicode_only
from tercet.records import UNREAD, Think
from tercet.rows import Messages
from tercet.verify.thoughts import answer_of


class VerifierError(ValueError):
    """An unknown verifier, or a reference answer that it cannot read; the message says what is expected."""


NO_GRADE = "what it returned is no grade"


@dataclass(frozen=True)
class Grade:
    """A verdict, with what was extracted so that a wrong score can be explained.

    Example: `Grade(1.0, answer="72")`. `outcome` is "graded", "unparsed" (no answer was found, or no verdict in an LLM
    judge's reply), "truncated" (the text ends inside its thought), "timeout" or "error": "wrong" and "not known" are
    different things. `numbers` holds what else the verifier measured, by name: `{"strict": 1.0, "followed": 2.0,
    "constraints": 3.0}`.
    """

    score: float
    answer: str = ""
    outcome: str = "graded"
    detail: str = ""
    numbers: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Write half of a surrogate pair, which a reference or a plug-in may hold, as its escape: it can be stored."""
        for name in ("answer", "detail"):
            if isinstance(text := getattr(self, name), str) and not text.isascii():
                object.__setattr__(self, name, unicode_only(text))

    @property
    def refused(self) -> bool:
        """Whether the function of a user's verifier returned something that is no grade."""
        return self.outcome == "error" and NO_GRADE in self.detail

    @property
    def lost(self) -> bool:
        """Whether it says nothing about the answer: something broke, or the LLM judge's verdict cannot be read."""
        return self.outcome == "error" or UNREAD in self.numbers


UNFINISHED = Grade(0.0, outcome="truncated", detail="the text ends inside its thought, so there is no answer")


def unread(detail: str, said: str = "") -> Grade:
    """The grade where an LLM judge's reply holds no verdict; `said` is what could be read of it."""
    return Grade(0.0, said, "unparsed", detail, {UNREAD: 1.0})


@dataclass(frozen=True)
class Verifier:
    """One verifier, with all that its callers must know of it. Example: `Verifier("code@1", "code:code", slow=True)`.

    `function` is module and name in this package, imported when first used because some bring heavy libraries, or the
    function itself where another `package` brings it. `slow`: it waits for other processes, so ask several at once.
    `sandbox`: it runs programs, and takes the level of isolation. `needs_reference`: it compares with the reference
    answer of a row. `asks_model`: it is an LLM judge (llm_judges.py); `embeds`: in some rows it needs an encoder.
    `sees_thoughts`: it grades the whole text, as formats and lengths do; the others are given the answer alone.
    One of a `package`, or of a user's file, may also look at prompt and source of the row. `plainly`: a completion that
    states a reference answer (`{}`), and so is right; empty where references hold none, but constraints or tests.
    `about`: what an LLM judge is asked, which has no docstring of its own.
    """

    name: str
    function: str | Callable[..., Grade]
    slow: bool = False
    sandbox: bool = False
    needs_reference: bool = True
    asks_model: bool = False
    embeds: bool = False
    sees_thoughts: bool = False
    package: str = ""
    plainly: str = ""
    about: str = ""

    def __call__(
        self,
        completion: str,
        reference: str,
        sandbox: str = "auto",
        *,
        think: Think = "strip",
        prompt: Messages = (),
        source: str = "",
    ) -> Grade:
        """The grade of a completion's answer (thoughts.py says where it begins), or with `think = "keep"` of it all.

        VerifierError where the reference answer cannot be read or a model is needed.
        """
        if self.asks_model:
            where = "it grades and pays in stages that name one with `judge`, and nowhere else"
            raise VerifierError(f"{self.name} asks a model; {where}")
        if think == "strip" and not self.sees_thoughts:
            _, completion, unfinished = answer_of(completion)
            if unfinished:
                return UNFINISHED
        more: dict[str, Any] = {"sandbox": sandbox} if self.sandbox else {}
        if self.package:
            more = {"prompt": prompt, "source": source}
        grade: Grade = self.loaded(completion, reference, **more)
        return grade

    @cached_property
    def loaded(self) -> Any:
        """The function; of an LLM judge, what it asks and how it is read."""
        if not isinstance(self.function, str):
            return self.function
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"tercet.verify.{module}"), name)


def unreadable(verifier: str, expected: str, reference: str, cause: object = "") -> VerifierError:
    """The error for a reference answer that a verifier cannot read: what it expects, what came, and why it fails."""
    return VerifierError(f"{verifier} expects {expected}; got {reference!r:.80}" + (f" ({cause})" if cause else ""))


def read_reference(verifier: str, reference: str, example: str) -> Any:
    """The JSON of a reference answer; an error names the verifier and shows an example."""
    try:
        return read_json(reference)
    except ValueError as error:
        raise unreadable(verifier, f"a reference answer in JSON, e.g. {example}", reference, error) from None


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_text(value: Any) -> bool:
    """Whether a value read from JSON is a text that is not empty."""
    return isinstance(value, str) and bool(value)


def is_texts(value: Any) -> bool:
    """Whether a value read from JSON is a list of texts, none of them empty, and has some."""
    return isinstance(value, list) and bool(value) and all(map(is_text, value))
