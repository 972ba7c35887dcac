"""The statistics of evaluations: how sure we are of a score, and whether two checkpoints differ.

Pure functions on lists of per-item numbers, and at the end on results, where two checkpoints are compared item by item.
Everything is one estimator: a ratio of sums, total over weight, whose error comes from the items' residuals. With
weights of one it is the ordinary mean (standard error: sd with n-1, over root n); with bytes as weights it is corpus
bits per byte; given two models' totals subtracted it is a paired difference. Its 95 % intervals use Student's t with
one degree of freedom fewer than there are independent units. Where items are right or wrong, shares have intervals of
their own (`wilson`, `paired_share`). No error of a comparison is ever zero: items that all agree are few, and `widened`
says how little they show.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from tercet.records import Result
from tercet.stats_t import CONFIDENCE, t_p_value, t_quantile

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
        if self.stderr <= 1e-12 * abs(self.value):  # all units are equal, as all of so many tosses of a coin can be
            return 1.0 if self.value == 0 else 2.0**-self.df
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


def paired_share(gained: int, lost: int, n: int) -> Estimate:
    """The change (gained - lost) / n of a share of the same 0/1 items, with Bonett and Price's 95 % interval.

    Two more items are counted, one gained and one lost: p = (gained + 1) / (n + 2), q = (lost + 1) / (n + 2), and the
    interval is p - q ± 1.96 stderr with stderr = sqrt((p + q - (p - q)^2) / (n + 2)); without any change it is
    ± 2.77 / (n + 2). Bonett & Price (2012), Adjusted Wald confidence interval ... based on paired data.
    """
    p, q = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    stderr = math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * stderr
    return Estimate((gained - lost) / n, stderr, max(-1.0, p - q - half), min(1.0, p - q + half), n, n - 1)


def widened(found: Estimate, spread: float) -> Estimate:
    """The estimate as if two more units changed, one up and one down, by spread / sqrt(2): what `paired_share` does.

    Few changes among many equal values make Student's t too sure, and none make it certain.
    """
    return _estimate(found.value, math.hypot(found.stderr, spread / (found.df + 3)), found.n, found.df)


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


def mean_score(scores: Sequence[float]) -> Estimate:
    """Mean of scores between 0 and 1; where all are one number, the error is that of one more item with another."""
    return _uncertain(mean(scores))


def level(results: Sequence[Result]) -> Estimate:
    """What a task is quoted by: the mean over its subsets where the task says so, else that over items."""
    scores = [result.score for result in results]
    if results[0].aggregate == "macro":
        return _uncertain(macro(_by_subset(results, scores)))
    return estimate(results) if results[0].metric == "bpb" else mean_score(scores)


def interval(results: Sequence[Result], plain: Estimate) -> tuple[float, float, str]:
    """The 95 % interval of a score, and how it was found: Wilson's for a share of 0/1 items, else Student's t.

    A mean over subsets is no share of items, save where all items are right or all are wrong.
    """
    scores, first = [result.score for result in results], results[0]
    binary = {*scores} <= {0.0, 1.0} and first.metric != "bpb"
    if binary and (first.aggregate != "macro" or len({*scores}) == 1):
        return *wilson(sum(scores), len(scores)), "95 %, Wilson"
    if first.metric == "bpb" or min(scores) < 0 or max(scores) > 1:  # a user's verifier may have a scale of its own
        return plain.low, plain.high, "95 %, Student's t"
    return max(0.0, plain.low), min(1.0, plain.high), "95 %, Student's t"


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
    def tied(self) -> bool:
        """Whether there are items that did not change, or all changed alike."""
        return 0.0 in self.changes or len({*self.changes}) == 1

    @property
    def spread(self) -> float:
        """What two items add to an error that change by the largest change, one up and one down (see `widened`).

        Where nothing changed, an item could have changed by 1, the whole scale, or by all its bits per byte.
        """
        sizes = [float(one.num_bytes) if one.metric == "bpb" else 1.0 for one in self.a]
        most = max(abs(change) / size for change, size in zip(self.changes, sizes, strict=True))
        return math.sqrt(2) * (most or (level(self.a).value if self.a[0].metric == "bpb" else 1.0))

    @property
    def verdicts(self) -> tuple[list[float], list[float]] | None:
        """The scores of both where every one is 0 or 1, so that McNemar's test applies; else None."""
        scores = [one.score for one in self.a], [one.score for one in self.b]
        return scores if {*scores[0], *scores[1]} <= {0.0, 1.0} and self.a[0].metric != "bpb" else None


def pair(a: Mapping[str, Result], b: Mapping[str, Result], missing: Literal["raise", "leave_out"] = "raise") -> Pairs:
    """The results of one task, by item, side by side.

    An item that one side lacks, or that asks something else there, is an error, or is left out if `missing` says so.
    An item that is lost on either side (it could not be asked or graded, or its verdict not be read) is always left
    out: it is neither right nor wrong. What is left out is counted.
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
    kept = [item for item in a if item in shared and not a[item].lost and not b[item].lost]
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

    0/1 scores are tested with McNemar's exact test and have the interval of `paired_share`; everything else has a
    paired t and its interval, which is `widened` where items did not change or all changed alike.
    """
    first, templates = pairs.a[0], [result.template for result in pairs.a]
    whole = first.aggregate == "macro" and first.metric != "bpb"
    plain = macro(_by_subset(pairs.a, pairs.changes)) if whole else estimate(pairs.a, totals=pairs.changes)
    changes = widened(plain, pairs.spread) if pairs.tied else plain
    if pairs.verdicts and not whole:
        changes = paired_share(pairs.changes.count(1.0), pairs.changes.count(-1.0), len(pairs.changes))
    line = comparison(first.task, first.metric, changes, (level(pairs.a).value, level(pairs.b).value), pairs.verdicts)
    line = replace(line, p_value=line.p_value if pairs.verdicts else plain.p_value, left_out=pairs.left_out)
    if not 1 < len({*templates}) < len(templates):
        return line
    clustered = estimate(pairs.a, templates, pairs.changes)
    clustered = clustered if any(pairs.changes) else widened(clustered, pairs.spread)
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


def _uncertain(found: Estimate) -> Estimate:
    return found if found.stderr else widened(found, 1.0)


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
