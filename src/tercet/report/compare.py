"""Paired differences between checkpoints, and the sentences that say them.

Two checkpoints answered the same items, so their difference is estimated item by item, as `tercet compare` does: for
right and wrong answers with Bonett and Price's interval, which counts one more item gained and one more lost, else as
the mean of d_i with standard error s_d / sqrt(n) and Student's t. Where the score is the mean over subsets, so is the
difference. Bits per byte is a ratio of sums, so its error is that of the linearised ratio. The page
says "better" or "worse" when the interval excludes zero and the p-value (McNemar's exact test for 0/1 scores, else the
paired t) stays below 5 % after Holm's correction for all tasks that the two checkpoints were compared on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tercet import stats
from tercet.report.collect import Checkpoint, Object, TaskScore
from tercet.stats import Comparison

MOST_INTERVALS = 6  # with more tasks than these the story gives their names and no intervals

Changes = dict[str, dict[str, list[Comparison | None]]]


def changes(points: Sequence[Checkpoint]) -> Changes:
    """By task, for every later checkpoint: against the one before ("step") and against the first ("base")."""
    tasks = [score.task for score in tasks_of(points)]
    step = [family(a, b, tasks) for a, b in pairwise(points)]
    base = step[:1] + [family(points[0], b, tasks) for b in points[2:]]
    return {task: {"step": [one[task] for one in step], "base": [one[task] for one in base]} for task in tasks}


def family(before: Checkpoint, after: Checkpoint, tasks: Sequence[str]) -> dict[str, Comparison | None]:
    """The differences of two checkpoints on all tasks, their p-values corrected for how many tasks are compared."""
    tested = [found for task in tasks if (found := difference(task, before, after))]
    return dict.fromkeys(tasks) | {one.task: one for one in stats.corrected(tested)}


def difference(task: str, before: Checkpoint, after: Checkpoint) -> Comparison | None:
    """The paired difference of one task, or None when the checkpoints share fewer than two items of it."""
    a, b = ({item: r for (name, item), r in side.results.items() if name == task} for side in (before, after))
    pairs = stats.pair(a, b, missing="leave_out")
    evaluated = task in before.scores and task in after.scores
    return stats.compare(pairs) if evaluated and len(pairs.a) > 1 else None


def average_change(parts: Sequence[Sequence[Comparison | None]]) -> Comparison | None:
    """The change of a suite's average over its rows of tasks; None if a task is missing."""
    rows = [[one for one in row if one] for row in parts]
    if not rows or not all(rows) or any(None in row for row in parts):  # nothing is known of a row without tasks
        return None
    return stats.average(rows, "average")


def tasks_of(points: Sequence[Checkpoint]) -> list[TaskScore]:
    """One score of each task (its first), in the order of the evaluations."""
    first: dict[str, TaskScore] = {}
    for point in points:
        for name, score in point.scores.items():
            first.setdefault(name, score)
    return list(first.values())


def amount(value: float, metric: str, *, sign: bool = False) -> str:
    """A score as text: percent for shares, three decimals for bits per byte; a true minus sign."""
    shown, digits = (value, 3) if metric == "bpb" else (100 * value, 1)
    shown = round(shown, digits) + 0.0  # no negative zero
    text = f"{shown:{'+' if sign and shown else ''}.{digits}f}"
    return text.replace("-", "−") + ("" if metric == "bpb" or sign else " %")


def story(model: str, points: Sequence[Checkpoint], against: Mapping[str, Sequence[Comparison | None]]) -> str:
    """The run in two sentences, generated from the numbers; `against` are the changes against the first checkpoint."""
    first, last = points[0], points[-1]
    num_items = len({key for point in points for key in point.results})
    if len(points) == 1:
        return f"One checkpoint of {model} was evaluated on {num_items:,} items. There is no other to compare it with."
    labels = _list(list(dict.fromkeys(point.label for point in points)))
    same = all(point.results.keys() == first.results.keys() for point in points)
    num = f"{'the same' if same else 'up to'} {num_items:,} items"
    opening = f"Checkpoints of {model} ({labels}) were evaluated on {num}."
    ends = [(last.scores[task], found[-1]) for task, found in against.items() if task in last.scores]
    few = len(ends) <= MOST_INTERVALS
    tasks = {v: [_with_interval(s, d) if few else s.title for s, d in ends if d and d.verdict == v] for v in _PHRASES}
    parts = [f"{phrase} {_list(tasks[verdict])}" for verdict, (phrase, _) in _PHRASES.items() if tasks[verdict]]
    if not parts:
        return opening
    how = "95 % intervals" if few else f"{sum(map(len, tasks.values()))} tasks at once, corrected for that"
    return f"{opening} Compared item by item with {first.label} ({how}), {last.label} {'; it '.join(parts)}."


def steps(points: Sequence[Checkpoint], found: Mapping[str, Sequence[Comparison | None]]) -> list[Object]:
    """For each checkpoint after the first: what it changed against the one before, by verdict."""
    out = []
    for i, (before, after) in enumerate(pairwise(points)):
        ends = [(after.scores[task], row[i]) for task, row in found.items() if task in after.scores]
        named = {v: [s.title for s, d in ends if d and d.verdict == v] for v in _PHRASES}
        clauses = [f"{phrase} {_list(named[v])}" for v, (_, phrase) in _PHRASES.items() if named[v]]
        out.append({"before": before.label, "after": after.label, "text": "; ".join(clauses) or "nothing to compare"})
    return out


_PHRASES = {  # verdict -> how the story and how a step says it
    "better": ("is significantly better on", "better on"),
    "worse": ("is significantly worse on", "worse on"),
    "unclear": ("shows no significant difference on", "no significant difference on"),
}


def _with_interval(score: TaskScore, found: Comparison) -> str:
    unit = " bits per byte" if score.lower_is_better else " points"
    low, high = amount(found.low, score.metric, sign=True), amount(found.high, score.metric, sign=True)
    return f"{score.title} ({amount(found.difference, score.metric, sign=True)}{unit}, {low} to {high})"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
