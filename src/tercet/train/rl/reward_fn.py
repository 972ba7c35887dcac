"""Rewards of rollouts: every judge of every completion, put together as the recipe says.

score = (own score + sum of weight x extra score) x gates; reward = reward_scale x (score + over-long penalty), or what
the recipe says of a completion without an end. Each distinct judgement is made once, in no order that matters: quick
verifiers here, slow ones and those of other packages in processes of their own, LLM judges with few calls for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from tercet import machine
from tercet.recipe import RLSpec
from tercet.rows import Completion, Generator, Row
from tercet.sandbox.run import ready
from tercet.sandbox.workers import WorkerError, WorkerTimeoutError, call
from tercet.verify import Grade, VerifierError, check_reference, llm_judge, verifier
from tercet.verify.llm_judges import Case, ask, spoken, swapped
from tercet.verify.shaping import WeightedVerifier, added, by_name, counted, parts_of

SUM = "sum@1"
CUSTOM_SECONDS = 60.0  # for one verdict of another package's judge
Judgement = tuple[str, Case]  # a verifier and what it is shown; the prompt only where it looks at the conversation


class RewardResult(NamedTuple):
    """One completion judged: the row's own grade, the whole score, what training sees, and every judge's score by name.

    `errors` names the judges that could not tell because something broke (outcome "error"): each counts as its score 0.
    Example: `RewardResult(Grade(1.0, "72"), score=1.2, reward=12.0, parts={"gsm8k@1": 1.0, "format@1": 1.0})`.
    """

    grade: Grade
    score: float
    reward: float
    parts: dict[str, float]
    errors: tuple[str, ...] = ()


class RewardFunction:
    """Marks completions by the verifiers of their rows and the extra ones of the stage."""

    def __init__(self, spec: RLSpec, judge: Generator | None) -> None:
        self.spec, self.judge = spec, judge

    def check(self, rows: Sequence[Row]) -> None:
        """Raise VerifierError, naming the row, for what would stop training later: unknown judges, unreadable
        reference answers.

        Also for a row without a verifier, a verifier that asks a model where the stage has none, and (a SandboxError)
        programs where no sandbox holds.
        """
        if any(extra.verifier == SUM for extra in self.spec.extra):
            raise VerifierError(f"{SUM} stands in rows; as `extra`, name its parts one by one, each with its weight")
        fine: set[tuple[str, str]] = set()
        for row in rows:
            if not row.verifier:
                raise VerifierError(
                    f"{_place(row)} names no verifier; rewards need 'verifier' and 'reference' in every row"
                )
            try:
                for name, reference in [(row.verifier, row.reference), *(part[:2] for part in self._extras(row))]:
                    if (name, reference) not in fine:
                        self._check(name, reference)
                        fine.add((name, reference))
            except VerifierError as error:
                raise VerifierError(f"{_place(row)}: {error}") from None

    def __call__(self, rows: Sequence[Row], written: Sequence[Sequence[Completion]]) -> list[list[RewardResult]]:
        """The marks of each row's completions, in their order."""
        parts = [[*_own(row), *self._extras(row)] for row in rows]
        asked = [
            [[_judgement(row, part, one.text) for part in several] for one in group]
            for row, several, group in zip(rows, parts, written, strict=True)
        ]
        found = self._judge(dict.fromkeys(one for group in asked for each in group for one in each))
        return [
            [
                self._mark(row, one, [found[judgement] for judgement in each])
                for one, each in zip(group, several, strict=True)
            ]
            for row, group, several in zip(rows, written, asked, strict=True)
        ]

    def _extras(self, row: Row) -> list[WeightedVerifier]:
        """The stage's further judges of a row. Without a reference answer they get the row's, where that can mean
        anything.
        """
        return [
            WeightedVerifier(
                one.verifier, one.reference or row.reference * verifier(one.verifier).needs_reference, one.weight
            )
            for one in self.spec.extra
        ]

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

    def _judge(self, wanted: Iterable[Judgement]) -> dict[Judgement, Grade]:
        models, slow, found = [], [], {}
        for one in wanted:
            how, case = verifier(one[0]), one[1]
            if how.asks_model:
                models.append(one)
            elif how.slow or how.package:
                slow.append(one)
            else:
                found[one] = how(case.completion, case.reference)
        if slow:
            with ThreadPoolExecutor(machine.cores()) as pool:
                found |= zip(slow, pool.map(partial(_graded, sandbox=self.spec.sandbox), slow), strict=True)
        return found | self._ask(models)

    def _ask(self, wanted: list[Judgement]) -> dict[Judgement, Grade]:
        if not wanted:
            return {}
        if self.judge is None:
            raise VerifierError(f"{wanted[0][0]} asks a model, and the stage names no `judge`")
        asked = [(llm_judge(name, case.reference), case) for name, case in wanted]
        return dict(zip(wanted, ask(asked, self.judge), strict=True))

    def _mark(self, row: Row, completion: Completion, grades: Sequence[Grade]) -> RewardResult:
        own, extras = _own(row), self._extras(row)
        mine, others = grades[: len(own)], grades[len(own) :]
        grade = added(own, mine) if row.verifier == SUM else mine[0]
        scores = [grade.score if row.verifier == SUM else counted(grade), *map(counted, others)]
        pays = [(extra.weight, extra.gate) for extra in self.spec.extra]
        score = total(scores[0], [(value, *pay) for value, pay in zip(scores[1:], pays, strict=True)])
        names = [part.verifier for part in (*own, *extras)]
        parts = by_name(names, list(map(counted, grades)))
        if row.verifier == SUM:
            parts = {SUM: grade.score, **parts}
        errors = tuple(name for name, one in zip(names, grades, strict=True) if one.outcome == "error")
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


def _own(row: Row) -> Sequence[WeightedVerifier]:
    """The judge of a row, or the several of a sum: each of them is asked in its own way."""
    return parts_of(row.reference) if row.verifier == SUM else (WeightedVerifier(row.verifier, row.reference),)


def _judgement(row: Row, part: WeightedVerifier, text: str) -> Judgement:
    if not verifier(part.verifier).asks_model:
        return part.verifier, Case("", text, part.reference)
    prompt = spoken(row.prompt)
    return part.verifier, Case(prompt, text, part.reference, swapped(f"{prompt}/{text}", 0))


def _graded(one: Judgement, sandbox: str) -> Grade:
    """A verdict without a model; other packages' judges run where they can hang or die without harm."""
    name, (_, text, reference, _) = one
    if not verifier(name).package:
        return verifier(name)(text, reference, sandbox)
    try:
        found: Grade = call("tercet.verify:grade_by_name", (name, text, reference), CUSTOM_SECONDS)
    except WorkerTimeoutError as error:
        return Grade(0.0, outcome="timeout", detail=str(error))
    except WorkerError as error:
        return Grade(0.0, outcome="error", detail=str(error))
    return found


def _place(row: Row) -> str:
    return f"row {row.id!r} of {row.source or 'an unnamed source'}"
