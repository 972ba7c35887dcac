"""What a verifier says, and what is known of a verifier."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class VerifierError(ValueError):
    """An unknown judge, or a reference answer that the judge cannot read; the message says what is expected."""


@dataclass(frozen=True)
class Grade:
    """A verdict, with what was extracted so that a wrong score can be explained.

    Example: `Grade(1.0, answer="72")`. `outcome` is "graded", "unparsed" (no answer was found), "timeout" or "error":
    "wrong" and "could not tell" are different things. `numbers` holds what else the judge measured, by name:
    `{"strict": 1.0, "followed": 2.0, "constraints": 3.0}`.
    """

    score: float
    answer: str = ""
    outcome: str = "graded"
    detail: str = ""
    numbers: dict[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Verifier:
    """One verifier, with all that its callers must know of it. Example: `Verifier("code@1", "code:code", slow=True)`.

    `function` is module and name in this package, imported when first used because some bring heavy libraries, or the
    function itself where another `package` brings it. `slow`: it waits for other processes, so ask several at once.
    `sandbox`: it runs programs, and takes the level of isolation. `needs_reference`: it compares with the reference
    answer of a row. `asks_model`: it is an LLM judge (llm_judges.py); `embeds`: in some rows it needs an encoder.
    """

    name: str
    function: str | Callable[[str, str], Grade]
    slow: bool = False
    sandbox: bool = False
    needs_reference: bool = True
    asks_model: bool = False
    embeds: bool = False
    package: str = ""

    def __call__(self, completion: str, reference: str, sandbox: str = "auto") -> Grade:
        """The grade of a completion; VerifierError for a reference answer that cannot be read, and for every LLM
        judge."""
        if self.asks_model:
            raise VerifierError(
                f"{self.name} asks a model; it grades and pays in stages that name one with `judge`, and nowhere else"
            )
        grade: Grade = self.loaded(completion, reference, **({"sandbox": sandbox} if self.sandbox else {}))
        return grade

    @cached_property
    def loaded(self) -> Any:
        """The function, or what an LLM judge asks and how it is read."""
        if not isinstance(self.function, str):
            return self.function
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"tercet.verify.{module}"), name)
