from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.report import charts

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, finite, st.integers(2, 8))
def test_ticks_lie_within_the_range_and_are_few(one: float, other: float, most: int) -> None:
    low, high = min(one, other), max(one, other)
    marks = charts.ticks(low, high, most)
    slack = 1e-6 * max(abs(low), abs(high), 1e-6)
    assert 1 <= len(marks) <= most + 1
    assert all(low - slack <= mark <= high + slack for mark in marks)


@given(st.lists(finite, min_size=1, max_size=900))
def test_any_finite_curve_becomes_well_formed_svg(values: list[float]) -> None:
    drawing = charts.curve(list(enumerate(values)), label="a <metric> & more")
    root = ET.fromstring(drawing)
    assert root.attrib["aria-label"] == "a <metric> & more"
    assert "nan" not in drawing


def test_thinning_keeps_the_mean_and_the_last_step() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100
    assert thinned[-1][0] == 999
    assert sum(v for _, v in thinned) / 100 == pytest.approx(sum(v for _, v in points) / 1000)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (5e-06, "5e-6"), (0.12345, "0.123"), (1234.5, "1234"), (-2.5, "−2.5"), (42.0, "42"), (1.5e7, "1.5e7")],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_dots_show_value_interval_and_tip() -> None:
    dots = [
        charts.Dot(name, v, v - 0.1, v + 0.1, f"{name} <{v}>", i)
        for i, (name, v) in enumerate([("Base", 0.2), ("SFT", 0.4)])
    ]
    root = ET.fromstring(charts.dots(dots, text=charts.number, zero=True, label="scores"))
    tips = [title.text for title in root.iter("title")]
    assert tips == ["Base <0.2>", "SFT <0.4>"]


def test_lineage_draws_every_box_and_every_edge_from_left_to_right() -> None:
    boxes = [
        charts.Box("base", "base", "", ()),
        charts.Box("rows", "synth", "", ()),
        charts.Box("mix", "mix", "", ("rows",)),
        charts.Box("sft", "sft", "", ("base", "mix")),
        charts.Box("rlvr", "grpo", "", ("sft", "mix")),
        charts.Box("benchmark", "eval", "", ("rlvr", "base")),
    ]
    root = ET.fromstring(charts.lineage(boxes))
    tips = [title.text for title in root.iter("title")]
    assert [tip for tip in tips if tip and "→" in tip] == [f"{p} → {box.name}" for box in boxes for p in box.parents]
    left = {
        tip.split(":")[0]: float(group.findall("rect")[0].attrib["x"])
        for group in root.iter("g")
        if (tip := group.findtext("title")) and group.find("rect") is not None
    }
    assert all(left[parent] < left[box.name] for box in boxes for parent in box.parents)
