"""The judges: pure, versioned functions `(completion, truth) -> Grade` on text alone (hop 10 of the road).

The exam and the reward call the same function. A changed judge gets a new version; recipes and rows name the version.
Installed packages may bring further ones (plugins.py); verifiers that ask a model stand in rubrics.py.
"""

from __future__ import annotations

import importlib
from functools import cache, partial

from tercet.verify.constraints import check_constraint
from tercet.verify.grade import Grade, Verifier, VerifierError
from tercet.verify.plugins import custom_names, custom_verifier
from tercet.verify.rubrics import MODEL_VERIFIERS, model_verifier

__all__ = [
    "Grade",
    "Verifier",
    "VerifierError",
    "check_constraint",
    "check_truth",
    "is_custom",
    "judged",
    "verifier",
    "verifiers",
]

# Judge -> module and function; a judge is imported when it is first named, because some bring heavy libraries.
JUDGES: dict[str, str] = {
    "bbh@1": "answers:bbh",
    "choice@1": "answers:choice",
    "code@1": "code:code",
    "contains@1": "answers:contains",
    "deepmind_math@1": "maths:deepmind_math",
    "drop@1": "spans:drop",
    "f1@1": "training:f1",
    "flan@1": "training:flan",
    "format@1": "training:form",
    "gpqa@1": "answers:gpqa",
    "gsm8k@1": "answers:gsm8k",
    "ifbench@1": "ifbench:ifbench",
    "ifeval@1": "ifeval:ifeval",
    "ifeval_reference@1": "ifeval:ifeval_reference",
    "length@1": "training:length",
    "letter@1": "answers:letter",
    "math@1": "maths:math_label",
    "math_flex@1": "maths:math_flex",
    "phrase@1": "answers:phrase",
    "program@1": "programs:program",
    "string@1": "training:string",
    "sum@1": "training:weighted",
    "tulu_if@1": "constraints:tulu_if",
    "up_to_length@1": "training:up_to_length",
}


@cache
def verifier(name: str) -> Verifier:
    """The judge called `name`, e.g. `verifier("gsm8k@1")`: one of ours or of an installed package.

    A verifier that asks a model is found too, so that rows may name it; to grade with it alone is a VerifierError.
    """
    if custom := custom_verifier(name, [*JUDGES, *MODEL_VERIFIERS]):
        return custom
    if name in MODEL_VERIFIERS:
        return partial(_only_asked, name)
    if name not in JUDGES:
        models = ", ".join(sorted(MODEL_VERIFIERS))
        raise VerifierError(
            f"unknown verifier {name!r}; expected one of {', '.join(verifiers())} (or, asking a model: {models})"
        )
    module, function = JUDGES[name].split(":")
    judge: Verifier = getattr(importlib.import_module(f"tercet.verify.{module}"), function)
    return judge


def _only_asked(name: str, completion: str, truth: str) -> Grade:
    raise VerifierError(f"{name} asks a model; it can reward rollouts of a stage with `judge`, and nothing else")


def is_custom(name: str) -> bool:
    """Whether a known judge comes from another package."""
    return name not in JUDGES and name not in MODEL_VERIFIERS


def verifiers() -> list[str]:
    """The names of all judges that need no model, those of installed packages included, sorted."""
    return sorted([*JUDGES, *custom_names([*JUDGES, *MODEL_VERIFIERS])])


def check_truth(name: str, truth: str) -> None:
    """Raise VerifierError for an unknown verifier, or a truth that it cannot read; models are not asked."""
    if name in MODEL_VERIFIERS:
        model_verifier(name).ask("", "", truth)
        return
    if name == "sum@1":  # reading is enough, and grading would need the models of its parts
        importlib.import_module("tercet.verify.training").parts_of(truth)
        return
    try:
        verifier(name)("", truth)
    except VerifierError:
        raise
    except Exception:  # a package's judge may stumble over an empty completion: that says nothing about the truth
        if name in JUDGES:
            raise


def judged(name: str, completion: str, truth: str) -> Grade:
    """The verdict of a judge given by name: what a worker process is asked for."""
    return verifier(name)(completion, truth)
