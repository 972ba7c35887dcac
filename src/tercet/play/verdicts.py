"""Right or wrong: the verdict on answers, by the verifiers and in the way of the evaluations.

An answer to an evaluation's item is graded with the item's own task card, so that its verdict is the one that the
evaluation would store. Constraints and parts of a sum are also graded one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tercet.evals.results import regraded, summed, with_grade
from tercet.play.items import RIGHT
from tercet.records import Result, Sample, TaskCard
from tercet.verify import VERIFIERS, VerifierError, check_reference, llm_judge, verifier, verifiers
from tercet.verify.instructions.language import read_instructions
from tercet.verify.instructions.tulu_if import read_constraints
from tercet.verify.llm_judges import Case, spoken
from tercet.verify.llm_judges import graded as judged
from tercet.verify.shaping import parts_of

Asking = Callable[[], Any]  # opens the LLM judge's model, a `rows.Generator`
INSTRUCTIONS = ("ifeval@1", "ifeval_reference@1", "ifbench@1", "ifbench@2")
MOST_PARTS = 64


@dataclass(frozen=True)
class Verdicts:
    """What grades on this page: every verifier that needs no model, and LLM judges where `judge` opens a model."""

    sandbox: str = "auto"
    judge: Asking | None = None

    def names(self) -> list[dict[str, Any]]:
        """The verifiers that can be chosen, with what the page must know of them."""
        judges = [one.name for one in VERIFIERS.values() if self.judge and one.asks_model and not one.embeds]
        found = [verifier(name) for name in [*verifiers(), *judges]]
        keep = [one for one in found if not (one.sandbox and self.sandbox == "off")]
        return [
            {"name": one.name, "needs_reference": one.needs_reference, "judge": one.asks_model, "programs": one.sandbox}
            for one in keep
        ]

    def grade(self, asked: Result, card: TaskCard) -> list[dict[str, Any]]:
        """The verdict on every sample of a result; VerifierError where the reference cannot be read."""
        if (name := card.judge or card.verifier) not in [one["name"] for one in self.names()]:
            raise VerifierError(f"no verifier {name!r:.80} on this page; choose one of its list")
        card = replace(card, sandbox=card.sandbox or self.sandbox)
        if card.judge:
            return [_shown(one) for one in self._judged(asked, card)]
        check_reference(name, asked.reference)
        pieces = list(parts(name, asked.reference))
        alone = [regraded(replace(asked, reference=own), part, card).tries for _, part, own in pieces]
        labels = [label for label, _, _ in pieces]
        return [
            _shown(one) | {"parts": [_part(*both) for both in zip(labels, (tries[i] for tries in alone), strict=True)]}
            for i, one in enumerate(regraded(asked, name, card).tries)
        ]

    def _judged(self, asked: Result, card: TaskCard) -> Sequence[Sample]:
        if self.judge is None:
            raise VerifierError(f"{card.judge} asks a model; start the page with --judge URL#NAME")
        judge, question = llm_judge(card.judge, asked.reference), spoken(asked.messages)
        cases = [Case(question, one.output, asked.reference, think=card.think) for one in asked.tries]
        grades = judged([(judge, case) for case in cases], self.judge())
        both = zip(asked.tries, grades, strict=True)
        return summed(asked, [with_grade(one, grade, cut=one.stop == "length") for one, grade in both], card).tries


def parts(name: str, reference: str) -> Iterator[tuple[str, str, str]]:
    """Label, verifier and reference answer of each part of a reference that has several; nothing of one without."""
    found: list[tuple[str, str, str]] = []
    if name == "tulu_if@1":
        found = [(_constraint(one), name, json.dumps(one)) for one in read_constraints(reference)]
    elif name in INSTRUCTIONS:
        pairs, row = read_instructions(reference, name)
        for kind, given in pairs:
            own = json.dumps({**row, "instruction_id_list": [kind], "kwargs": [given]})
            found.append((f"{kind}{_arguments(given)}", name, own))
    elif name == "sum@1":
        found = [(f"{one.verifier} × {one.weight:g}", one.verifier, one.reference) for one in parts_of(reference)]
    yield from found[:MOST_PARTS]


def _constraint(spec: dict[str, Any]) -> str:
    if isinstance(text := spec.get("text"), str) and text:
        return text
    given = {key: value for key, value in spec.items() if key != "func_name" and value is not None}
    return f"{spec.get('func_name')}{_arguments(given)}"


def _arguments(given: dict[str, Any]) -> str:
    text = ", ".join(f"{key} = {value}" for key, value in given.items())
    return f" ({text})" if text else ""


def _shown(one: Sample) -> dict[str, Any]:
    right = None if one.lost or one.outcome == "unjudged" else one.score >= RIGHT
    kept = ("score", "outcome", "answer", "detail", "numbers")
    return {"right": right, **{name: getattr(one, name) for name in kept}}


def _part(label: str, one: Sample) -> dict[str, Any]:
    return {"label": label, "right": None if one.lost else one.score >= RIGHT, "detail": one.detail}
