"""The verifiers: pure, versioned functions `(completion, reference answer) -> Grade` on text alone.

Evaluation and reward look a verifier up here, LLM judges among them, so the verifier that grades is the one that pays.
A changed verifier gets a new version; recipes and rows name the version. A user's file and installed packages may add
some (plugins.py).
"""

from __future__ import annotations

import importlib
import tomllib
from functools import cache
from pathlib import Path

from tercet.verify.grade import Grade, Verifier, VerifierError
from tercet.verify.llm_judges import Case, LLMJudge
from tercet.verify.plugins import (
    ChangedCodeError,
    check_custom,
    custom_digest,
    custom_names,
    custom_verifier,
)

__all__ = [
    "ChangedCodeError",
    "Grade",
    "Verifier",
    "VerifierError",
    "check_reference",
    "custom_digest",
    "llm_judge",
    "newest",
    "verifier",
    "verifiers",
]

_TABLE = tomllib.loads(Path(__file__).with_name("verifiers.toml").read_text(encoding="utf-8"))
VERIFIERS = {name: Verifier(name, **about) for name, about in _TABLE.items()}


@cache
def verifier(name: str) -> Verifier:
    """The verifier called `name`, e.g. `verifier("gsm8k@1")`: one of ours, of a package, or of a file, `mine.py:score`.

    An LLM judge is found too; to grade with it alone, without a model to ask, is a VerifierError.
    """
    if custom := custom_verifier(name, VERIFIERS):
        return custom
    if name not in VERIFIERS:
        models = ", ".join(one.name for one in VERIFIERS.values() if one.asks_model)
        known = (
            f"{', '.join(verifiers())} (or, asking a model: {models}), or a function in a file, 'my_reward.py:score'"
        )
        raise VerifierError(f"unknown verifier {name!r}; expected one of {known}")
    return VERIFIERS[name]


def newest(name: str) -> str:
    """The newest version of a verifier that is named without one: `gsm8k` is `gsm8k@2`; other names as they are."""
    known = (one.rpartition("@") for one in [*VERIFIERS, *custom_names(VERIFIERS)])
    versions = [version for bare, _, version in known if bare == name]
    return f"{name}@{max(versions, key=lambda version: (len(version), version))}" if versions else name


def llm_judge(name: str, reference: str = "") -> LLMJudge[Case, Grade]:
    """The LLM judge called `name`, e.g. `llm_judge("wildguard@1")`; for `href@1` the reference answer says which."""
    found = verifier(name)
    if not found.asks_model:
        raise VerifierError(f"{name} asks no model")
    judge: LLMJudge[Case, Grade] = found.loaded if isinstance(found.loaded, LLMJudge) else found.loaded(reference)
    return judge


def verifiers() -> list[str]:
    """The names of all verifiers that need no model, those of installed packages included, sorted."""
    ours = [one.name for one in VERIFIERS.values() if not one.asks_model]
    return sorted([*ours, *custom_names(VERIFIERS)])


def check_reference(name: str, reference: str) -> None:
    """Raise VerifierError for an unknown verifier, or a reference answer that it cannot read; models are not asked."""
    found = verifier(name)
    if found.asks_model:
        llm_judge(name, reference).messages(Case("", "", reference))
    elif name == "sum@1":  # reading is enough, and grading would need the models of its parts
        importlib.import_module("tercet.verify.shaping").parts_of(reference)
    elif found.package:
        check_custom(found, reference)
    else:
        found("", reference)
