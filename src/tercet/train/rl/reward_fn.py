"""Rewards of rollouts: every judge of every completion, put together as the recipe says (hop 10; paper §6).

score = (own score + sum of weight x extra score) x gates; reward = reward_scale x (score + over-long penalty), or what
the recipe says of a completion without an end. Each distinct judgement is made once, in no order that matters: quick
judges here, slow ones and those of other packages in processes of their own, models with one call for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from tercet import machine
from tercet.recipe import Rollouts
from tercet.rows import Completion, Generator, Message, Row, Sampling, Seeded
from tercet.verify import Grade, VerifierError, check_truth, is_custom, verifier
from tercet.verify.rubrics import MODEL_VERIFIERS, model_verifier, spoken
from tercet.verify.sandbox import ready
from tercet.verify.training import Part, added, by_name, counted, parts_of
from tercet.verify.workers import WorkerError, WorkerTimeoutError, call

SUM = "sum@1"
PROGRAMS = ("code@1", "program@1")
SLOW = (*PROGRAMS, "math@1", "math_flex@1", "deepmind_math@1", "format@1")  # they wait for other processes
UNRELATED = ("format@1", "length@1", "up_to_length@1", "refusal@1")  # as extras, never compared with a row's own truth
CUSTOM_SECONDS = 60.0  # for one verdict of another package's judge
TRIES, REPLY, WARMTH = 3, 1024, 0.7  # a model judge: how often it is asked, tokens of a reply, temperature from try 2


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


class Judgement(NamedTuple):
    """One question to one judge; `prompt` only where it looks at the conversation."""

    verifier: str
    prompt: str
    text: str
    truth: str


class RewardFunction:
    """Marks completions by the verifiers of their rows and the extra ones of the stage."""

    def __init__(self, spec: Rollouts, judge: Generator | None) -> None:
        self.spec, self.judge = spec, judge

    def check(self, rows: Sequence[Row]) -> None:
        """Raise VerifierError, naming the row, for what would stop training later: unknown judges, unreadable truths.

        Also for a row without a verifier, a verifier that asks a model where the stage has none, and (a SandboxError)
        programs where no sandbox holds.
        """
        if any(extra.verifier == SUM for extra in self.spec.extra):
            raise VerifierError(f"{SUM} stands in rows; as `extra`, name its parts one by one, each with its weight")
        fine: set[tuple[str, str]] = set()
        for row in rows:
            if not row.verifier:
                raise VerifierError(
                    f"{_place(row)} names no verifier; rewards need 'verifier' and 'truth' in every row"
                )
            asked = [(row.verifier, row.truth), *((part.verifier, part.truth) for part in self._extras(row))]
            try:
                for name, truth in asked:
                    if (name, truth) not in fine:
                        self._check(name, truth)
                        fine.add((name, truth))
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

    def _extras(self, row: Row) -> list[Part]:
        """The stage's further judges of a row. Without a truth they get the row's, where that can mean anything."""
        return [
            Part(extra.verifier, extra.truth or ("" if extra.verifier in UNRELATED else row.truth), extra.weight)
            for extra in self.spec.extra
        ]

    def _check(self, name: str, truth: str) -> None:
        check_truth(name, truth)
        for part in parts_of(truth) if name == SUM else [Part(name, truth)]:
            if part.verifier in MODEL_VERIFIERS and self.judge is None:
                raise VerifierError(
                    f"{part.verifier} asks a model, and the stage names none; set `judge` to a stage of kind `model`, "
                    "usually an endpoint"
                )
            if part.verifier in PROGRAMS:
                ready(self.spec.sandbox)

    def _judge(self, wanted: Iterable[Judgement]) -> dict[Judgement, Grade]:
        models, slow, found = [], [], {}
        for one in wanted:
            if one.verifier in MODEL_VERIFIERS:
                models.append(one)
            elif one.verifier in SLOW or is_custom(one.verifier):
                slow.append(one)
            else:
                found[one] = _graded(one, self.spec.sandbox)
        if slow:
            with ThreadPoolExecutor(machine.cores()) as pool:
                found |= zip(slow, pool.map(partial(_graded, sandbox=self.spec.sandbox), slow), strict=True)
        return found | self._ask(models)

    def _ask(self, wanted: list[Judgement]) -> dict[Judgement, Grade]:
        """What the model says of each: one call for all, and again, with some warmth, for those it left unreadable."""
        found = {one: Grade(0.0, outcome="unparsed", detail="the completion is empty") for one in wanted}
        waiting = [one for one in wanted if one.text.strip()]
        for turn in range(TRIES):
            if not waiting:
                break
            if self.judge is None:
                raise VerifierError(f"{waiting[0].verifier} asks a model, and the stage names no `judge`")
            questions = [model_verifier(one.verifier).ask(one.prompt, one.text, one.truth) for one in waiting]
            sampling = Sampling(REPLY, fit=True)
            if turn:
                seeds = tuple(_seed(f"{turn}/{question}") for question in questions)
                sampling = Seeded(REPLY, WARMTH, fit=True, seeds=seeds)
            replies = self.judge.complete([(Message("user", question),) for question in questions], sampling)
            found |= {one: _heard(one, reply[0]) for one, reply in zip(waiting, replies, strict=True)}
            waiting = [one for one in waiting if found[one].outcome != "graded"]
        return found

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


def reward(score: float, completion: Completion, spec: Rollouts) -> float:
    """reward_scale x (score + over-long penalty); without an end token `no_eos_reward` instead, unless it is "keep"."""
    if completion.stop != "eos" and spec.no_eos_reward != "keep":
        return spec.no_eos_reward
    return spec.reward_scale * (score + overlong(completion.num_tokens, spec.max_new_tokens, spec.overlong_tokens))


def overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft penalty (Yu et al. 2025, eq. 13): 0 up to limit - buffer tokens, then linearly to -1 at the limit."""
    return -min(1.0, max(0, length - (limit - buffer)) / buffer) if buffer else 0.0


def _own(row: Row) -> Sequence[Part]:
    """The judge of a row, or the several of a sum: each of them is asked in its own way."""
    return parts_of(row.truth) if row.verifier == SUM else (Part(row.verifier, row.truth),)


def _judgement(row: Row, part: Part, text: str) -> Judgement:
    prompt = spoken(row.prompt) if part.verifier in MODEL_VERIFIERS else ""
    return Judgement(part.verifier, prompt, text, part.truth)


def _graded(one: Judgement, sandbox: str) -> Grade:
    """A verdict without a model; other packages' judges run where they can hang or die without harm."""
    if one.verifier in PROGRAMS:
        return verifier(one.verifier)(one.text, one.truth, sandbox=sandbox)  # type: ignore[call-arg]
    if not is_custom(one.verifier):
        return verifier(one.verifier)(one.text, one.truth)
    try:
        found: Grade = call("tercet.verify:judged", (one.verifier, one.text, one.truth), CUSTOM_SECONDS)
    except WorkerTimeoutError as error:
        return Grade(0.0, outcome="timeout", detail=str(error))
    except WorkerError as error:
        return Grade(0.0, outcome="error", detail=str(error))
    return found


def _heard(one: Judgement, reply: Completion) -> Grade:
    if reply.error:
        return Grade(0.0, outcome="error", detail=f"{one.verifier} got no reply: {reply.error}")
    return model_verifier(one.verifier).read(reply.text, one.truth)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _place(row: Row) -> str:
    return f"row {row.id!r} of {row.source or 'an unnamed source'}"
