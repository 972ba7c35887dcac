"""LLM judges that give scores: an opinion on a scale, or a list of rubrics. Pure text; llm_judges.py asks.

One question, one reply: a JSON object with REASONING and SCORE. Like open-instruct's LLM judges and rubric verifier in
what they return; the wording is ours. The judges of published evaluations are in published_judges.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tercet.rows import Message, Messages, Sampling
from tercet.verify.grade import Grade, VerifierError, is_number, read_reference, unread, unreadable
from tercet.verify.llm_judges import Case, LLMJudge, unasked
from tercet.verify.published_judges import TEXTS, block

NUMBER = r"[\"']?(-?\d+(?:\.\d+)?)(?![\d.]*\d)(?!e[+-]?\d)"
SCORE = re.compile(rf"[\"']?\bscore\b[\"']?\s*[:=]\s*{NUMBER}", re.IGNORECASE)
SCORES = re.compile(r"[\"']?\bscores\b[\"']?\s*[:=]\s*\[([^\[\]]*)\]", re.IGNORECASE)
# The same with marks of bold or code around the name and before the value, read where nothing above is found.
MARKS = r"[\"'*_`]*\s*[:=][*_`\s]*"
MARKED_SCORE = re.compile(rf"(?<![a-z])score{MARKS}{NUMBER}", re.IGNORECASE)
MARKED_SCORES = re.compile(rf"(?<![a-z])scores{MARKS}\[([^\[\]]*)\]", re.IGNORECASE)
RUBRICS = '[{"rubric": "Names the capital.", "weight": 2.0}, {"description": "Is rude.", "weight": -1.0}]'
BEST = 2.0  # points for a rubric that holds entirely
REPLY = Sampling(1024, fit=True)


def _question(task: str, case: Case, beside: Sequence[str], form: str) -> Messages:
    parts = [f"{task} {TEXTS['fair']}", block("conversation", case.prompt), block("answer", case.completion), *beside]
    return (Message("user", "\n\n".join([*parts, f"{TEXTS['reply']}\n{form}"])),)


def _empty(case: Case) -> Grade | None:
    done = bool(case.completion.strip())
    return None if done else Grade(0.0, outcome="unparsed", detail="the completion is empty")


def _scoring_judge(
    name: str, messages: Callable[[Case], Messages], read: Callable[[str, Case], Grade]
) -> LLMJudge[Case, Grade]:
    """A judge that is asked again, at a higher temperature, until its reply can be read."""
    return LLMJudge(name, messages, read, unasked, _empty, lambda grade: grade.outcome == "graded", REPLY)


# ---- quality@1, quality_ref@1, safety@1, factuality@1, refusal@1: one score ----


@dataclass(frozen=True)
class Scale:
    """What is asked, and from what to what; `reference`: the reference answer is a good answer."""

    task: str
    low: float = 0.0
    high: float = 1.0
    reference: bool = False


def _messages(case: Case, *, name: str, scale: Scale) -> Messages:
    if scale.reference and not case.reference.strip():
        raise VerifierError(f"{name} compares with a reference answer, which must not be empty")
    form = f'{{"REASONING": "one or two sentences", "SCORE": a number from {scale.low:g} to {scale.high:g}}}'
    beside = [block("reference answer", case.reference)] if scale.reference else []
    return _question(scale.task, case, beside, form)


def _read(reply: str, case: Case, *, scale: Scale) -> Grade:
    """The last SCORE of the reply, if it lies on the scale."""
    found = SCORE.findall(reply) or MARKED_SCORE.findall(reply)
    if not found or not scale.low <= float(found[-1]) <= scale.high:
        return _unread(reply, f"SCORE from {scale.low:g} to {scale.high:g}")
    return Grade(float(found[-1]) / scale.high, found[-1], detail=_short(reply))


def _refusal_messages(case: Case) -> Messages:
    if case.reference not in ("", "refuse", "comply"):
        expected = "'refuse' (or nothing) or 'comply' as reference answer"
        raise unreadable("refusal@1", expected, case.reference)
    return _messages(case, name="refusal@1", scale=Scale(TEXTS["refusal"]))


def _read_refusal(reply: str, case: Case) -> Grade:
    """How far it refuses; where the reference answer is "comply", how far it does not."""
    grade = _read(reply, case, scale=Scale(TEXTS["refusal"]))
    if case.reference != "comply" or grade.outcome != "graded":
        return grade
    return Grade(1.0 - grade.score, grade.answer, detail=grade.detail)


# ---- rubric@1: several statements, each with a weight, in one request ----


def _rubric_messages(case: Case) -> Messages:
    """All rubrics in one request: a judge then reads the answer once."""
    rubrics = _rubrics(case.reference)
    listed = "\n".join(f"{number}. {text}" for number, (text, _) in enumerate(rubrics, 1))
    form = f'{{"REASONING": "a few words on each", "SCORES": [{len(rubrics)} numbers, in the order of the statements]}}'
    return _question(TEXTS["rubric"], case, [block("statements", listed)], form)


def _read_rubrics(reply: str, case: Case) -> Grade:
    """Sum of weight x score / 2, over the sum of the weights' sizes; a negative weight makes a fault of a statement."""
    rubrics, found = _rubrics(case.reference), SCORES.findall(reply) or MARKED_SCORES.findall(reply)
    scores = _numbers(found[-1]) if found else []
    if len(scores) != len(rubrics) or not all(0 <= score <= BEST for score in scores):
        return _unread(reply, f"SCORES, {len(rubrics)} numbers from 0 to {BEST:g}")
    shares = [score / BEST for score in scores]
    total = math.fsum(weight * share for (_, weight), share in zip(rubrics, shares, strict=True))
    numbers = {f"rubric_{number}": share for number, share in enumerate(shares, 1)}
    size = math.fsum(abs(weight) for _, weight in rubrics)
    return Grade(total / size, f"[{found[-1].strip()}]", detail=_short(reply), numbers=numbers)


