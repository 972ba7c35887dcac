from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from fake_run import CHANCE, FakeRun
from hypothesis import strategies as st

from tercet.records import Result
from tercet.report import collect, compare, samples
from tercet.report.collect import Checkpoint, TaskScore
from tercet.stats import Comparison

scores = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=2, max_size=40)


def checkpoint(label: str, values: list[float], metric: str = "accuracy") -> Checkpoint:
    """A checkpoint whose items have these scores; bits per byte come from ten bytes each."""
    score = TaskScore(task="t@1", title="skill", metric=metric, n=len(values), score=0.5, low=0.4, high=0.6)
    plain = Result(task="t@1", item="", metric=metric, num_bytes=10, outcome="graded", digest="d")
    results = {
        ("t@1", str(i)): replace(plain, item=str(i), score=value, bits=value * 10, template=str(i))
        for i, value in enumerate(values)
    }
    return Checkpoint(label, label, {"t@1": score}, results)


def changed(before: list[float], after: list[float], metric: str = "accuracy") -> Comparison:
    found = compare.family(checkpoint("a", before, metric), checkpoint("b", after, metric), ["t@1"])["t@1"]
    assert found is not None
    return found


def test_both_the_interval_and_mcnemar_must_agree() -> None:
    more = changed([1.0] * 3 + [0.0] * 197, [0.0] * 3 + [1.0] * 11 + [0.0] * 186)  # 11 gained, 3 lost: p = 0.057
    assert more.low > 0
    assert more.verdict == "unclear"
    assert changed([0.0] * 50, [1.0] * 5 + [0.0] * 45).low < 0  # five of five: p = 0.0625
    assert changed([0.0] * 50, [1.0] * 8 + [0.0] * 42).verdict == "better"
    assert changed([1.0] * 8 + [0.0] * 42, [0.0] * 50).verdict == "worse"


def test_fewer_bits_are_better_and_have_no_mcnemar() -> None:
    before = [1.0 + 0.01 * i for i in range(30)]
    less = changed(before, [x - 0.1 - 0.001 * (i % 3) for i, x in enumerate(before)], "bpb")
    assert (less.verdict, less.test) == ("better", "paired t")
    assert less.difference == pytest.approx(-0.101)


def test_one_shared_item_is_not_compared() -> None:
    assert compare.difference("t@1", checkpoint("a", [1.0]), checkpoint("b", [0.0, 1.0])) is None


def test_the_story_says_what_the_numbers_say() -> None:
    points = [checkpoint("Base", [0.0] * 40), checkpoint("SFT", [1.0] * 20 + [0.0] * 20)]
    text = compare.story("M", points, {"t@1": compare.changes(points)["t@1"]["base"]})
    assert "significantly better on skill (+50.0 points" in text
    points[1] = checkpoint("SFT", [1.0] + [0.0] * 39)
    text = compare.story("M", points, {"t@1": compare.changes(points)["t@1"]["base"]})
    assert "no significant difference on skill (+2.5 points" in text
    assert "better" not in text


def test_amounts_have_true_signs_and_no_negative_zero() -> None:
    assert compare.amount(-0.0004, "bpb", sign=True) == "0.000"
    assert compare.amount(-0.0123, "bpb", sign=True) == "−0.012"
    assert compare.amount(0.4567, "accuracy") == "45.7 %"
    assert compare.amount(0.4567, "accuracy", sign=True) == "+45.7"


def walked(fake: FakeRun) -> tuple[dict[str, collect.Stage], list[Checkpoint]]:
    stages = collect.walk(fake.spec.evals, fake.inputs, fake.recipe)
    return stages, collect.checkpoints(fake.spec.evals, stages, fake.recipe)


def test_everything_upstream_is_found_parents_first(fake: FakeRun) -> None:
    stages, points = walked(fake)
    order = list(stages)
    assert all(order.index(parent) < order.index(name) for name, stage in stages.items() for parent in stage.inputs)
    assert set(order) == (set(fake.recipe.stage) | {"base"}) - {"page"}
    assert [point.label for point in points] == ["Base", "SFT", "DPO", "RLVR"]
    assert [point.payload.parent for point in points] == [fake.folder(name) for name in CHANCE]


def test_samples_show_every_kind_of_change_and_match_the_results(fake: FakeRun) -> None:
    _, points = walked(fake)
    items = samples.eval_samples(points)
    counts = samples.change_counts(points)
    assert sum(sum(row.values()) for row in counts.values()) == len(points[-1].results)
    for task, row in counts.items():
        for change, (_, most) in samples.CHANGES.items():
            shown = [item for item in items if (item.task, item.change) == (task, change)]
            assert len(shown) == min(most, row[change])
    for item in items:
        marks = [answer.right for answer in item.answers if answer is not None]
        if item.change == "gained":
            assert (marks[0], marks[-1]) == (False, True)
        if item.change == "wavered":
            assert marks[0] == marks[-1]
            assert len(set(marks)) == 2


def test_rollouts_prefer_groups_with_a_signal_and_span_the_run(fake: FakeRun) -> None:
    stages, _ = walked(fake)
    groups = samples.rollouts(stages["rlvr"])
    steps = [group["step"] for group in groups]
    assert (steps[0], steps[-1]) == (0, 39)
    assert steps == sorted(steps)
    assert all(not b["signal"] or a["signal"] for a, b in pairwise(groups) if a["step"] == b["step"])


def test_long_texts_are_cut_and_say_so() -> None:
    assert samples.cut("x" * 10, 10) == "x" * 10
    assert samples.cut("x" * 12, 10) == "x" * 10 + "… [2 more characters]"
