"""Paired differences between checkpoints, and the sentences that say them (hop 12 of the road).

Two checkpoints answered the same items, so their difference is estimated item by item: the mean of d_i, with standard
error s_d / sqrt(n) and Student's t for the 95 % interval, as `tercet compare` does. Right-or-wrong tasks also need the
exact McNemar test to agree before the page says "better" or "worse". Bits per byte is a ratio of sums, so its error is
that of the linearised ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tercet.report.facts import Checkpoint, Object, Score
from tercet.stats import mcnemar, minimum_detectable, ratio


@dataclass(frozen=True)
class Difference:
    """`after - before` on the items both answered; `verdict` is "better", "worse" or "unclear".

    `p` is McNemar's, None where scores are not 0/1. `by_template` is the half-width of the interval when items made
    from one template count as one unit, None when no two items share one. `detectable` has 80 % power.
    """

    task: str
    before: str
    after: str
    n: int
    value: float
    low: float
    high: float
    p: float | None
    gained: int
    lost: int
    verdict: str
    by_template: float | None
    detectable: float


def difference(task: str, before: Checkpoint, after: Checkpoint) -> Difference | None:
    """The paired difference of one task, or None when the checkpoints share fewer than two items of it."""
    shared = [key for key in before.results if key[0] == task and key in after.results]
    if len(shared) < 2:
        return None
    olds, news = [before.results[key] for key in shared], [after.results[key] for key in shared]
    score = after.scores[task]
    column = "bits" if score.lower_is_better else "score"
    old, new = ([float(result[column]) for result in side] for side in (olds, news))
    weights = [float(result["num_bytes"]) for result in olds] if score.lower_is_better else [1.0] * len(olds)
    changes = [b - a for a, b in zip(old, new, strict=True)]
    plain = ratio(changes, weights)
    templates = [str(result["template"]) for result in olds]
    clustered = ratio(changes, weights, templates) if 1 < len(set(templates)) < len(templates) else None
    binary = not score.lower_is_better and {*old, *new} <= {0.0, 1.0}
    gained = sum(b > a for a, b in zip(old, new, strict=True)) if binary else 0
    lost = sum(b < a for a, b in zip(old, new, strict=True)) if binary else 0
    p = mcnemar(old, new) if binary else None
    clear = (plain.low > 0 or plain.high < 0) and (p is None or p < 0.05)
    verdict = ("better" if (plain.value > 0) != score.lower_is_better else "worse") if clear else "unclear"
    return Difference(
        task=task,
        before=before.label,
        after=after.label,
        n=len(shared),
        value=plain.value,
        low=plain.low,
        high=plain.high,
        p=p,
        gained=gained,
        lost=lost,
        verdict=verdict,
        by_template=(clustered.high - clustered.low) / 2 if clustered else None,
        detectable=minimum_detectable(plain.stderr),
    )


def tasks_of(points: Sequence[Checkpoint]) -> list[Score]:
    """One score of each task (its first), in the order of the exams."""
    first: dict[str, Score] = {}
    for point in points:
        for name, score in point.scores.items():
            first.setdefault(name, score)
    return list(first.values())


def differences(points: Sequence[Checkpoint], task: str) -> dict[str, list[Difference | None]]:
    """Per later checkpoint: against the one before ("step") and against the first ("base")."""

    def one(before: Checkpoint, after: Checkpoint) -> Difference | None:
        return difference(task, before, after) if task in before.scores and task in after.scores else None

    step = [one(a, b) for a, b in pairwise(points)]
    return {"step": step, "base": [one(points[0], b) for b in points[1:]]}


def amount(value: float, metric: str, *, sign: bool = False) -> str:
    """A score as text: percent for shares, three decimals for bits per byte; a true minus sign."""
    shown, digits = (value, 3) if metric == "bpb" else (100 * value, 1)
    shown = round(shown, digits) + 0.0  # no negative zero
    text = f"{shown:{'+' if sign and shown else ''}.{digits}f}"
    return text.replace("-", "−") + ("" if metric == "bpb" or sign else " %")


def story(model: str, points: Sequence[Checkpoint], changes: dict[str, list[Difference | None]]) -> str:
    """The run in two sentences, generated from the numbers; `changes` are those against the first checkpoint."""
    first, last = points[0], points[-1]
    items = len(last.results)
    if len(points) == 1:
        return f"{model} sat an exam of {items} items. There is no other checkpoint to compare it with."
    middle = _list([point.label for point in points[1:]])
    opening = f"{model} was taken through {middle}, and each checkpoint sat the same exam of {items} items."
    ends = [(last.scores[task], found[-1]) for task, found in changes.items() if task in last.scores]
    told = {
        verdict: [_told(s, d) for s, d in ends if d and d.verdict == verdict]
        for verdict in ("better", "worse", "unclear")
    }
    parts = []
    if told["better"]:
        parts.append(f"is significantly better on {_list(told['better'])}")
    if told["worse"]:
        parts.append(f"is significantly worse on {_list(told['worse'])}")
    if told["unclear"]:
        parts.append(f"shows no significant difference on {_list(told['unclear'])}")
    if not parts:
        return opening
    return f"{opening} Compared item by item with {first.label} (95 % intervals), {last.label} {'; it '.join(parts)}."


def steps(points: Sequence[Checkpoint], changes: dict[str, list[Difference | None]]) -> list[Object]:
    """For each checkpoint after the first: what it changed against the one before, by verdict."""
    out = []
    for i, (before, after) in enumerate(pairwise(points)):
        ends = [(after.scores[task], found[i]) for task, found in changes.items() if task in after.scores]
        named = {v: [s.skill for s, d in ends if d and d.verdict == v] for v in ("better", "worse", "unclear")}
        clauses = [f"{text} {_list(named[v])}" for v, text in _CLAUSES if named[v]]
        out.append({"before": before.label, "after": after.label, "text": "; ".join(clauses) or "nothing to compare"})
    return out


_CLAUSES = (("better", "better on"), ("worse", "worse on"), ("unclear", "no significant difference on"))


def _told(score: Score, found: Difference) -> str:
    unit = " bits per byte" if score.lower_is_better else " points"
    low, high = amount(found.low, score.metric, sign=True), amount(found.high, score.metric, sign=True)
    return f"{score.skill} ({amount(found.value, score.metric, sign=True)}{unit}, {low} to {high})"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
