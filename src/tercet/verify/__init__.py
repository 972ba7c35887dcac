"""The verifiers: pure, versioned functions `(completion, reference answer) -> Grade` on text alone.

Evaluation and reward look a verifier up here, LLM judges among them, so the verifier that grades is the one that pays.
A changed verifier gets a new version; recipes and rows name the version. Installed packages may add some (plugins.py).
"""

from __future__ import annotations

import importlib
from functools import cache

from tercet.verify.grade import Grade, Verifier, VerifierError
from tercet.verify.llm_judges import Case, LLMJudge
from tercet.verify.plugins import custom_names, custom_verifier

__all__ = ["Grade", "Verifier", "VerifierError", "check_reference", "llm_judge", "verifier", "verifiers"]

VERIFIERS: dict[str, Verifier] = {
    one.name: one
    for one in (
        Verifier("alpaca_pairwise@1", "published_judges:ALPACA_PAIRWISE", asks_model=True),
        Verifier("bbh@1", "answers:bbh"),
        Verifier("choice@1", "answers:choice"),
        Verifier("code@1", "code:code", slow=True, sandbox=True),
        Verifier("contains@1", "answers:contains"),
        Verifier("deepmind_math@1", "math.verifiers:deepmind_math", slow=True),
        Verifier("drop@1", "drop:drop"),
        Verifier("f1@1", "shaping:f1"),
        Verifier("factuality@1", "rubrics:FACTUALITY", asks_model=True),
        Verifier("flan@1", "shaping:flan"),
        Verifier("format@1", "shaping:form", slow=True, needs_reference=False),
        Verifier("gpqa@1", "answers:gpqa"),
        Verifier("gsm8k@1", "answers:gsm8k"),
        Verifier("href@1", "published_judges:href", asks_model=True, embeds=True),
        Verifier("href_plain@1", "published_judges:HREF_PLAIN", asks_model=True),
        Verifier("href_reference@1", "published_judges:HREF_REFERENCE", asks_model=True),
        Verifier("ifbench@1", "instructions.ifbench:ifbench"),
        Verifier("ifeval@1", "instructions.ifeval:ifeval"),
        Verifier("ifeval_reference@1", "instructions.ifeval:ifeval_reference"),
        Verifier("length@1", "shaping:length", needs_reference=False),
        Verifier("letter@1", "answers:letter"),
        Verifier("math@1", "math.verifiers:math_label", slow=True),
        Verifier("math_flex@1", "math.verifiers:math_flex", slow=True),
        Verifier("phrase@1", "answers:phrase"),
        Verifier("program@1", "programs:program", slow=True, sandbox=True),
        Verifier("quality@1", "rubrics:QUALITY", needs_reference=False, asks_model=True),
        Verifier("quality_ref@1", "rubrics:QUALITY_REF", asks_model=True),
        Verifier("refusal@1", "rubrics:REFUSAL", needs_reference=False, asks_model=True),
        Verifier("rubric@1", "rubrics:RUBRIC", asks_model=True),
        Verifier("safety@1", "rubrics:SAFETY", needs_reference=False, asks_model=True),
        Verifier("string@1", "shaping:string"),
        Verifier("sum@1", "shaping:weighted"),
        Verifier("tulu_if@1", "instructions.tulu_if:tulu_if"),
        Verifier("up_to_length@1", "shaping:up_to_length", needs_reference=False),
        Verifier("wildguard@1", "published_judges:WILDGUARD", asks_model=True),
    )
}


@cache
def verifier(name: str) -> Verifier:
    """The verifier called `name`, e.g. `verifier("gsm8k@1")`: one of ours or of an installed package.

    An LLM judge is found too; to grade with it alone, without a model to ask, is a VerifierError.
    """
    if custom := custom_verifier(name, VERIFIERS):
        return custom
    if name not in VERIFIERS:
        models = ", ".join(one.name for one in VERIFIERS.values() if one.asks_model)
        known = f"{', '.join(verifiers())} (or, asking a model: {models})"
        raise VerifierError(f"unknown verifier {name!r}; expected one of {known}")
    return VERIFIERS[name]


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
    else:
        try:
            found("", reference)
        except (
            Exception
        ) as error:  # another package's may fail on the empty completion, and not on the reference answer
            if not found.package or isinstance(error, VerifierError):
                raise


def grade_by_name(name: str, completion: str, reference: str) -> Grade:
    """The grade by the verifier called `name`; worker processes are given this function."""
    return verifier(name)(completion, reference)