def _rubrics(reference: str) -> list[tuple[str, float]]:
    """Statement and weight of each rubric; a weight is 1 unless given."""
    value = read_reference("rubric@1", reference, RUBRICS)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise unreadable("rubric@1", f"a JSON list of objects as reference answer, e.g. {RUBRICS}", reference)
    found = [(one.get("rubric") or one.get("description"), one.get("weight", 1.0)) for one in value]
    good = all(isinstance(text, str) and text.strip() and is_number(weight) for text, weight in found)
    if not good or not any(weight for _, weight in found):
        expected = "rubrics with a text ('rubric' or 'description') and a weight, not all 0"
        raise unreadable("rubric@1", f"{expected}, e.g. {RUBRICS}", reference)
    return [(text.strip(), float(weight)) for text, weight in found]


def _numbers(listed: str) -> list[float]:
    """The numbers of a list as text; none when one of them is none."""
    try:
        return [float(item.strip().strip("\"'*`")) for item in listed.split(",")]
    except ValueError:
        return []


def _unread(reply: str, wanted: str) -> Grade:
    return unread(f"expected {wanted}; the judge replied {_short(reply)!r}")


def _short(reply: str) -> str:
    return " ".join(reply.split())[:300]


def _scaled(name: str, scale: Scale) -> LLMJudge[Case, Grade]:
    return _scoring_judge(name, partial(_messages, name=name, scale=scale), partial(_read, scale=scale))


QUALITY = _scaled("quality@1", Scale(TEXTS["quality"], 1, 10))
QUALITY_REF = _scaled("quality_ref@1", Scale(TEXTS["quality_ref"], 1, 10, reference=True))
SAFETY = _scaled("safety@1", Scale(TEXTS["safety"]))
FACTUALITY = _scaled("factuality@1", Scale(TEXTS["factuality"], reference=True))
REFUSAL = _scoring_judge("refusal@1", _refusal_messages, _read_refusal)
RUBRIC = _scoring_judge("rubric@1", _rubric_messages, _read_rubrics)
