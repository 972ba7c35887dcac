"""Tools in plain words: what a model reads of them and what is read of its calls."""

from __future__ import annotations

from tercet.environments.tool_words import called, explained, said
from tercet.rows import Message


def test_calls_are_taken_from_a_text_and_what_is_no_call_stays():
    turn = called('First <tool_call>{"name": "add", "arguments": {"a": [1, {}]}}</tool_call> then', 3)
    assert turn["content"] == "First  then"
    assert turn["tool_calls"] == [
        {"id": "call_3_0", "type": "function", "function": {"name": "add", "arguments": '{"a": [1, {}]}'}}
    ]
    for text in ("plain", "<tool_call>{broken}</tool_call>", '<tool_call>{"arguments": {}}</tool_call>'):
        assert called(text, 1) == {"role": "assistant", "content": text}


def test_results_of_tools_are_a_users_turn_and_neighbours_of_a_role_are_one():
    turns = [
        *explained([{"type": "function", "function": {"name": "add"}}]),
        {"role": "developer", "content": "Be brief."},
        {"role": "tool", "content": [{"type": "text", "text": "3"}, {"type": "image_url"}]},
        {"role": "user", "content": "and now?"},
    ]
    system, user = said(turns)
    assert system.content.endswith('{"name": "add"}\n\nBe brief.')
    assert user == Message("user", "<tool_response>\n3\n[image_url]\n</tool_response>\n\nand now?")
    assert explained([]) == []
