"""The statistics of evaluations: how sure we are of a score, and whether two checkpoints differ.

Pure functions on lists of per-item numbers, and at the end on results, where two checkpoints are compared item by item.
Everything is one estimator: a ratio of sums, total over weight, whose error comes from the items' residuals. With
weights of one it is the ordinary mean (standard error: sd with n-1, over root n); with bytes as weights it is corpus
bits per byte; given two models' totals subtracted it is a paired difference. All 95 % intervals use Student's t with
one degree of freedom fewer than there are independent units.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

from tercet.records import Result

CONFIDENCE = 0.95
POWER = 0.80


class GateError(Exception):
    """A gate of an eval stage was not met: the run stops with exit code 3."""

    exit_code = 3


class CompareError(ValueError):
    """Two evaluations cannot be compared item by item."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and 95 % interval (t, `df` degrees of freedom). One unit alone has error NaN."""

    value: float
    stderr: float
    low: float
    high: float
    n: int
    df: int

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true value is zero."""
        if math.isnan(self.stderr):
            return math.nan
        if self.stderr == 0:
            return 1.0 if self.value == 0 else 0.0
        return t_p_value(self.value / self.stderr, self.df)


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of independent items, or of items that share clusters (then residuals are summed per cluster)."""
    return ratio(values, [1.0] * len(values), clusters)


