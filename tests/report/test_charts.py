from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.report import charts, labels

finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


@given(st.lists(finite, min_size=1, max_size=900))
def test_any_finite_curve_becomes_well_formed_svg(values: list[float]) -> None:
    drawing = charts.curve(list(enumerate(values)), label="a <metric> & more")
    root = ET.fromstring(drawing)
    assert root.attrib["aria-label"] == "a <metric> & more"
    assert not {"nan", "inf"} & set(re.findall(r"[a-z]+", drawing.split(">", 1)[1]))
    for axis in ("tick", "tick mid"):
        said = [text.text for text in root.iter("text") if text.get("class") == axis]
        assert len(set(said)) == len(said)


@given(st.lists(finite, min_size=1, max_size=50), st.floats(-1e9, 1e9))
def test_every_text_of_a_curve_stays_in_the_drawing_and_the_words_of_a_bound_above_the_plot(
    values: list[float], value: float
) -> None:
    bound = charts.Bound(value, f"alert at or below {labels.number(value)}")
    root = ET.fromstring(charts.curve([(10.0**i, v) for i, v in enumerate(values)][:15], label="", bound=bound))
    check_texts(root)
    plot = [float(line.attrib["y1"]) for line in root.iter("line")]
    (words,) = [text for text in root.iter("text") if text.get("class") == "tick bound"]
    assert float(words.attrib["y"]) < min(plot, default=24)


@given(st.lists(st.tuples(names, st.floats(0, 1), st.floats(0, 0.5)), min_size=1, max_size=12), st.booleans())
def test_names_of_estimates_stay_in_the_drawing_and_apart(given: list[tuple[str, float, float]], percent: bool) -> None:
    dots = [charts.Dot(name, v, v - e, v + e, "", i) for i, (name, v, e) in enumerate(given)]
    root = ET.fromstring(charts.dots(dots, percent=percent, label=""))
    check_texts(root)
    by_line: dict[str, list[tuple[float, float]]] = {}
    for text in root.iter("text"):
        if text.get("class") == "name":
            by_line.setdefault(text.attrib["y"], []).append(extent(text))
    assert all(a[1] < b[0] for line in by_line.values() for a, b in pairwise(line))


def extent(text: ET.Element) -> tuple[float, float]:
    """Where a text begins and ends at most."""
    kind, x = text.get("class") or "", float(text.attrib["x"])
    wide = labels.text_width(text.text or "", charts.NAME if kind == "name" else charts.TICK)
    return (x - wide / 2, x + wide / 2) if kind in ("name", "tick mid") else (x - wide, x)


def check_texts(root: ET.Element) -> None:
    frame = float(root.attrib["viewBox"].split()[2])
    for text in root.iter("text"):
        left, right = extent(text)
        assert -0.1 <= left <= right <= frame + 0.1, (text.text, left, right, frame)


def test_thinning_keeps_the_mean_and_the_last_step() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = charts.thin(points, 100)
    assert len(thinned) == 100
    assert thinned[-1][0] == 999
    assert sum(v for _, v in thinned) / 100 == pytest.approx(sum(v for _, v in points) / 1000)


def test_dots_show_value_interval_and_tip() -> None:
    dots = [
        charts.Dot(name, v, v - 0.1, v + 0.1, f"{name} <{v}>", i)
        for i, (name, v) in enumerate([("Base", 0.2), ("SFT", 0.4)])
    ]
    root = ET.fromstring(charts.dots(dots, percent=True, label="scores"))
    tips = [title.text for title in root.iter("title")]
    assert tips == ["Base <0.2>", "SFT <0.4>"]
