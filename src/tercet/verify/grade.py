"""What a judge says, and what a judge is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class VerifierError(ValueError):
    """An unknown judge, or a truth that the judge cannot read; the message says what is expected."""


@dataclass(frozen=True)
class Grade:
    """A verdict, with what was extracted so that a wrong score can be explained.

    Example: `Grade(1.0, answer="72")`. `outcome` is "graded", "unparsed" (no answer was found), "timeout" or "error":
    "wrong" and "could not tell" are different things.
    """

    score: float
    answer: str = ""
    outcome: str = "graded"
    detail: str = ""


Verifier = Callable[[str, str], Grade]
