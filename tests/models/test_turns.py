"""What each family's template trains: by hand for one answer, by law for any conversation."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_families import FAMILIES, Family, tokenizer_of

from tercet.models.chat import Chat, ChatError, MaskedTokens, last_turn
from tercet.models.chat_template import DAY
from tercet.models.turns import split_thought, without_thoughts
from tercet.rows import DetailedMessage, Message, with_tools
from tercet.verify.thoughts import Answer, answer_of

CALL = json.dumps([{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"x": 1}}}])
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]
CONTENT = st.one_of(
    st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=12),
    st.lists(st.sampled_from(["\n", " ", "12", "né", "😀", "👩‍🚀", "a b", "{{ x }}", "<b>"]), max_size=4).map("".join),
)
EVERY = pytest.mark.parametrize("number", range(len(FAMILIES)), ids=[family.name for family in FAMILIES])
USER = Message("user", "Q")
THINK = "<think>\nT\n</think>\n\n"


@cache
def chat_of(number: int) -> Chat:
    return Chat(tokenizer_of(number))


def those(wanted) -> pytest.MarkDecorator:
    """The families of which something is true."""
    chosen = [number for number, family in enumerate(FAMILIES) if wanted(family)]
    return pytest.mark.parametrize("number", chosen, ids=[FAMILIES[number].name for number in chosen])


def trained(chat: Chat, encoded: MaskedTokens) -> list[str]:
    """The decoded runs of trained tokens of every path, the earliest path first."""
    found = []
    for path in (*encoded.others, MaskedTokens(encoded.token_ids, encoded.mask)):
        run: list[int] = []
        for token, on, following in zip(path.token_ids, path.mask, [*path.mask[1:], False], strict=True):
            run = [*run, token] if on else run
            if on and (not following or token in chat.stops):
                found.append(chat.tokenizer.decode(run, clean_up_tokenization_spaces=False))
                run = []
    return found


class FixedDay(datetime):
    """The clock of transformers' templates, stopped."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(DAY)


@pytest.fixture(autouse=True, scope="module")
def _fixed_day():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.chat_template_utils.datetime", FixedDay)
        yield


def theirs(chat: Chat, turns: list[dict], *, waiting: bool = False, tools=None) -> list[int]:
    """What transformers itself makes of a conversation on the fixed day."""
    return chat.tokenizer.apply_chat_template(turns, add_generation_prompt=waiting, tools=tools)["input_ids"]


@EVERY
def test_one_answer_is_trained_as_the_model_must_write_it(number):
    chat, family = chat_of(number), FAMILIES[number]
    encoded = chat.encode((USER, Message("assistant", "A")))
    assert not chat.untrainable
    assert trained(chat, encoded) == [family.answer]
    prompt = theirs(chat, [{"role": "user", "content": "Q"}], waiting=True)
    assert chat.prompt_ids((USER,)) == prompt == encoded.token_ids[: len(prompt)]
    assert encoded.mask.index(True) == len(prompt)


@EVERY
def test_what_follows_an_ended_answer_is_the_replies_and_the_next_opening(number):
    chat = chat_of(number)
    for replies in (["R"], ["one two\nthree"], [""]):
        turns = [Message("user", text) for text in replies]
        found = chat.reply_ids(turns)
        whole = chat.prompt_ids((USER, Message("assistant", "A"), *turns))
        assert whole[-len(found) :] == found
        special = chat.tokenizer.decode(whole[: -len(found)][-1])
        assert special in FAMILIES[number].specials.split()


@EVERY
def test_an_answer_that_is_context_is_read_and_never_trained(number):
    chat, family = chat_of(number), FAMILIES[number]
    context, again, answer = (
        DetailedMessage("assistant", "B", untrained=True),
        Message("user", "R"),
        Message("assistant", "A"),
    )
    whole = chat.encode((USER, Message("assistant", "B"), again, answer))
    encoded = chat.encode((USER, context, again, answer))
    assert encoded.token_ids == whole.token_ids
    assert trained(chat, encoded) == trained(chat, whole)[-1:]
    assert not encoded.others
    assert trained(chat, chat.encode((USER, answer, again, context))) == [family.answer]


@those(lambda family: not family.call)
def test_a_call_of_an_answer_that_is_context_is_not_lost_either(number):
    called = DetailedMessage("assistant", "", tool_calls=CALL, untrained=True)
    with pytest.raises(ChatError, match="does not write the call of 'weather'"):
        chat_of(number).encode((USER, called, USER, Message("assistant", "A")))


@those(lambda family: family.thought)
def test_a_thought_is_trained_where_the_template_has_its_place(number):
    chat, family = chat_of(number), FAMILIES[number]
    assert trained(chat, chat.encode((USER, DetailedMessage("assistant", "A", thought="T")))) == [family.thought]
    (inline,) = trained(chat, chat.encode((USER, Message("assistant", f"{THINK}A"))))
    assert "".join(inline.split()) == "".join(family.thought.split())  # some keep its white space


