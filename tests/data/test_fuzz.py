"""Whatever a file holds: its rows are kept, left out for a counted reason, or the run stops and names file and row.

About 10,000 rows are made: 3,000 lines of text, 1,500 in broken files and tables, 3,000 objects for the adapters and
3,000 conversations for filters and dedupe.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.data import filters, sources
from tercet.data.dedupe import Exact, near_duplicates, text_of
from tercet.recipe import SourceSpec
from tercet.rows import Message, Row, RowError
from tercet.rows_file import read_file

ROWS = 10  # in a generated file
READING_FAILS = (
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    zlib.error,
    csv.Error,
)  # what `load` turns into a RowError
REGROUPED = ("oasst", "self_instruct", "prompt_tree")  # one object is not one row
PLACE = re.compile(r"(?:, (row|line) (\d+)|: cannot be read after (row) (\d+)|): ?")

WHOLE = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.sampled_from(["\x00", "\ufeff", "a\u2028b\u2029c\x85d", "\r\n\x0b", "\u202e\u0301", "\U0010ffff", "", " \t"])
    | st.sampled_from(["x" * 30_000, "1 " * 9000, "[" * 3000, "<|user|>", "#### 3", "\\", '"', "{{}}", "NaN", "null"])
)
ODD = WHOLE | st.sampled_from(["\ud800", "a\udfffb\ud800"])
WRONG: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ODD, st.lists(ODD, max_size=2), st.just([[[]]])
)
SPEAKER: st.SearchStrategy[Any] = st.sampled_from(
    ["user", "assistant", "system", "human", "gpt", "prompter", "tool", "text", "", None, 3, ["user"], {}]
)
TURN = st.fixed_dictionaries({}, optional={"role": SPEAKER, "from": SPEAKER, "content": WRONG, "value": WRONG})
VALUE = WRONG | st.lists(TURN | WRONG, max_size=3) | TURN
TURNS = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "3"}]
ASKED = ("question", "instruction", "prompt", "problem", "input", "inputs", "persona", "vanilla", "adversarial")
GOOD: dict[str, Any] = {  # something for most layouts; each adapter takes what it knows
    **dict.fromkeys(ASKED, "How many?"),
    **dict.fromkeys(("output", "response", "completion", "targets", "ground_truth", "expected_answer"), "3"),
    **dict.fromkeys(("messages", "conversation", "chosen", "rejected"), TURNS),
    "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "3"}],
    "text": "How many?",
    "answer": "It is 3. #### 3",
    "generated_solution": "3",
    "problem_source": "augmented_gsm8k",
    "instances": [{"input": "", "output": "3"}],
    "data_type": "vanilla_harmful",
    "input": "### Human: How many?### Assistant: ",
    "message_id": "m",
    "role": "prompter",
    "labels": {"name": ["quality"], "value": [0.5]},
    "dataset": "gsm8k",
    "model": "gpt-4",
    "label": True,
    "source": "x",
}
LINES = (
    st.fixed_dictionaries({"id": WRONG, "messages": st.just(TURNS)}).map(json.dumps)
    | ODD.map(lambda text: json.dumps({"messages": [TURNS[0], {**TURNS[1], "content": text}]}, ensure_ascii=False))
    | st.sampled_from(["null", "[]", "3", '{"id": 1, "id": 2}', '{"x": NaN, "y": -Infinity}', '{"n": 1e999}', "{1}"])
    | st.sampled_from(
        ['{"messages": [{"role": "user"', '{"a": "\x00"}', "\ufeff{}", "\x00", "[" * 3000, '{"n":' + "9" * 5000]
    )
)


def read(path: Path, adapter: str = "rows", max_bad: float = 0) -> tuple[list[Row], sources.Reading, RowError | None]:
    """The rows that come, the account of them, and what stopped the run."""
    rows, reading = [], sources.Reading()
    source = SourceSpec(path=str(path), adapter=adapter, require_answer=False, max_bad=max_bad)
    try:
        for row in sources.load(source, {}, {}, reading):
            rows.append(row)
    except RowError as error:
        return rows, reading, error
    return rows, reading, None


def check(path: Path, adapter: str = "rows") -> sources.Reading:
    """Nothing disappears: kept + skipped + bad = read. The account of a reading that the first bad row stops.

    What is no row at all (a file that is cut, an object among OASST's messages that is no message) is in no count.
    """
    for most in (1, 0):
        rows, reading, error = read(path, adapter, most)
        assert len(rows) == reading.kept
        if adapter not in REGROUPED:
            assert reading.kept + reading.skipped.total() + reading.bad.total() == reading.read, str(error)
        for row in rows:
            assert row.user_turns
            "".join([row.id, row.source, row.reference, *(turn.content for turn in row.messages)]).encode()
    if error:
        before, _, after = str(error).partition(str(path))
        place = PLACE.match(after)
        assert not before and place, f"the error names no place: {error}"  # noqa: PT018
        assert reading.bad.total() == 1 or place[1] != "row" or adapter in REGROUPED, str(error)
        if place[1] == "row" or place[3]:
            assert int(place[2] or place[4]) == reading.read or adapter in REGROUPED, str(error)
    return reading


@given(st.lists(LINES, min_size=ROWS, max_size=ROWS), st.sampled_from(["\n", "\r\n", "\n\n", "\n \r\n"]), st.booleans())
@settings(max_examples=300)
def test_every_line_is_a_row_or_stops_the_run(tmp_path: Path, lines: list[str], end: str, close: bool) -> None:
    path = tmp_path / "rows.jsonl"
    text = end.join(lines) + end * close
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    reading = check(path)
    stopped = read(path)[2]
    assert stopped or reading.read == ROWS
    line = re.search(r", line (\d+): ", str(stopped))
    if line:
        assert re.split(r"\r?\n", text)[int(line[1]) - 1] == lines[reading.read - 1]
    raws: list[dict[str, Any]] = []
    try:
        raws.extend(read_file(path))
    except READING_FAILS:
        assert stopped
    assert len(raws) >= reading.read - reading.bad.total()
    assert all(isinstance(raw, dict) for raw in raws)


@given(st.lists(WHOLE.filter(str.strip), min_size=ROWS, max_size=ROWS), st.data())
@settings(max_examples=50)
def test_a_cut_archive_stops_the_run(tmp_path: Path, texts: list[str], data: st.DataObject) -> None:
    path = tmp_path / "rows.jsonl.gz"
    rows = ({"messages": [{"role": "user", "content": text}, TURNS[1]]} for text in texts)
    whole = gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0)
    path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    check(path)
    assert read(path)[2]
    flipped, place = bytearray(whole), data.draw(st.integers(0, len(whole) - 1))
    flipped[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(flipped)
    reading = check(path)
    assert read(path)[2] or reading.kept == ROWS


@given(st.lists(st.lists(WHOLE.filter(lambda t: len(t) < 9999), min_size=2, max_size=2), min_size=ROWS, max_size=ROWS))
@settings(max_examples=50)
def test_tables_give_every_row_back(tmp_path: Path, cells: list[list[str]]) -> None:
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        path = tmp_path / name
        with open(path, "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, quoting=csv.QUOTE_ALL, delimiter=mark).writerows([["instruction", "output"], *cells])
        assert [[raw["instruction"], raw["output"]] for raw in read_file(path)] == cells
        check(path, "alpaca")


@given(st.lists(LINES, min_size=ROWS, max_size=ROWS), st.data())
@settings(max_examples=50)
def test_a_byte_that_is_no_text_stops_the_run_at_its_line(
    tmp_path: Path, lines: list[str], data: st.DataObject
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [line.encode("utf-8", "replace").decode() for line in lines]
    whole = [json.dumps({"messages": TURNS, "line": line}).encode() for line in lines]  # escaped: one line each
    place = data.draw(st.integers(0, ROWS - 1))
    whole[place] = whole[place].replace(b"How", data.draw(st.sampled_from([b"\xff", b"\xc3(", b"\xed\xa0\x80"])))
    path.write_bytes(b"\n".join(whole))
    reading = check(path)
    assert reading.kept == place
    assert f"line {place + 1}: not UTF-8" in str(read(path)[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('Q,A\nQ2,"A2\nQ3,A3\n', "line 4: not valid CSV (unexpected end of data)"),
        ("Q,A\nQ2,A2,more\n", "line 3: has 3 cells, the header has 2"),
        ("Q,A\nQ2\n", "line 3: has 1 cells, the header has 2"),
    ],
)
def test_a_table_never_swallows_text(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"instruction,output\n{text}", encoding="utf-8")
    rows, _, error = read(path, "alpaca")
    assert message in str(error)
    assert len(rows) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    text = {"rows.jsonl": '{"id": "a"}', "rows.json": '[{"id": "a"}]', "rows.csv": "id\na", "rows.tsv": "id\na"}[name]
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert list(read_file(tmp_path / name)) == [{"id": "a"}]


@pytest.mark.parametrize("adapter", sorted(sources.ADAPTERS))
def test_an_adapter_takes_a_row_or_refuses_it_by_place(tmp_path: Path, adapter: str) -> None:
    path = tmp_path / "rows.jsonl"

    @given(st.lists(st.dictionaries(st.sampled_from(["id", *GOOD]), VALUE, max_size=3), min_size=ROWS, max_size=ROWS))
    @settings(max_examples=1 + 300 // len(sources.ADAPTERS))
    def takes_or_refuses(changes: list[dict[str, Any]]) -> None:
        raws = [{k: v for k, v in {**GOOD, **change}.items() if v is not False} for change in changes]  # False: missing
        for raw in raws:  # each alone, that none hides behind the one before
            path.write_text(json.dumps(raw), encoding="utf-8")
            check(path, adapter)
        path.write_text("\n".join(map(json.dumps, raws)), encoding="utf-8")
        check(path, adapter)

    takes_or_refuses()


@given(st.lists(st.lists(ODD, min_size=2, max_size=4), min_size=ROWS, max_size=ROWS))
@settings(max_examples=300)
def test_what_filters_and_dedupe_keep_and_drop_is_all_that_came(texts: list[list[str]]) -> None:
    rows = [
        Row(str(n), tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)))
        for n, turns in enumerate(texts)
    ]
    kept, dropped = sift(rows)
    assert len(kept) + dropped.total() == len(rows)
    assert kept == sorted(kept, key=lambda row: int(row.id))
    assert sift(kept) == (kept, Counter())


def sift(rows: list[Row]) -> tuple[list[Row], Counter[str]]:
    """What all rules keep, and how many each takes."""
    rules: dict[str, filters.Check] = {**filters.checks({name: {} for name in filters.FILTERS}), "duplicate": Exact()}
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        rule = next((name for name, check in rules.items() if check(row)), "")
        if rule:
            dropped[rule] += 1
        else:
            kept.append(row)
    gone = near_duplicates(lambda: (text_of(row) for row in kept))
    dropped["near duplicate"] += len(gone)
    return [row for number, row in enumerate(kept) if number not in gone], +dropped