def ratio(totals: Sequence[float], weights: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """sum(totals) / sum(weights) with the delta-method error of a ratio of two sums over the same items.

    Residual of an item: e = total - ratio * weight. Summed over each of g clusters (without `clusters` every item is
    its own) they give E_1 .. E_g, and stderr = sqrt(g / (g - 1) * sum of E^2) / sum(weights).
    """
    if not totals or len(totals) != len(weights):
        raise ValueError(f"expected as many totals as weights, at least one; got {len(totals)} and {len(weights)}")
    total_weight = math.fsum(weights)
    value = math.fsum(totals) / total_weight
    residuals: dict[Hashable, list[float]] = {}
    for i, (total, weight) in enumerate(zip(totals, weights, strict=True)):
        residuals.setdefault(i if clusters is None else clusters[i], []).append(total - value * weight)
    units = len(residuals)
    if units < 2:
        return _estimate(value, math.nan, len(totals), 0)
    square = math.fsum(math.fsum(unit) ** 2 for unit in residuals.values())
    return _estimate(value, math.sqrt(units / (units - 1) * square) / total_weight, len(totals), units - 1)


def pooled(groups: Sequence[Sequence[float]]) -> Estimate:
    """Item-weighted mean over tasks; the variance is that within tasks, pooled with n_j - 1 degrees of freedom each."""
    size = sum(len(group) for group in groups)
    df = size - len(groups)
    value = math.fsum(x for group in groups for x in group) / size
    if df < 1:
        return _estimate(value, math.nan, size, 0)
    centres = [math.fsum(group) / len(group) for group in groups]
    square = math.fsum((x - centre) ** 2 for group, centre in zip(groups, centres, strict=True) for x in group)
    return _estimate(value, math.sqrt(square / df / size), size, df)


def macro(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean of task means, every task weighing the same: stderr = sqrt(sum se^2) / k.

    Where a task has one item only, and so no error of its own, the error is that of a mean over the tasks.
    """
    parts = [mean(group) for group in groups]
    if any(math.isnan(part.stderr) for part in parts):
        whole = mean([part.value for part in parts])
        return _estimate(whole.value, whole.stderr, sum(part.n for part in parts), whole.df)
    value = math.fsum(part.value for part in parts) / len(parts)
    stderr = math.sqrt(math.fsum(part.stderr**2 for part in parts)) / len(parts)
    return _estimate(value, stderr, sum(part.n for part in parts), sum(part.df for part in parts))


def weighted(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """The weighted sum of independent estimates: errors add in squares, and the interval is the normal one."""
    value = math.fsum(weight * part.value for part, weight in zip(parts, weights, strict=True))
    stderr = math.sqrt(math.fsum((weight * part.stderr) ** 2 for part, weight in zip(parts, weights, strict=True)))
    half, n = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * stderr, sum(part.n for part in parts)
    return Estimate(value, stderr, value - half, value + half, n, n - len(parts))


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of 0/1 items (Wilson's score interval): also right where all or none succeeded."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided p-value of McNemar's test for paired 0/1 scores (binomial on the items where they disagree)."""
    losses = sum(x > y for x, y in zip(a, b, strict=True))
    wins = sum(x < y for x, y in zip(a, b, strict=True))
    flips = losses + wins
    ways = tail = 1
    for k in range(min(losses, wins)):
        ways = ways * (flips - k) // (k + 1)  # each binomial coefficient from the one before
        tail += ways
    return min(1.0, 2 * tail / 2**flips)


def minimum_detectable(stderr: float) -> float:
    """Smallest true difference found with 80 % power by a two-sided test at 5 % with this standard error."""
    normal = NormalDist()
    return (normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) * stderr


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: significant at 5 % when below 0.05."""
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def estimate(
    results: Sequence[Result], clusters: Sequence[str] | None = None, totals: Sequence[float] | None = None
) -> Estimate:
    """The mean score over items, or corpus bits per byte; of `totals`, where given, instead of scores or bits."""
    totals = _totals(results) if totals is None else totals
    if results[0].metric == "bpb":
        return ratio(totals, [float(result.num_bytes) for result in results], clusters)
    return mean(totals, clusters)


def level(results: Sequence[Result]) -> Estimate:
    """What a task is quoted by: the mean over its subsets where the task says so, else that over items."""
    if results[0].aggregate == "macro":
        return macro(_by_subset(results, [result.score for result in results]))
    return estimate(results)


@dataclass(frozen=True)
class Pairs:
    """What two checkpoints made of the same items of one task, and how many items were left out."""

    a: list[Result]
    b: list[Result]
    left_out: int

    @property
    def changes(self) -> list[float]:
        """b - a of every item: its score, or its bits."""
        return [y - x for x, y in zip(_totals(self.a), _totals(self.b), strict=True)]

    @property
    def verdicts(self) -> tuple[list[float], list[float]] | None:
        """The scores of both where every one is 0 or 1, so that McNemar's test applies; else None."""
        scores = [one.score for one in self.a], [one.score for one in self.b]
        return scores if {*scores[0], *scores[1]} <= {0.0, 1.0} and self.a[0].metric != "bpb" else None


def pair(a: Mapping[str, Result], b: Mapping[str, Result], missing: Literal["raise", "leave_out"] = "raise") -> Pairs:
    """The results of one task, by item, side by side.

    An item that one side lacks, or that asks something else there, is an error, or is left out if `missing` says so.
    An item that failed on either side (it could not be asked, or not be graded) is always left out: it is neither right
    nor wrong. What is left out is counted.
    """
    items = list({**a, **b})
    strange = [item for item in items if item not in a or item not in b or a[item].digest != b[item].digest]
    if strange and missing == "raise":
        task = next(iter({**a, **b}.values())).task
        raise CompareError(
            f"were not given the same benchmark; {len(strange)} items of {task} differ, first {strange[0]!r}. "
            "Evaluate both checkpoints on one benchmark artifact"
        )
    shared = (a.keys() & b.keys()) - {*strange}
    kept = [item for item in a if item in shared and "error" not in (a[item].outcome, b[item].outcome)]
    return Pairs([a[item] for item in kept], [b[item] for item in kept], len(items) - len(kept))


@dataclass(frozen=True)
class Comparison:
    """A paired difference, `b - a`, of one task. For bpb (bits per byte) a negative difference is the better one.

    `p_holm` is corrected for the number of tasks compared at once. `stderr_clustered` allows for items that share one
    of `num_clusters` templates; None when none do. `relative` is difference / a. `gained` and `lost` count 0/1 items.
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
    left_out: int = 0
    gained: int = 0
    lost: int = 0
    num_clusters: int = 0

    @property
    def half_clustered(self) -> float | None:
        """Half the 95 % interval when items of one template count as one unit."""
        return None if self.stderr_clustered is None else t_quantile(self.num_clusters - 1) * self.stderr_clustered

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """What may be said: the interval excludes zero, and the corrected p-value is below 5 %; or it is unclear."""
        if self.p_holm < 0.05 and (self.low > 0 or self.high < 0):
            return "better" if (self.difference > 0) != (self.metric == "bpb") else "worse"
        return "unclear"


def compare(pairs: Pairs) -> Comparison:
    """The paired difference of one task, over its items or over its subsets as its score is.

    0/1 scores are tested with McNemar's exact test, everything else with a paired t; the interval is always that of t.
    """
    first, templates = pairs.a[0], [result.template for result in pairs.a]
    whole = first.aggregate == "macro" and first.metric != "bpb"
    changes = macro(_by_subset(pairs.a, pairs.changes)) if whole else estimate(pairs.a, totals=pairs.changes)
    line = comparison(first.task, first.metric, changes, (level(pairs.a).value, level(pairs.b).value), pairs.verdicts)
    line = replace(line, left_out=pairs.left_out)
    if not 1 < len({*templates}) < len(templates):
        return line
    clustered = estimate(pairs.a, templates, pairs.changes)
    return replace(line, stderr_clustered=clustered.stderr, num_clusters=clustered.df + 1)


def comparison(
    task: str,
    metric: str,
    difference: Estimate,
    ends: tuple[float, float],
    verdicts: tuple[list[float], list[float]] | None = None,
) -> Comparison:
    """A comparison from its paired difference; 0/1 `verdicts` are tested with McNemar's test."""
    flips = [y - x for x, y in zip(*verdicts, strict=True)] if verdicts else []
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
        p_value=mcnemar(*verdicts) if verdicts else difference.p_value,
        test="McNemar, exact" if verdicts else "paired t",
        minimum_detectable=minimum_detectable(difference.stderr),
        relative=difference.value / ends[0] if ends[0] else None,
        gained=flips.count(1.0),
        lost=flips.count(-1.0),
    )


def average(rows: Sequence[Sequence[Comparison]], name: str) -> Comparison:
    """The change of a suite's average: rows weigh the same, and so do the tasks of a row.

    One question is asked, so its p-value needs no correction.
    """
    lines, weights = [one for row in rows for one in row], [1 / len(row) / len(rows) for row in rows for _ in row]
    parts = [Estimate(one.difference, one.stderr, one.low, one.high, one.n, one.n - 1) for one in lines]
    a = math.fsum(weight * one.a for one, weight in zip(lines, weights, strict=True))
    b = math.fsum(weight * one.b for one, weight in zip(lines, weights, strict=True))
    line = comparison(name, "suite average", weighted(parts, weights), (a, b))
    return replace(line, test=line.metric, p_holm=line.p_value, left_out=sum(one.left_out for one in lines))


def corrected(lines: Sequence[Comparison]) -> list[Comparison]:
    """The lines of tasks that are compared at once, with Holm's p-values."""
    return [replace(line, p_holm=p) for line, p in zip(lines, holm([line.p_value for line in lines]), strict=True)]


def t_p_value(t: float, df: int) -> float:
    """P(|T| >= |t|) for Student's t: the regularised incomplete beta function I_x(df/2, 1/2) at x = df / (df + t^2)."""
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=1024)
def t_quantile(df: int) -> float:
    """The t that leaves 5 % outside [-t, t], e.g. 2.228 for df = 10; found by bisection."""
    low, high = 0.0, 1000.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_p_value(middle, df) > 1 - CONFIDENCE else (low, middle)
    return (low + high) / 2


def _totals(results: Sequence[Result]) -> list[float]:
    return [float((one.bits or 0.0) if one.metric == "bpb" else one.score) for one in results]


def _by_subset(results: Sequence[Result], values: Sequence[float]) -> list[list[float]]:
    parts: dict[str, list[float]] = {}
    for result, value in zip(results, values, strict=True):
        parts.setdefault(result.subset, []).append(value)
    return list(parts.values())


def _estimate(value: float, stderr: float, n: int, df: int) -> Estimate:
    half = t_quantile(df) * stderr if df > 0 else math.nan
    return Estimate(value, stderr, value - half, value + half, n, df)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below this point; use the symmetry above it
        return 1.0 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _beta_fraction(x, a, b)


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The denominator 1 + d1/(1 + d2/(1 + ...)) of the incomplete beta function, from its last term backwards."""
    value = 1.0
    for m in range(200, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        value = 1.0 + odd / (1.0 + even / value)
    return value