def read_back(chat: Chat, answer: Message, last: str = "") -> Answer:
    """What a completion says that writes, token for token, what is trained; it may end with the word `last`."""
    prompt, ids = last_turn(chat.encode((USER, answer)))
    texts = (chat.tokenizer.decode(ids[:end]) for end in range(len(ids)))
    kept = ids[: next(end for end, text in enumerate(texts) if last in text)] if last else ids
    thought, said, unfinished = answer_of(chat.completion(kept, [0.0] * len(kept), (), chat.begun(prompt)).text)
    return Answer(thought, said.strip(), unfinished)  # some templates have a blank before and behind an answer


@EVERY
def test_what_a_model_writes_is_parted_into_thought_and_answer_by_its_own_marks(number):
    chat, family = chat_of(number), FAMILIES[number]
    assert read_back(chat, Message("assistant", "Aye")) == Answer("", "Aye")
    if family.thought:
        turn = DetailedMessage("assistant", "Aye", thought="To be, or not to be?")
        assert read_back(chat, turn) == Answer("To be, or not to be?", "Aye")
        assert read_back(chat, turn, last="not").unfinished


@those(lambda family: not family.thought)
def test_a_thought_that_the_template_cannot_carry_is_refused_and_can_be_dropped(number):
    chat, family = chat_of(number), FAMILIES[number]
    row = (USER, DetailedMessage("assistant", "A", thought="Why not"))
    with pytest.raises(ChatError, match=r'(?s)row 7: .*thinking = "drop"'):
        chat.encode(row, "row 7")
    assert trained(chat, chat.encode(without_thoughts(row))) == [family.answer]


@those(lambda family: family.call)
def test_a_call_is_trained_and_what_the_tool_says_is_not(number):
    chat, family = chat_of(number), FAMILIES[number]
    asked = with_tools((USER,), TOOLS)
    called = (*asked, DetailedMessage("assistant", "", tool_calls=CALL))
    assert trained(chat, chat.encode(called)) == [family.call]
    whole = (*called, DetailedMessage("tool", "42", tool_call_id="c1", name="weather"), Message("assistant", "A"))
    found = trained(chat, chat.encode(whole))
    assert found[0] == family.call
    assert found[1].endswith(family.answer[family.answer.index("A") :])
    assert len(found) == 2
    assert not any("42" in text for text in found)


@those(lambda family: not family.call)
def test_a_call_that_the_template_cannot_carry_is_refused(number):
    chat = chat_of(number)
    with pytest.raises(ChatError, match=r"(?s)row 7.*(call of 'weather'|refuses|fails)"):
        chat.encode((USER, DetailedMessage("assistant", "Let me look.", tool_calls=CALL)), "row 7")


@st.composite
def conversations(draw):
    """System or none, then one to three exchanges."""
    turns = [Message("system", draw(CONTENT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(CONTENT)), Message("assistant", draw(CONTENT))]
    return tuple(turns)


def written(family: Family, content: str) -> str:
    """What the model must write for an answer, by the family's own example."""
    if family.strips:
        content = content.strip()
    elif family.lstrips:
        content = content.lstrip("\n")
    return family.answer.replace("A", content, 1) if family.answer.count("A") == 1 else _last(family, content)


def _last(family: Family, content: str) -> str:
    """`A` is the one letter that is no part of a mark."""
    before, _, behind = family.answer.rpartition("A<") if "A<" in family.answer else family.answer.rpartition("A")
    return f"{before}{content}{'<' if 'A<' in family.answer else ''}{behind}"


@EVERY
@settings(max_examples=12, deadline=None)
@given(messages=conversations())
def test_every_answer_is_trained_once_behind_what_the_model_will_see(number, messages):
    chat, family = chat_of(number), FAMILIES[number]
    if not family.system and messages[0].role == "system":
        messages = messages[1:]
    encoded = chat.encode(messages)
    answers = [message.content for message in messages if message.role == "assistant"]
    assert sorted(trained(chat, encoded)) == sorted(written(family, content) for content in answers)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    prompts = {
        tuple(theirs(chat, turns[:i], waiting=True)) for i in range(len(turns)) if turns[i]["role"] == "assistant"
    }
    for path in (*encoded.others, encoded):
        starts = [i for i, on in enumerate(path.mask) if on and (i == 0 or not path.mask[i - 1])]
        assert starts
        assert all(tuple(path.token_ids[:start]) in prompts for start in starts)
    if not family.composed:
        whole = theirs(chat, turns)
        assert encoded.token_ids[: len(whole)] == whole
        assert len(encoded.token_ids) - len(whole) <= 1  # the end token that only the next turn would bring


def test_the_page_of_templates_is_what_the_tests_say(docs_script):
    module = docs_script("make_templates")
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), "run `make docs`"


def test_thoughts_are_split_off_an_answer():
    assert split_thought("<think>\nT\n</think>\n\nA") == ("T", "A")
    assert split_thought("T</think>A") == ("T", "A")
    assert split_thought("A") == ("", "A")
