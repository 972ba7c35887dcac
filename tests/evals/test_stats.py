"""The statistics, against numbers worked out by hand or taken from printed tables, and their laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet import stats
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
    assert stats.t_quantile(df) == pytest.approx(t, abs=2e-6)
    assert stats.t_p_value(t, df) == pytest.approx(0.05, abs=1e-6)


@given(st.floats(0, 50), st.integers(1, 3))
def test_t_p_values_have_their_closed_forms(t: float, which: int) -> None:
    closed = {
        1: 1 - 2 / math.pi * math.atan(t),
        2: 1 - t / math.sqrt(2 + t * t),
        3: 1 - 2 / math.pi * (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t)),
    }
    # near t = 0 the p-value loses half its digits
    assert stats.t_p_value(t, which) == pytest.approx(closed[which], abs=1e-7)


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


def test_a_certain_difference_has_p_zero_and_none_has_p_one() -> None:
    assert stats.mean([1, 1]).p_value == 0
    assert stats.mean([0, 0]).p_value == 1


def test_a_share_has_an_honest_interval_also_at_its_ends() -> None:
    assert stats.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # z^2 / (n + z^2)
    assert stats.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert stats.wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_subsets_of_one_item_have_an_error_between_them() -> None:
    found = stats.macro([[1.0], [0.0], [1.0, 0.0]])
    assert found.value == 0.5
    assert found.stderr == pytest.approx(0.5 / math.sqrt(3))
