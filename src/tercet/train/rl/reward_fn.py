"""Rewards of rollouts: the scores of all verifiers of a completion, put together as the recipe says.

Verifiers and LLM judges grade the answer, without the thought before it, as in an evaluation (verify/thoughts.py).
score = (own score + sum of weight x extra score) x gates; reward = reward_scale x (score + over-long penalty), or
`no_eos_reward` without an end token. Each distinct question is graded once, in no order that matters: by quick
verifiers one after another, by slow ones and a user's own several at once, by LLM judges in few calls for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

from tercet import machine
from tercet.recipe import RLSpec
from tercet.rows import Completion, Generator, Messages, Row
from tercet.sandbox.run import ready
from tercet.verify import Grade, VerifierError, check_reference, llm_judge, verifier
from tercet.verify.llm_judges import Case, graded, spoken, swapped
from tercet.verify.shaping import WeightedVerifier, added, by_name, counted, parts_of

SUM = "sum@1"


class GradingCase(NamedTuple):
    """A verifier and what it grades. An LLM judge reads the prompt in the case, a user's verifier gets its turns."""

    verifier: str
    case: Case
    prompt: Messages = ()
    source: str = ""


class RewardResult(NamedTuple):
    """A graded completion: the row's own grade, the whole score, what training uses, each verifier's score by name.

    `errors` names the verifiers that could not grade because something broke (outcome "error"), and the LLM judges
    whose verdict could not be read: each counts as 0.
    Example: `RewardResult(Grade(1.0, "72"), score=1.2, reward=12.0, parts={"gsm8k@1": 1.0, "format@1": 1.0})`.
    """

    grade: Grade
    score: float
    reward: float
    parts: dict[str, float]
    errors: tuple[str, ...] = ()


