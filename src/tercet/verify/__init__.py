"""The judges: pure, versioned functions `(completion, truth) -> Grade` on text alone (hop 10 of the road).

The exam and the reward call the same function. A changed judge gets a new version; recipes and rows name the version.
"""

from __future__ import annotations

from tercet.verify.answers import choice, gsm8k
from tercet.verify.constraints import check_constraint, tulu_if
from tercet.verify.grade import Grade, Verifier, VerifierError

__all__ = ["Grade", "Verifier", "VerifierError", "check_constraint", "verifier", "verifiers"]

JUDGES: dict[str, Verifier] = {"choice@1": choice, "gsm8k@1": gsm8k, "tulu_if@1": tulu_if}


def verifier(name: str) -> Verifier:
    """The judge called `name`, e.g. `verifier("gsm8k@1")`."""
    if name not in JUDGES:
        raise VerifierError(f"unknown verifier {name!r}; expected one of {', '.join(verifiers())}")
    return JUDGES[name]


def verifiers() -> list[str]:
    """The names of all judges, sorted."""
    return sorted(JUDGES)
