"""Two exams of two checkpoints, item against item: what changed, and could it be chance?

Both checkpoints answered the same questions, so the differences are taken per item. 0/1 scores are tested with
McNemar's exact test, everything else with a paired t; the 95 % interval is that of the paired difference. An item that
either of them could not be asked, or that could not be judged, is left out on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

from tercet.evals.results import Result, by_subset, column, estimate
from tercet.evals.suite import SUITES, averages
from tercet.rows_file import read_file
from tercet.stats import Estimate, holm, macro, mcnemar, mean, minimum_detectable, pooled, ratio

ALL_ACCURACY = "all accuracy tasks"
AVERAGE = "suite average"


class CompareError(ValueError):
    """Two exams cannot be compared item by item."""


@dataclass(frozen=True)
class Comparison:
    """One line of a comparison: `difference` is b - a. For bpb (bits per byte) a negative difference is the better one.

    `p_holm` is corrected for the number of tasks compared; the pooled line is a single question and keeps its p-value.
    `stderr_clustered` allows for items that share a template; None when none do. `relative` is difference / a.
    """

    task: str
    metric: str
    n: int
    a: float
    b: float
    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    test: str
    minimum_detectable: float
    relative: float | None
    stderr_clustered: float | None = None
    p_holm: float = math.nan


def compare(a: Path, b: Path, tasks: Sequence[str] | None = None) -> list[Comparison]:
    """Paired comparison of two eval payloads (folders or results.jsonl): a line per task, then the pooled line."""
    pairs = _paired(_by_task(a), _by_task(b), tasks, f"{a} and {b}")
    lines = [_compared(task, left, right) for task, (left, right) in pairs.items()]
    adjusted = holm([line.p_value for line in lines])
    lines = [replace(line, p_holm=p) for line, p in zip(lines, adjusted, strict=True)]
    accuracy = [pair for pair in pairs.values() if pair[0][0]["metric"] == "accuracy"]
    return [*lines, *([_all_accuracy(accuracy)] if len(accuracy) > 1 else []), *_averages(lines)]


def markdown(lines: Sequence[Comparison], a: str, b: str) -> str:
    """The comparison as a table for a page or an issue, with what its numbers mean."""
    head = f"| task | n | {a} | {b} | difference | 95 % interval | p | p (Holm) | detectable |"
    rows = [
        f"| {line.task} | {line.n} | {line.a:.3f} | {line.b:.3f} | {line.difference:+.3f} "
        f"| [{line.low:+.3f}, {line.high:+.3f}] | {line.p_value:.2g} | {line.p_holm:.2g} "
        f"| {line.minimum_detectable:.3f} |"
        for line in lines
    ]
    return "\n".join([head, "|---|" + "--:|" * 8, *rows, "", note(lines)])


def note(lines: Sequence[Comparison]) -> str:
    """How to read the p-values: how many questions were asked at once, and what stands after correction."""
    tested = [line for line in lines if line.test != AVERAGE and line.task != ALL_ACCURACY]
    stands = [line.task for line in tested if line.p_holm < 0.05]
    found = f"significant at 5 % after Holm's correction: {', '.join(stands) or 'none'}"
    return f"{len(tested)} task{'s were' if len(tested) != 1 else ' was'} compared at once; {found}."


def load(path: Path) -> list[Result]:
    """The results of an eval artefact, of its payload, or of a results.jsonl file."""
    choices = (path, path / "results.jsonl", path / "payload" / "results.jsonl")
    found = next((choice for choice in choices if choice.is_file()), None)
    if found is None:
        raise CompareError(f"{path}: holds no results.jsonl; name a finished eval artefact")
    results = list(read_file(found))
    if not results:
        raise CompareError(f"{found}: holds no results")
    return results


Pairs = dict[str, tuple[list[Result], list[Result]]]


def _by_task(path: Path) -> dict[str, dict[str, Result]]:
    tasks: dict[str, dict[str, Result]] = {}
    for result in load(path):
        tasks.setdefault(result["task"], {})[result["item"]] = result
    return tasks


def _paired(
    a: dict[str, dict[str, Result]], b: dict[str, dict[str, Result]], tasks: Sequence[str] | None, where: str
) -> Pairs:
    wanted = list(tasks) if tasks else list(a)
    missing = [task for task in wanted if task not in a or task not in b]
    if missing or (tasks is None and a.keys() != b.keys()):
        raise CompareError(
            f"{where}: tasks differ ({', '.join(a)} against {', '.join(b)}); name tasks that both were given"
        )
    pairs: Pairs = {}
    for task in wanted:
        left, right = a[task], b[task]
        strange = [item for item in {**left, **right} if item not in left or item not in right]
        failed = [item for item in left if "error" in (left[item]["outcome"], right.get(item, left[item])["outcome"])]
        strange = strange or [item for item in left if left[item]["digest"] != right[item]["digest"]]
        if strange:
            raise CompareError(
                f"{where}: were not given the same exam; {len(strange)} items of {task} differ, first {strange[0]!r}. "
                "Examine both checkpoints on one prompts artefact"
            )
        asked = [item for item in left if item not in failed]
        if not asked:
            raise CompareError(f"{where}: no item of {task} was answered by both")
        pairs[task] = ([left[item] for item in asked], [right[item] for item in asked])
    return pairs


def _compared(task: str, a: list[Result], b: list[Result]) -> Comparison:
    templates = [result["template"] for result in a]
    shared = 1 < len(set(templates)) < len(templates)
    difference = _difference(a, b)
    binary = {*column(a, "score"), *column(b, "score")} <= {0.0, 1.0}
    return _line(
        difference,
        task=task,
        metric=a[0]["metric"],
        ends=(_level(a), _level(b)),
        scores=(column(a, "score"), column(b, "score")) if binary and a[0]["metric"] != "bpb" else None,
        clustered=_difference(a, b, templates).stderr if shared else None,
    )


def _difference(a: list[Result], b: list[Result], clusters: Sequence[str] | None = None) -> Estimate:
    """b - a: the mean over items, or for bpb the ratio of saved bits to bytes (the same bytes on both sides)."""
    key = "bits" if a[0]["metric"] == "bpb" else "score"
    changes = [y - x for x, y in zip(column(a, key), column(b, key), strict=True)]
    if key == "bits":
        return ratio(changes, column(a, "num_bytes"), clusters)
    return mean(changes, clusters) if clusters or not _is_macro(a) else macro(by_subset(a, changes))


def _level(results: list[Result]) -> float:
    return macro(by_subset(results, column(results, "score"))).value if _is_macro(results) else estimate(results).value


def _is_macro(results: list[Result]) -> bool:
    return results[0].get("aggregate") == "macro" and len({result["subset"] for result in results}) > 1


def _averages(lines: Sequence[Comparison]) -> list[Comparison]:
    """The averages of suites whose every row was compared: mean of the rows' differences, errors added in squares."""
    kept = {line.task: line for line in lines}
    parts = [
        averages({task: {"score": getattr(line, key), "stderr": line.stderr} for task, line in kept.items()})
        for key in ("a", "b", "difference")
    ]
    found = []
    for suite, whole in parts[2].items():
        for label, one in whole["averages"].items():
            size = sum(kept[task].n for names in SUITES[suite].rows.values() for task in names)
            half = NormalDist().inv_cdf(0.975) * one["stderr"]
            estimated = Estimate(
                one["score"], one["stderr"], one["score"] - half, one["score"] + half, size, size - len(kept)
            )
            ends = tuple(part[suite]["averages"][label]["score"] for part in parts[:2])
            line = _line(estimated, task=f"{suite}, {label}", metric=AVERAGE, ends=ends, scores=None, clustered=None)
            found.append(replace(line, test=AVERAGE, p_holm=line.p_value))
    return found


