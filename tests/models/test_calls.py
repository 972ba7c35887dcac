"""Calls of tools are read as each family's template writes them; what is no JSON is refused, not guessed."""

from __future__ import annotations

import json

import pytest
from template_families import FAMILIES, tokenizer_of

from tercet.models.chat import Chat
from tercet.models.openai.calls import CallFormat, call_format
from tercet.models.openai.problems import Problem

CALLING = [number for number, family in enumerate(FAMILIES) if family.call]
IN_JSON = {number for number in CALLING if '"name"' in FAMILIES[number].call}


@pytest.mark.parametrize("number", CALLING, ids=[FAMILIES[number].name for number in CALLING])
def test_a_call_is_read_as_the_template_writes_it(number: int) -> None:
    chat = Chat(tokenizer_of(number))
    if chat.untrainable or chat.turns.calls is None:
        pytest.skip("tools are refused for such a template before its calls are looked at")
    if number not in IN_JSON:
        with pytest.raises(Problem, match="tools: the chat template"):
            call_format(chat)
        return
    text, calls = call_format(chat).read(f"{FAMILIES[number].call}", {"weather"})
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("weather", {"x": 1})
    ]
    assert "weather" not in text


HERMES = CallFormat("<tool_call>", "name", "arguments")
BARE = CallFormat("", "name", "parameters")
ONE = '{"name": "f", "arguments": {"x": "</tool_call>"}}'


@pytest.mark.parametrize(
    ("form", "text", "said", "count"),
    [
        (HERMES, "plain words", "plain words", 0),
        (HERMES, f"I look.\n<tool_call>\n{ONE}\n</tool_call>", "I look.", 1),
        (HERMES, f"<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>", "", 2),
        (HERMES, '<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', 0),
        (HERMES, "<tool_call>" + "[" * 5000, "<tool_call>" + "[" * 5000, 0),
        (HERMES, f"<tool_call>{ONE.replace('f', 'other', 1)}", f"<tool_call>{ONE.replace('f', 'other', 1)}", 0),
        (BARE, '{"name": "f", "parameters": {}}', "", 1),
        (BARE, '{"colour": "red"}', '{"colour": "red"}', 0),
        (BARE, "Well", "Well", 0),
        (CallFormat("[TOOL_CALLS]", "name", "arguments"), f"[TOOL_CALLS] [{ONE}, {ONE}]", "", 2),
    ],
)
def test_only_whole_calls_of_tools_that_were_offered_count(form: CallFormat, text: str, said: str, count: int) -> None:
    found, calls = form.read(text, {"f"})
    assert (found, len(calls)) == (said, count)
    assert len({call["id"] for call in calls}) == count
