"""Rows that cannot be read are left out and counted; what nobody reads is counted too; neither goes in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tercet.data.reading import Reading, reason_of
from tercet.data.sources import load, load_pairs
from tercet.recipe import SourceSpec
from tercet.rows import Row, RowError

Write = Callable[..., str]
TURNS = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
GOOD = {"messages": TURNS}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def jsonl(*values: Any, name: str = "rows.jsonl") -> str:
        lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return jsonl


def read(path: str, **options: Any) -> tuple[list[Row], Reading]:
    reading = Reading()
    return list(load(SourceSpec(path=path, **options), {}, {}, reading)), reading


def test_one_bad_row_of_few_is_left_out_and_counted(shared_data: Path) -> None:
    found, reading = read(str(shared_data / "cases/rows/nullrow.jsonl"), adapter="auto")
    assert len(found) == reading.kept == 5
    assert (reading.read, reading.bad.total()) == (6, 1)
    (examples,) = reading.examples.values()
    assert "nullrow.jsonl, row 3: " in examples[0]


def test_every_row_read_is_kept_left_out_or_bad(write: Write) -> None:
    marked = {"messages": [TURNS[0], {"role": "assistant", "content": " "}]}
    path = write(*[GOOD] * 400, marked, '{"messages": [', "[1]", {"messages": TURNS[1:]})
    found, reading = read(path)
    assert (reading.read, reading.kept, reading.bad.total()) == (404, 400, 4) == (404, len(found), 4)
    assert dict(reading.bad) == {
        "has an empty completion (its last assistant turn is blank)": 1,
        "not valid JSON (Expecting value)": 1,
        "expected a JSON object": 1,
        "has no user turn": 1,
    }
    assert [text.partition(": ")[0].rpartition("/")[2] for (text,) in reading.examples.values()] == [
        "rows.jsonl, row 401",
        "rows.jsonl, line 402",
        "rows.jsonl, line 403",
        "rows.jsonl, row 404",
    ]


def test_above_the_share_the_source_stops_with_its_first_bad_row(write: Write) -> None:
    path = write(*[GOOD] * 96, *[{"messages": TURNS[1:]}] * 4)
    said = (
        r"row 97: has no user turn; .* 4 of 100 rows cannot be read \(4 has no user turn\); `max_bad = 0.03` allows 3"
    )
    with pytest.raises(RowError, match=said):
        read(path, max_bad=0.03)
    assert read(path, max_bad=0.04)[1].kept == 96


def test_without_any_share_the_first_bad_row_stops(write: Write) -> None:
    path = write(GOOD, "{", GOOD)
    with pytest.raises(RowError, match=r"rows\.jsonl, line 2: not valid JSON \(.*\); fix or remove the line$"):
        read(path, max_bad=0)
    assert read(path)[1].kept == 2


def test_a_source_of_bad_rows_alone_stops_however_small(write: Write) -> None:
    with pytest.raises(RowError, match=r"row 1: has no user turn.*1 of 1 rows cannot be read"):
        read(write({"messages": TURNS[1:]}))


def test_a_hopeless_file_is_given_up_within_its_first_thousand_rows(write: Write) -> None:
    reading = Reading()
    path = write(*[{"messages": []}] * 5000)
    with pytest.raises(RowError, match="21 of 21 rows"):
        list(load(SourceSpec(path=path, adapter="rows"), {}, {}, reading))
    late = write(*[GOOD] * 4000, *[{"messages": []}] * 40)  # a cluster behind them is weighed at the end
    assert read(late)[1].bad.total() == 40


def test_bad_pairs_are_counted_as_bad_rows_are(write: Write) -> None:
    good = {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "Go."}]}
    path, reading = write(good, {"chosen": TURNS, "rejected": 3}, good), Reading()
    assert len(list(load_pairs(SourceSpec(path=path, adapter="preference"), {}, {}, reading))) == 2
    assert (reading.read, reading.kept, reading.bad.total()) == (3, 2, 1)


def test_a_task_without_instances_is_a_bad_row(write: Write) -> None:
    task = {"instruction": "Say hi.", "instances": [{"input": "", "output": "Hi."}, {"input": "", "output": "Hello."}]}
    found, reading = read(write(task, {"instruction": "Say.", "instances": 3}, task), adapter="self_instruct")
    assert [row.answer for row in found] == ["Hi.", "Hello."] * 2
    assert (reading.read, reading.bad.total()) == (3, 1)


def test_cells_that_do_not_fit_the_header_are_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("instruction,output\nQ1,A1\nQ2,A2,more\nQ3,A3\n")
    found, reading = read(str(tmp_path / "rows.csv"), adapter="alpaca")
    assert [row.answer for row in found] == ["A1", "A3"]
    assert dict(reading.bad) == {"has N cells, the header has N": 1}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("f, row 3: has no user turn; a question goes first", "has no user turn"),
        ("f, row 3: turn 7 has role 'robot'; expected one of user", "turn N has role '…'"),
        ("f, row 3: turn 1 must have 'role', got 'x y'", "turn N must have 'role'"),
        ("f, row 3: expected text under answer, got the keys question", "expected text under answer"),
        ("f, row 3.chosen: has no messages; give one", "chosen: has no messages"),
        ("g.jsonl, line 9: not UTF-8 (odd at its byte 44); save", "not UTF-8 (odd at its byte N)"),
        ("f, row 3: ; x", "another reason"),
    ],
)
def test_a_reason_holds_nothing_of_the_row(message: str, reason: str) -> None:
    assert reason_of(message, "f, row 3") == reason


def test_reasons_and_their_examples_stay_few() -> None:
    reading = Reading(read=10_000)
    for number in range(100):
        for _ in range(5):
            reading.refuse(RowError(f"f, row 1: odd {chr(97 + number % 26)}{chr(97 + number // 26)}"), "f, row 1", 0.5)
    assert reading.bad.total() == 500
    assert len(reading.bad) == 21
    assert {len(some) for some in reading.examples.values()} == {3}


LEFT = [
    ({"messages": TURNS, "Thinking": "Be kind.", "score": 0.0}, {"Thinking": 1, "score": 1}),
    ({"messages": TURNS, "prompt": "Hi?", "thinking": "", "score": None, "url": "x"}, {}),
    ({"messages": TURNS, "history": [["Hi?", "Hello."]], "context": ["a book"]}, {"context": 1}),
    ({"messages": [{**TURNS[0], "citations": ["a book"]}, TURNS[1]]}, {"messages.citations": 1}),
    ({"messages": [TURNS[0], {**TURNS[1], "score": 1, "id": "x"}]}, {"messages.score": 1}),
]


@pytest.mark.parametrize(("raw", "left"), LEFT)
def test_what_nobody_reads_is_counted_by_column(write: Write, raw: dict[str, Any], left: dict[str, int]) -> None:
    assert dict(read(write(raw, GOOD))[1].left) == left


def test_a_strict_source_stops_where_something_is_left_behind(write: Write) -> None:
    path = write(GOOD, {"messages": TURNS, "context": "a book", "prompt": "Hi?"})
    said = r"rows\.jsonl, row 2: context would be left behind: the adapter 'rows' does not read it; take it out"
    with pytest.raises(RowError, match=said):
        read(path, strict=True)
    assert read(write(GOOD, {"messages": TURNS, "prompt": "Hi?"}), strict=True)[1].kept == 2


def test_left_out_rows_leave_nothing_behind(write: Write) -> None:
    path = write({"messages": TURNS, "label": False, "context": "a book"}, {"messages": TURNS, "label": True})
    assert not read(path, adapter="kto")[1].left