def _all_accuracy(pairs: Sequence[tuple[list[Result], list[Result]]]) -> Comparison:
    """All items of the verified tasks together; the error is that within tasks."""
    left = [column(a, "score") for a, _ in pairs]
    right = [column(b, "score") for _, b in pairs]
    changes = [[y - x for x, y in zip(a, b, strict=True)] for a, b in zip(left, right, strict=True)]
    scores = [x for group in left for x in group], [x for group in right for x in group]
    line = _line(
        pooled(changes),
        task=ALL_ACCURACY,
        metric="accuracy",
        ends=(pooled(left).value, pooled(right).value),
        scores=scores if {*scores[0], *scores[1]} <= {0.0, 1.0} else None,
        clustered=None,
    )
    return replace(line, p_holm=line.p_value)


def _line(
    difference: Estimate,
    *,
    task: str,
    metric: str,
    ends: tuple[float, ...],
    scores: tuple[list[float], list[float]] | None,
    clustered: float | None,
) -> Comparison:
    """A comparison from its paired difference; 0/1 `scores` are tested with McNemar's test."""
    return Comparison(
        task=task,
        metric=metric,
        n=difference.n,
        a=ends[0],
        b=ends[1],
        difference=difference.value,
        stderr=difference.stderr,
        low=difference.low,
        high=difference.high,
        p_value=mcnemar(*scores) if scores else difference.p_value,
        test="McNemar, exact" if scores else "paired t",
        minimum_detectable=minimum_detectable(difference.stderr),
        relative=difference.value / ends[0] if ends[0] else None,
        stderr_clustered=clustered,
    )
