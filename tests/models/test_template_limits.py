"""Compiled with limits, a template writes what transformers' own writes; one without end ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from tercet.models import template_limits
from tercet.models.chat_template import TEMPLATES, ChatError, ChatTemplate
from tercet.models.template_limits import TemplateTimeout, compiled, within

FAMILIES = sorted(Path(__file__).with_name("templates").glob("*.jinja"))
TURNS = [{"role": "user", "content": "a < b?\n"}, {"role": "assistant", "content": "<think>x</think> No."}] * 2
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
FOREVER = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


def written(render, turns, tools) -> str:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>", "unk_token": "<u>", "date_string": "d"}
    try:
        return str(render(messages=turns, tools=tools, documents=None, add_generation_prompt=True, **names))
    except Exception as error:
        return repr(error)


@pytest.mark.parametrize("text", [*(file.read_text("utf-8") for file in FAMILIES), *TEMPLATES.values()])
def test_what_a_template_writes_is_what_transformers_writes(text):
    text = text.replace("strftime_now(", "strftime_never(")  # today is no fact
    own, theirs = compiled(text), chat_template_utils._compile_jinja_template(text).render
    for turns in (TURNS[:1], TURNS, [{"role": "system", "content": "S"}, *TURNS]):
        for tools in (None, TOOLS):
            assert written(own, turns, tools) == written(theirs, turns, tools)


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.1)


@pytest.mark.usefixtures("_soon")
def test_a_template_without_end_ends_in_any_thread_and_the_next_one_works():
    said: list[str] = []

    def ask() -> None:
        try:
            ChatTemplate(FOREVER, {})(TURNS)
        except ChatError as error:
            said.append(str(error))
        said.append(ChatTemplate("{{ messages[0].role }}", {})(TURNS))

    for _ in range(2):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    ask()
    assert said == ["the chat template ran for more than 3 s over one conversation", "user"] * 3


@pytest.mark.usefixtures("_soon")
def test_an_error_that_comes_with_the_end_of_the_time_is_the_end_of_the_time():
    def fail(_argument: object) -> None:
        try:
            while True:
                pass
        finally:
            raise ValueError

    with pytest.raises((TemplateTimeout, ValueError)):
        within(fail, None)
    assert within(str, 1) == "1"


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ '%999999999d' % 1 }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% macro f() %}{% for i in range(999) %}{{ 'a' * 99999 }}{% endfor %}{% endmacro %}{{ f() }}",
    ],
)
def test_what_would_be_too_large_is_refused_before_it_is_made(text):
    with pytest.raises(ChatError, match="more than a chat template may"):
        ChatTemplate(text, {})(TURNS)


def test_what_is_small_is_made():
    text = "{{ 'ab' * 3 }} {{ 2**10 }} {{ '%05.1f' % 2.25 }} {{ 'a'.center(5) }} {{ '{:>4}'.format(1) }} {{ 7 % 3 }}"
    assert ChatTemplate(text, {})(TURNS) == "ababab 1024 002.2   a      1 1"
    text = "{{ ['a', 'b'] | map('upper') | join('-') }}{{ {'a': [1]} | tojson(indent=2) }}{{ 'a\nb' | indent(2) }}"
    assert ChatTemplate(text, {})(TURNS) == 'A-B{\n  "a": [\n    1\n  ]\n}a\n  b'


def test_a_template_that_is_too_long_or_too_deep_is_no_template():
    with pytest.raises(TemplateError, match="262,145 characters, more than"):
        compiled("x" * 262_145)
    for text in ("{{ " + "(" * 9999, "{% if x %}" * 999, "{{ a" + ".a" * 9999 + " }}"):
        with pytest.raises(ChatError, match="is not valid Jinja"):
            ChatTemplate(text, {})
