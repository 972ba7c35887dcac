"""The statistics, against numbers worked out by hand or taken from printed tables, and their laws."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet import stats, stats_t
from tercet.records import Result
from tercet.stats import CompareError

floats = st.floats(-100, 100, allow_nan=False)
pairs = st.lists(st.tuples(floats, floats), min_size=2, max_size=30)
flips = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60)


def test_mean_has_the_textbook_standard_error_and_t_interval() -> None:
    found = stats.mean([1, 2, 3, 4])  # sd (n-1) = 1.290994, over root 4; t(3) = 3.182446
    assert found.value == 2.5
    assert found.stderr == pytest.approx(0.6454972)
    assert (found.low, found.high) == pytest.approx((2.5 - 2.0542603, 2.5 + 2.0542603))
    assert (found.n, found.df) == (4, 3)


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.706205), (2, 4.302653), (10, 2.228139), (30, 2.042272), (119, 1.980100), (10_000, 1.960201)]
)
def test_t_quantiles_are_those_of_the_printed_table(df: int, t: float) -> None:
    assert stats_t.t_quantile(df) == pytest.approx(t, abs=2e-6)
    assert stats_t.t_p_value(t, df) == pytest.approx(0.05, abs=1e-6)


@given(st.floats(0, 50), st.integers(1, 3))
def test_t_p_values_have_their_closed_forms(t: float, which: int) -> None:
    closed = {
        1: 1 - 2 / math.pi * math.atan(t),
        2: 1 - t / math.sqrt(2 + t * t),
        3: 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t)),
    }
    # near t = 0 the p-value loses half its digits
    assert stats_t.t_p_value(t, which) == pytest.approx(closed[which], abs=1e-7)


def test_one_item_has_no_error_bar() -> None:
    found = stats.mean([1.0])
    assert found.value == 1.0
    assert all(map(math.isnan, (found.stderr, found.low, found.high, found.p_value)))


def test_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stats.mean([])


def test_clusters_that_repeat_one_item_have_the_error_of_single_items() -> None:
    once = [0.0, 1.0, 1.0, 0.0, 1.0]
    twice = once + once
    found = stats.mean(twice, clusters=[*range(5), *range(5)])
    assert found.stderr == pytest.approx(stats.mean(once).stderr)
    assert found.df == 4
    assert found.stderr > stats.mean(twice).stderr


def test_ratio_weighs_by_size_and_its_error_is_that_of_the_delta_method() -> None:
    found = stats.ratio([8, 2], [4, 4])  # ratio 1.25, residuals 3 and -3, sqrt(2/1 * 18) / 8
    assert found.value == 1.25
    assert found.stderr == pytest.approx(0.75)


@given(st.lists(floats, min_size=2, max_size=30))
def test_standard_error_is_sd_over_root_n(values: list[float]) -> None:
    centre = math.fsum(values) / len(values)
    deviation = math.sqrt(sum((x - centre) ** 2 for x in values) / (len(values) - 1))
    assert stats.mean(values).stderr == pytest.approx(deviation / math.sqrt(len(values)), abs=1e-9)


def results(scores: Sequence[float], **more: Any) -> dict[str, Result]:
    """Results of one task by item, with these scores."""
    return {str(i): Result(task="t@1", item=str(i), score=one, **more) for i, one in enumerate(scores)}


@given(pairs)
def test_paired_difference_is_antisymmetric(both: list[tuple[float, float]]) -> None:
    a, b = (results([pair[side] for pair in both]) for side in (0, 1))
    there, back = stats.compare(stats.pair(a, b)), stats.compare(stats.pair(b, a))
    assert there.difference == -back.difference
    assert there.stderr == pytest.approx(back.stderr)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert (there.gained, there.lost) == (back.lost, back.gained)


def test_items_that_differ_are_an_error_or_left_out_and_counted() -> None:
    a, b = results([0.0, 1.0, 0.0, 1.0]), results([1.0, 1.0, 1.0])
    b["2"] = replace(b["2"], digest="another question")
    with pytest.raises(CompareError, match="2 items of t@1 differ, first '2'"):
        stats.pair(a, b)
    found = stats.pair(a, b, missing="leave_out")
    assert ([one.item for one in found.a], found.left_out) == (["0", "1"], 2)
    assert stats.compare(found).left_out == 2


def test_failed_items_are_always_left_out_and_counted() -> None:
    a, b = results([0.0, 1.0, 0.0]), results([1.0, 1.0, 1.0])
    a["0"] = replace(a["0"], outcome="error")
    b["1"] = replace(b["1"], outcome="error")
    found = stats.pair(a, b)
    assert ([one.item for one in found.a], found.left_out) == (["2"], 2)


def test_a_verdict_needs_both_the_interval_and_the_corrected_p_value() -> None:
    line = stats.compare(stats.pair(results([0.0] * 50), results([1.0] * 8 + [0.0] * 42)))
    assert (line.gained, line.lost, line.test) == (8, 0, "McNemar, exact")
    assert line.verdict == "unclear"  # its p-value is not corrected yet
    assert [one.verdict for one in stats.corrected([line])] == ["better"]
    assert {one.verdict for one in stats.corrected([line] * 10)} == {"unclear"}


@given(flips)
def test_mcnemar_does_not_care_who_is_first(both: list[tuple[float, float]]) -> None:
    a, b = ([pair[side] for pair in both] for side in (0, 1))
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    assert 0 < stats.mcnemar(a, b) <= 1


@given(flips)
def test_mcnemar_looks_only_at_items_that_changed(both: list[tuple[float, float]]) -> None:
    a, b = ([pair[side] for pair in both] for side in (0, 1))
    assert stats.mcnemar([*a, 1.0, 0.0], [*b, 1.0, 0.0]) == stats.mcnemar(a, b)


def test_mcnemar_is_the_exact_binomial() -> None:
    assert stats.mcnemar([0] * 10, [1] * 9 + [0]) == 2 / 2**9
    assert stats.mcnemar([1, 0, 0, 0], [0, 1, 1, 1]) == 2 * (1 + 4) / 16
    assert stats.mcnemar([1, 0], [1, 0]) == 1.0


def test_pooled_uses_the_variance_within_tasks() -> None:
    found = stats.pooled([[0, 1], [10, 11, 12]])  # squares within: 0.5 and 2, over 3 degrees, over 5 items
    assert found.value == 6.8
    assert found.stderr == pytest.approx(math.sqrt(2.5 / 3 / 5))
    assert found.df == 3


def test_macro_weighs_tasks_alike() -> None:
    found = stats.macro([[0, 1], [10, 11, 12]])  # standard errors 0.5 and 1/sqrt(3)
    assert found.value == 5.75
    assert found.stderr == pytest.approx(math.sqrt(0.25 + 1 / 3) / 2)


def test_minimum_detectable_difference_is_2_8_standard_errors() -> None:
    assert stats.minimum_detectable(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-6)


def test_holm_steps_down_and_never_falls() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_corrects_upwards_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = stats.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ordered = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert ordered == sorted(ordered)


def test_equal_values_are_as_unlikely_as_equal_tosses_of_a_coin() -> None:
    assert stats.mean([0, 0]).p_value == 1
    assert stats.mean([1, 1]).p_value == 0.5
    assert stats.mean([0.1] * 11).p_value == 2**-10


@pytest.mark.parametrize(
    ("gained", "lost", "n", "centre", "stderr", "low", "high"),
    [
        (
            26,
            4,
            48,
            0.44,
            0.09448809,
            0.2548067,
            0.6251933,
        ),  # the example of R's statpsych, ci.prop.ps(.05, 12, 4, 26, 6)
        (6, 16, 161, -0.0613, 0.0297, -0.1195, -0.0032),  # Cavo et al. 2012, as R's contingencytables prints it
        (1, 7, 21, -0.2609, 0.1263, -0.5084, -0.0134),  # Bentur et al. 2009, by hand
    ],
)
def test_paired_shares_have_the_interval_of_bonett_and_price(
    gained: int, lost: int, n: int, centre: float, stderr: float, low: float, high: float
) -> None:
    found = stats.paired_share(gained, lost, n)
    assert found.value == (gained - lost) / n
    assert found.stderr == pytest.approx(stderr, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert (found.low + found.high) / 2 == pytest.approx(centre, abs=1e-4)


def exact_coverage(n: int, gains: float, losses: float) -> float:
    """How often the interval holds the true difference: the sum of trinomial probabilities over all outcomes."""
    total = 0.0
    for won in range(n + 1):
        for lost in range(n + 1 - won):
            same = n - won - lost
            ways = math.comb(n, won) * math.comb(n - won, lost)
            found = stats.paired_share(won, lost, n)
            if found.low <= gains - losses <= found.high:
                total += ways * gains**won * losses**lost * (1 - gains - losses) ** same
    return total


@pytest.mark.parametrize("n", [5, 10, 20, 40])
def test_the_interval_of_paired_shares_covers_what_it_says_also_where_few_items_change(n: int) -> None:
    grid = [(gains, losses) for gains in (0.0, 0.01, 0.05, 0.1, 0.3) for losses in (0.0, 0.01, 0.05, 0.2)]
    covered = [exact_coverage(n, gains, losses) for gains, losses in grid]
    assert min(covered) > 0.92
    assert math.fsum(covered) / len(covered) > 0.96


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_nothing_that_changed_is_not_certainty(n: int) -> None:
    line = stats.compare(stats.pair(results([1.0] * n), results([1.0] * n)))
    half = 1.959964 * math.sqrt(2) / (n + 2)
    assert (line.difference, line.low, line.high) == pytest.approx((0.0, max(-1, -half), min(1, half)), abs=1e-6)
    assert line.minimum_detectable == pytest.approx(2.801585 * math.sqrt(2) / (n + 2), abs=1e-6)
    assert stats.corrected([line])[0].verdict == "unclear"


CHANGELESS = {
    "partial scores": {"score": 0.5},
    "subsets": {"aggregate": "macro"},
    "templates": {},
    "bits": {"metric": "bpb", "num_bytes": 10, "bits": 8.0},
}


@pytest.mark.parametrize("kind", CHANGELESS)
def test_an_interval_of_equal_differences_has_a_width_whatever_the_score(kind: str) -> None:
    more = {"score": 1.0, **CHANGELESS[kind]}
    one = {str(i): Result(task="t@1", item=str(i), subset=f"s{i % 3}", template=f"t{i % 5}", **more) for i in range(30)}
    line = stats.compare(stats.pair(one, one))
    assert line.difference == 0
    assert line.low < 0 < line.high
    assert line.minimum_detectable > 0
    assert line.half_clustered is not None
    assert line.half_clustered > line.high / 2
    assert stats.average([[line], [line]], "all").low < 0
    if kind == "bits":  # as if one item more had lost all its 0.8 bits per byte, and one had doubled them
        assert line.stderr == pytest.approx(0.8 * math.sqrt(2) / 32)


def test_a_change_of_all_items_by_the_same_amount_has_a_width_too() -> None:
    line = stats.compare(stats.pair(results([0.0] * 10), results([0.5] * 10)))
    assert (line.difference, line.stderr) == (0.5, pytest.approx(0.5 * math.sqrt(2) / 12))
    assert line.p_value == 2**-9


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=2, max_size=40))
def test_no_comparison_has_an_empty_interval(both: list[tuple[float, float]]) -> None:
    line = stats.compare(stats.pair(*(results([pair[side] for pair in both]) for side in (0, 1))))
    assert line.low < line.high
    assert line.low <= line.difference <= line.high
    assert line.stderr > 0


def test_partial_scores_of_which_few_change_have_an_interval_that_covers() -> None:
    draw = random.Random(3)
    covered = {"widened": 0, "t": 0}
    for _ in range(300):  # a fiftieth of 100 items gains a quarter to all of a point: 0.0125 in the mean
        changes = [draw.randint(1, 4) / 4 if draw.random() < 0.02 else 0.0 for _ in range(100)]
        line = stats.compare(stats.pair(results([0.0] * 100), results(changes)))
        plain = stats.mean(changes)
        covered["widened"] += line.low <= 0.0125 <= line.high
        covered["t"] += plain.low <= 0.0125 <= plain.high
    assert covered["widened"] >= 0.9 * 300
    assert covered["t"] < 0.85 * 300


def test_scores_that_all_change_have_the_interval_of_student() -> None:
    before, after = [0.1 * i for i in range(10)], [0.1 * i + 0.01 * (i % 3 + 1) for i in range(10)]
    line = stats.compare(stats.pair(results(before), results(after)))
    plain = stats.mean([y - x for x, y in zip(before, after, strict=True)])
    assert (line.stderr, line.low, line.high) == (plain.stderr, plain.low, plain.high)


def test_a_score_of_all_or_nothing_has_an_error_and_wilsons_interval() -> None:
    for whole in ("micro", "macro"):
        none = list(results([0.0] * 10, aggregate=whole).values())
        found = stats.level(none)
        assert (found.value, found.stderr) == (0.0, pytest.approx(1 / 12))
        low, high, how = stats.interval(none, found)
        assert (low, high, how) == (pytest.approx(0.0), pytest.approx(0.2775, abs=1e-4), "95 %, Wilson")
    assert stats.mean_score([1.0] * 8).stderr == pytest.approx(0.1)
    assert math.isnan(stats.mean_score([1.0]).stderr)


def test_a_share_has_an_honest_interval_also_at_its_ends() -> None:
    assert stats.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # z^2 / (n + z^2)
    assert stats.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert stats.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_subsets_of_one_item_have_an_error_between_them() -> None:
    found = stats.macro([[1.0], [0.0], [1.0, 0.0]])
    assert found.value == 0.5
    assert found.stderr == pytest.approx(0.5 / math.sqrt(3))
