from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.report import labels
from tercet.report.lineage import BOX, MOST, Box, lineage

BOXES = [
    Box("base", "base", "", ()),
    Box("rows", "synth", "", ()),
    Box("mix", "mix", "", ("rows",)),
    Box("sft", "sft", "", ("base", "mix")),
    Box("rlvr", "grpo", "", ("sft", "mix")),
    Box("benchmark", "eval", "", ("rlvr", "base")),
]


@st.composite
def graphs(draw: st.DrawFn) -> list[Box]:
    """Up to thirty stages, each made from some of those before it."""
    num = draw(st.integers(1, 30))
    names = [draw(st.text("Wmi-x\u4e2d", min_size=1, max_size=40)) + str(i) for i in range(num)]
    parents = [draw(st.lists(st.integers(0, i - 1), max_size=4, unique=True)) if i else [] for i in range(num)]
    return [Box(name, "kind" * 9, "note" * 9, tuple(names[j] for j in parents[i])) for i, name in enumerate(names)]


def rects(root: ET.Element) -> dict[str, tuple[float, float]]:
    return {
        tip.rpartition(":")[0]: (float(rect.attrib["x"]), float(rect.attrib["y"]))
        for group in root.iter("g")
        if (tip := group.findtext("title")) and (rect := group.find("rect")) is not None
    }


def test_every_box_and_every_edge_is_drawn() -> None:
    root = ET.fromstring(lineage(BOXES))
    tips = [title.text for title in root.iter("title")]
    assert [tip for tip in tips if tip and "→" in tip] == [f"{p} → {box.name}" for box in BOXES for p in box.parents]
    assert rects(root).keys() == {box.name for box in BOXES}


@settings(max_examples=30)
@given(graphs())
def test_children_stand_below_their_parents_in_rows_that_a_page_can_hold(boxes: list[Box]) -> None:
    root = ET.fromstring(lineage(boxes))
    place = rects(root)
    assert all(place[parent][1] < place[box.name][1] for box in boxes for parent in box.parents)
    assert max(Counter(y for _, y in place.values()).values()) <= MOST
    frame = float(root.attrib["width"])
    assert all(0 <= x <= frame - BOX for x, _ in place.values())
    assert len(set(place.values())) == len(boxes)


@settings(max_examples=30)
@given(graphs())
def test_texts_stay_in_their_boxes(boxes: list[Box]) -> None:
    for group in ET.fromstring(lineage(boxes)).iter("g"):
        if (rect := group.find("rect")) is None:
            continue
        for text in group.iter("text"):
            wide = labels.text_width(text.text or "", 13 if text.get("class") == "boxname" else 10)
            assert float(text.attrib["x"]) + wide <= float(rect.attrib["x"]) + BOX - 10
