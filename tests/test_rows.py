"""Turns with more than text: read from what data call it, kept through tables, absent where no row has any."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from tercet.rows import (
    DetailedMessage,
    Message,
    Pair,
    Row,
    RowError,
    messages_from,
    pair_from,
    plain,
    read_pairs,
    read_rows,
    row_from,
    stream_rows,
    write_table,
)
from tercet.rows_table import TableWriter

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
PLAIN = Row("a", (Message("user", "Q"), Message("assistant", "A")), "s")
THINKS = Row("b", (Message("user", "Q"), DetailedMessage("assistant", "A", thought="T")))
CALLS = row_from(
    {
        "id": "c",
        "messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "9", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Nine."},
        ],
        "tools": TOOLS,
    }
)


def test_a_turn_of_role_and_content_is_only_that():
    (turn,) = messages_from([{"role": "user", "content": "Q"}])
    assert type(turn) is Message
    assert list(plain(PLAIN)["messages"]) == [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning", "thought"])
def test_a_thought_has_many_names(name):
    turns = messages_from([{"role": "assistant", "content": "A", name: "T"}])
    assert turns == (DetailedMessage("assistant", "A", thought="T"),)


def test_fields_that_are_null_leave_a_turn_as_it_is():
    turn = {"role": "assistant", "content": "A", "reasoning_content": None, "tool_calls": [], "name": None}
    assert messages_from([turn]) == (Message("assistant", "A"),)


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        json.dumps([CALL]),
        [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
        [{"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}}],
    ],
)
def test_calls_are_read_as_objects_and_as_json(calls):
    (turn,) = messages_from([{"role": "assistant", "content": "", "tool_calls": calls}])
    assert json.loads(turn.tool_calls) == [CALL]


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([{"function": {"arguments": "{}"}}], "must be an object with the name of a function"),
        ([{"function": {"name": "f", "arguments": "{"}}], "the arguments of a tool call are not JSON"),
        ("[{", "tool_calls is not JSON"),
        (7, "expected a list under tool_calls, got int"),
    ],
)
def test_calls_that_cannot_be_read_name_their_turn(calls, words):
    with pytest.raises(RowError, match=f"row 3: turn 0: .*{words}"):
        messages_from([{"role": "assistant", "content": "", "tool_calls": calls}], "row 3")


def test_the_tools_of_a_row_stand_on_its_first_turn():
    assert json.loads(CALLS.messages[0].tools) == TOOLS
    assert type(CALLS.messages[-1]) is Message
    assert row_from(plain(CALLS)) == CALLS


def test_a_turn_that_only_calls_is_not_blank():
    assert not CALLS.messages[1].blank
    assert DetailedMessage("assistant", " ", thought="T").blank
    assert Message("assistant", "\n").blank


def test_rows_without_details_have_no_column_for_them(tmp_path):
    write_table(tmp_path / "rows.parquet", [PLAIN])
    with TableWriter(tmp_path / "written.parquet", Row) as table:
        table.write([PLAIN])
    for name in ("rows.parquet", "written.parquet"):
        turns = pq.read_schema(tmp_path / name).field("messages").type.value_type
        assert [turns.field(i).name for i in range(turns.num_fields)] == ["role", "content"]


def test_details_come_back_also_when_they_begin_in_the_middle_of_a_table(tmp_path):
    rows = [PLAIN, THINKS, CALLS, PLAIN]
    write_table(tmp_path / "rows.parquet", rows)
    with TableWriter(tmp_path / "written.parquet", Row) as table:
        for row in rows:
            table.write([row])
    for name in ("rows.parquet", "written.parquet"):
        assert read_rows(tmp_path / name) == list(stream_rows(tmp_path / name)) == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.parquet", "written.parquet"]


def test_pairs_keep_their_details(tmp_path):
    prompt = CALLS.messages[:1]
    pair = Pair("p", (*prompt, CALLS.messages[1]), (*prompt, Message("assistant", "No.")))
    write_table(tmp_path / "pairs.parquet", [pair])
    assert read_pairs(tmp_path / "pairs.parquet") == [pair]
    assert pair_from({**plain(pair), "tools": TOOLS}) == pair