class RewardFunction:
    """Grades completions by the verifiers of their rows and the extra ones of the stage."""

    def __init__(self, spec: RLSpec, judge: Generator | None) -> None:
        self.spec, self.judge = spec, judge

    def check(self, rows: Sequence[Row]) -> None:
        """Raise VerifierError, naming the row, for what would stop training later.

        That is an unknown verifier or none, a reference answer it cannot read, a verifier that asks a model where the
        stage has none, and (a SandboxError) programs where no sandbox holds.
        """
        if any(extra.verifier == SUM for extra in self.spec.extra):
            raise VerifierError(f"{SUM} is for rows; as `extra`, name its parts one by one, each with its weight")
        fine: set[tuple[str, str]] = set()
        for row in rows:
            if not (row.verifier or self.spec.environment):
                raise VerifierError(
                    f"{_place(row)} names no verifier; rewards need 'verifier' and 'reference' in every row"
                )
            try:
                own = [] if self.spec.environment else [(row.verifier, row.reference)]
                for name, reference in [*own, *(part[:2] for part in self._extras(row))]:
                    if (name, reference) not in fine:
                        self._check(name, reference)
                        fine.add((name, reference))
            except VerifierError as error:
                raise VerifierError(f"{_place(row)}: {error}") from None

    def __call__(
        self,
        rows: Sequence[Row],
        written: Sequence[Sequence[Completion]],
        given: Sequence[Sequence[Grade]] | None = None,
    ) -> list[list[RewardResult]]:
        """The results of each row's completions, in their order; `given` has the grades of an environment."""
        parts = [[*self._own(row), *self._extras(row)] for row in rows]
        asked = [
            [[_question(row, part, one.text) for part in several] for one in group]
            for row, several, group in zip(rows, parts, written, strict=True)
        ]
        found = self._grade(dict.fromkeys(one for group in asked for each in group for one in each))
        none: list[list[Grade]] = [[]]
        first_grades = [[[one] for one in group] for group in given or ()] or [none * len(group) for group in written]
        return [
            [
                self._result(row, one, [*first, *(found[question] for question in each)])
                for one, each, first in zip(group, several, firsts, strict=True)
            ]
            for row, group, several, firsts in zip(rows, written, asked, first_grades, strict=True)
        ]

    def _own(self, row: Row) -> Sequence[WeightedVerifier]:
        """The verifier of a row, or the several of a sum; none where an environment grades."""
        if self.spec.environment:
            return ()
        return parts_of(row.reference) if row.verifier == SUM else (WeightedVerifier(row.verifier, row.reference),)

    def _extras(self, row: Row) -> list[WeightedVerifier]:
        """The stage's further verifiers of a row; one that needs a reference answer and has none gets the row's."""
        found = []
        for one in self.spec.extra:
            own = row.reference if verifier(one.verifier).needs_reference else ""
            found.append(WeightedVerifier(one.verifier, one.reference or own, one.weight))
        return found

    def _check(self, name: str, reference: str) -> None:
        check_reference(name, reference)
        for part in parts_of(reference) if name == SUM else [WeightedVerifier(name, reference)]:
            found = verifier(part.verifier)
            if found.embeds:
                raise VerifierError(f"{part.verifier} compares embeddings in some rows; it grades and pays no reward")
            if found.asks_model and self.judge is None:
                raise VerifierError(
                    f"{part.verifier} asks a model, and the stage names none; set `judge` to a stage of kind `model`, "
                    "usually an endpoint"
                )
            if found.sandbox:
                ready(self.spec.sandbox)

    def _grade(self, wanted: Iterable[GradingCase]) -> dict[GradingCase, Grade]:
        models, slow, found = [], [], {}
        for one in wanted:
            how = verifier(one.verifier)
            if how.asks_model:
                models.append(one)
            elif how.slow:
                slow.append(one)
            else:
                found[one] = how(one.case.completion, one.case.reference)
        if slow:
            with ThreadPoolExecutor(machine.cores()) as pool:
                found |= zip(slow, pool.map(self._graded, slow), strict=True)
        asked = [(llm_judge(one.verifier, one.case.reference), one.case) for one in models]
        judge = cast(Generator, self.judge)  # `check` refuses rows that ask a model where there is none
        return found | dict(zip(models, graded(asked, judge), strict=True))

    def _graded(self, one: GradingCase) -> Grade:
        how = verifier(one.verifier)
        return how(one.case.completion, one.case.reference, self.spec.sandbox, prompt=one.prompt, source=one.source)

    def _result(self, row: Row, completion: Completion, grades: Sequence[Grade]) -> RewardResult:
        own, scores = self._own(row), list(map(counted, grades))
        firsts = [self.spec.environment] if self.spec.environment else [part.verifier for part in own]
        names = [*firsts, *(extra.verifier for extra in self.spec.extra)]
        grade, first, parts = grades[0], scores[0], by_name(names, scores)
        if row.verifier == SUM and own:
            grade = added(own, grades[: len(own)])
            first, parts = grade.score, {SUM: grade.score, **parts}
        extras = zip(scores[len(firsts) :], self.spec.extra, strict=True)
        score = total(first, [(value, extra.weight, extra.gate) for value, extra in extras])
        errors = tuple(name for name, one in zip(names, grades, strict=True) if one.lost)
        return RewardResult(grade, score, reward(score, completion, self.spec), parts, errors)


def total(own: float, extras: Sequence[tuple[float, float, bool]]) -> float:
    """(own + sum of weight x score) x the gates' scores; an extra is (score, weight, gate)."""
    found = own + sum(weight * score for score, weight, gate in extras if not gate)
    for score, _, gate in extras:
        found *= score if gate else 1.0
    return found


def reward(score: float, completion: Completion, spec: RLSpec) -> float:
    """reward_scale x (score + over-long penalty); without an end token `no_eos_reward` instead, unless it is "keep"."""
    if completion.stop != "eos" and spec.no_eos_reward != "keep":
        return spec.no_eos_reward
    return spec.reward_scale * (score + overlong(completion.num_tokens, spec.max_new_tokens, spec.overlong_tokens))


def overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft penalty (Yu et al. 2025, eq. 13): 0 up to limit - buffer tokens, then linearly to -1 at the limit."""
    return -min(1.0, max(0, length - (limit - buffer)) / buffer) if buffer else 0.0


def _question(row: Row, part: WeightedVerifier, text: str) -> GradingCase:
    how, case = verifier(part.verifier), Case("", text, part.reference)
    if how.package:
        return GradingCase(part.verifier, case, row.prompt, row.source)
    if not how.asks_model:
        return GradingCase(part.verifier, case)
    prompt = spoken(row.prompt)
    return GradingCase(part.verifier, case._replace(prompt=prompt, swap=swapped(f"{prompt}/{text}", 0)))


def _place(row: Row) -> str:
    return f"row {row.id!r} of {row.source or 'an unnamed source'}"
