"""Which template a model folder uses, with which arguments and on which day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tercet.models.base_model import finish
from tercet.models.chat import Chat, open_chat
from tercet.models.chat_template import ChatError, ChatTemplate, template_text, with_arguments
from tercet.models.hf_folder import load_tokenizer
from tercet.models.tiny import CHATML, build
from tercet.rows import Message

ASKED = (Message("user", "U"),)
DATED = "{{ strftime_now('%d %B %Y') }}\n" + CHATML
SWITCH = "{% if mood == 'dry' %}{{ strftime_now('%Y') }}{% endif %}" + CHATML


def test_arguments_become_part_of_the_template_and_a_caller_may_still_give_others():
    text = with_arguments("{{ enable_thinking }} {{ effort }}", {"enable_thinking": False, "effort": 'a "b"'})
    write = ChatTemplate(text, {})
    assert write([]) == 'False a "b"'
    assert ChatTemplate(text, {"effort": "low"})([]) == "False low"


def test_the_text_before_the_first_mark_stays_when_arguments_come_before_it():
    assert ChatTemplate(with_arguments("\n x{{ a }}", {"a": 1}), {})([]) == "\n x1"


@pytest.mark.parametrize("value", [True, False, 3, 0.5, 'it\'s "é"', ["a", True], {"k": [1, False]}])
def test_every_value_of_toml_reaches_the_template(value):
    write = ChatTemplate(with_arguments("{{ value | tojson }}", {"value": value}), {})
    assert json.loads(write([])) == value


def test_an_argument_that_the_template_does_not_read_is_refused():
    with pytest.raises(ChatError, match="does not read 'enable_thinking', so it would change nothing"):
        with_arguments(CHATML, {"enable_thinking": False})


def test_a_date_is_the_recipes_or_the_documented_day_and_never_todays():
    assert ChatTemplate(DATED, {})([]) == "29 November 2026\n"
    assert ChatTemplate(DATED, {}, "2025-01-02")([]) == "02 January 2025\n"
    assert ChatTemplate("{{ date_string }}", {}, "2025-01-02")([]) == "02 Jan 2025"
    assert ChatTemplate("{{ date_string or 'its own' }}", {})([]) == "its own"
    with pytest.raises(ChatError, match=r"expected a day such as .*got '2025-13-01'"):
        ChatTemplate(DATED, {}, "2025-13-01")


@pytest.fixture
def folder(tmp_path) -> Path:
    build(tmp_path / "model", 0)
    return tmp_path / "model"


def test_what_a_recipe_says_about_the_template_is_in_the_folder(folder):
    (folder / "chat_template.jinja").write_text(SWITCH)
    plain = open_chat(folder).digest
    chat = finish(folder, arguments={"mood": "dry"}, date="1999-12-31")
    assert chat.prompt_text(ASKED).startswith("1999<|im_start|>")
    assert open_chat(folder).prompt_ids(ASKED) == chat.prompt_ids(ASKED)
    assert chat.digest != plain


def test_a_file_is_a_template(folder, tmp_path):
    (tmp_path / "mine.jinja").write_text(CHATML.replace("<|im_end|>", "<|pad|>"))
    assert finish(folder, str(tmp_path / "mine.jinja")).end_id == 256
    with pytest.raises(ChatError, match=r"cannot read none\.jinja"):
        finish(folder, "none.jinja")


def test_of_several_templates_the_default_is_used_or_the_one_that_is_named(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "short.jinja").write_text(CHATML.replace("assistant\\n", "assistant"))
    tokenizer = load_tokenizer(folder)
    assert template_text(tokenizer) == CHATML
    with pytest.raises(ChatError, match=r"none is called 'long'.*default, short"):
        template_text(tokenizer, "own:long")
    assert finish(folder, "own:short").prompt_text(ASKED).endswith("<|im_start|>assistant")
    assert not (folder / "additional_chat_templates").exists()
    assert open_chat(folder).prompt_text(ASKED).endswith("<|im_start|>assistant")


def test_every_token_that_ends_a_generation_is_kept(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 97]}')
    assert finish(folder).stops == {97, 258}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [97, 258]
    assert open_chat(folder).completion([98, 97], (), ()).text == "b"


def test_a_folder_that_cannot_be_trained_says_so_once_and_answers(folder):
    (folder / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<end>"))
    with pytest.warns(UserWarning, match="can answer, but not be trained: missing end-of-turn token"):
        chat = finish(folder)
    assert chat.prompt_text(ASKED).endswith("assistant\n")


def test_the_fixed_day_changes_the_digest_only_where_a_template_asks_for_one(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    same = Chat(tokenizer).digest
    tokenizer.init_kwargs["chat_template_date"] = "2020-01-01"
    assert Chat(tokenizer).digest == same
    tokenizer.chat_template = DATED
    assert Chat(tokenizer).digest not in (same, Chat(load_tokenizer(tiny_folder)).digest)
