"""Token ids and loss mask by structure: over any content, for both tokenizers and both templates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.models.chat import TEMPLATES, Chat, ChatError, MaskedTokens
from tercet.models.hf_folder import load_tokenizer
from tercet.rows import PLAIN, Message
from tercet.verify.thoughts import Answer, answer_of

MARKERS = ["<|im_end|>", "<|im_start|>assistant\n", "<|assistant|>\n", "<|user|>\n", "<|pad|>", "⟦", "{{ messages }}"]
# SmolLM2's vocabulary lacks some control bytes and those that unassigned planes begin with; it drops such characters.
CONTENT = st.one_of(
    st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"]), max_size=12),
    st.lists(st.sampled_from([*MARKERS, "\n", " ", "12", "né", "😀", "👩‍🚀", "a b"]), max_size=4).map("".join),
)


@st.composite
def conversations(draw):
    """System or none, then one to three exchanges."""
    turns = [Message("system", draw(CONTENT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(CONTENT)), Message("assistant", draw(CONTENT))]
    return tuple(turns)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)


def theirs(chat: Chat, messages, *, generation_prompt: bool = False) -> list[int]:
    """What transformers itself makes of a conversation."""
    plain = [{"role": message.role, "content": message.content} for message in messages]
    encoding = chat.tokenizer.apply_chat_template(
        plain, chat_template=chat.template, add_generation_prompt=generation_prompt
    )
    return encoding["input_ids"]


def trained(chat: Chat, encoded: MaskedTokens) -> list[str]:
    """The decoded runs of trained tokens; a run ends with its end token."""
    runs: list[list[int]] = [[]]
    for token, on, following in zip(encoded.token_ids, encoded.mask, [*encoded.mask[1:], False], strict=True):
        if on:
            runs[-1].append(token)
            if not following:
                runs.append([])
    return [decoded(chat, run) for run in runs[:-1]]


def decoded(chat: Chat, token_ids: list[int]) -> str:
    return chat.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module", params=["own", "tulu3"])
def tiny_chat(request, tiny_folder) -> Chat:
    return Chat(load_tokenizer(tiny_folder), request.param)


@pytest.fixture(scope="module", params=["own", "tulu3"])
def smol_chat(request, smollm) -> Chat:
    return Chat(load_tokenizer(smollm), request.param)


def with_template(folder: Path, template: str) -> Chat:
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    return Chat(tokenizer)


@settings(max_examples=60)
@given(conversations())
def test_ids_equal_those_of_transformers(tiny_chat, messages):
    assert tiny_chat.encode(messages).token_ids == tiny_chat.render(messages) == theirs(tiny_chat, messages)
    assert tiny_chat.prompt_ids(messages[:-1]) == theirs(tiny_chat, messages[:-1], generation_prompt=True)


@settings(max_examples=60)
@given(conversations())
def test_exactly_the_answers_and_their_end_tokens_are_trained(tiny_chat, messages):
    answers = [message.content + "<|im_end|>" for message in messages if message.role == "assistant"]
    assert trained(tiny_chat, tiny_chat.encode(messages)) == answers


@settings(max_examples=60)
@given(conversations())
def test_training_continues_exactly_the_prompt_that_generation_sees(tiny_chat, messages):
    prompt_ids, completion_ids = tiny_chat.pair(messages[:-1], messages[-1].content)
    assert prompt_ids == tiny_chat.prompt_ids(messages[:-1])
    assert decoded(tiny_chat, completion_ids[:-1]) == messages[-1].content
    assert completion_ids[-1] == tiny_chat.end_id
    assert tiny_chat.render(messages)[: len(prompt_ids + completion_ids)] == prompt_ids + completion_ids


@settings(max_examples=40)
@given(conversations())
def test_a_real_tokenizer_keeps_ids_and_borders(smol_chat, messages):
    encoded = smol_chat.encode(messages)
    assert encoded.token_ids == theirs(smol_chat, messages)
    runs = trained(smol_chat, encoded)
    answers = [message.content + "<|im_end|>" for message in messages if message.role == "assistant"]
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        merged = answer.removesuffix(run)  # leading white space that became one token with the header's newline
        assert answer == merged + run
        assert not merged.strip()


def test_a_token_across_the_header_belongs_to_the_prompt(smol_chat):
    prompt_ids, completion_ids = smol_chat.pair((user("Hi"),), "\n\nYes")
    assert decoded(smol_chat, prompt_ids[-1:]) == "\n\n"
    assert decoded(smol_chat, completion_ids) == "\nYes<|im_end|>"
    assert prompt_ids + completion_ids == smol_chat.render((user("Hi"), assistant("\n\nYes")))[: len(prompt_ids) + 3]


def test_characters_of_several_tokens_are_trained_whole(smol_chat):
    encoded = smol_chat.encode((user("🧑‍🚀"), assistant("🧑‍🚀é"), user("x"), assistant("\U0001f9ff")))
    assert trained(smol_chat, encoded) == ["🧑‍🚀é<|im_end|>", "\U0001f9ff<|im_end|>"]


def test_ordinary_prompts_split_where_generation_does(smol_chat):
    for answer in ("4", "The answer is 4.", "é", "1 + 1", "- a\n- b\n", ""):
        prompt_ids, completion_ids = smol_chat.pair((user("What is 2 + 2?"),), answer)
        assert prompt_ids == smol_chat.prompt_ids((user("What is 2 + 2?"),))
        assert decoded(smol_chat, completion_ids) == answer + "<|im_end|>"


def test_the_tulu3_template_is_the_papers(tiny_folder):
    chat = Chat(load_tokenizer(tiny_folder), "tulu3")
    messages = (Message("system", "S"), user("U"), assistant("A"), user("V"), assistant("B"))
    assert chat.text(messages) == (
        "<|system|>\nS\n<|user|>\nU\n<|assistant|>\nA<|im_end|>\n<|user|>\nV\n<|assistant|>\nB<|im_end|>"
    )
    assert chat.text(messages[:2], generation_prompt=True) == "<|system|>\nS\n<|user|>\nU\n<|assistant|>\n"
    assert chat.text(messages[1:2]) == "<|user|>\nU\n"  # no BOS and no default system prompt


def test_the_newline_after_a_turn_is_not_trained(tiny_chat):
    messages = (user("U"), assistant("A"), user("V"), assistant("B"))
    encoded = tiny_chat.encode(messages)
    newline = encoded.token_ids.index(tiny_chat.end_id, encoded.mask.index(True)) + 1
    assert encoded.token_ids[newline] == ord("\n")
    assert not encoded.mask[newline]


def test_the_end_token_comes_from_the_template(smollm, tiny_folder):
    assert Chat(load_tokenizer(smollm)).end_id == 2
    assert Chat(load_tokenizer(tiny_folder), "tulu3").end_id == 258
    chat = with_template(tiny_folder, TEMPLATES["tulu3"].replace("eos_token", "pad_token"))
    assert chat.end_id == 256


def test_injected_markers_stay_content(tiny_chat):
    messages = (user("a<|im_end|>\n<|im_start|>assistant\nb"), assistant("<|assistant|>\nc<|im_end|>d"))
    assert trained(tiny_chat, tiny_chat.encode(messages)) == ["<|assistant|>\nc<|im_end|>d<|im_end|>"]


def test_the_mask_is_shown(tiny_folder):
    chat = Chat(load_tokenizer(tiny_folder), "tulu3")
    encoded = chat.encode((user("U"), assistant("Añ")))
    assert chat.show(encoded, colour=False) == "<|user|>\nU\n<|assistant|>\n⟦Añ<|im_end|>⟧"
    assert chat.show(encoded, colour=True) == "<|user|>\nU\n<|assistant|>\n\033[32m⟦Añ<|im_end|>⟧\033[0m"


def test_a_row_without_an_answer_is_refused_and_shown(tiny_chat):
    with pytest.raises(ChatError, match=r"(?s)rows\.jsonl, line 3: nothing to train.*assistant turn.*lonely"):
        tiny_chat.encode((user("lonely"),), "rows.jsonl, line 3")


def test_a_row_without_a_prompt_is_refused(tiny_folder):
    chat = with_template(
        tiny_folder,
        "{% for m in messages %}{{ m['content'] + ('<|im_end|>' if m['role'] == 'assistant' else '\n') }}{% endfor %}",
    )
    with pytest.raises(ChatError, match=r"(?s)covers everything.*⟦A<\|im_end\|>⟧"):
        chat.encode((assistant("A"),))


def test_a_doubled_bos_is_refused(tiny_folder):
    chat = with_template(
        tiny_folder, "{{ bos_token }}" + TEMPLATES["tulu3"].replace("'<|' + message['role'] + '|>\\n' + ", "")
    )
    assert chat.encode((user("fine"), assistant("A"))).token_ids[0] == 257
    with pytest.raises(ChatError, match="doubled BOS"):
        chat.encode((user("<|im_start|>twice"), assistant("A")))


def test_turns_that_the_template_rewrites_are_trained_in_a_text_of_their_own(tiny_folder):
    forgets = TEMPLATES["tulu3"].replace(
        "message['content'] + eos_token", "(message['content'] if loop.last else '…') + eos_token"
    )
    chat = with_template(tiny_folder, forgets)
    first = chat.encode((user("U"), assistant("A")))
    both = chat.encode((user("U"), assistant("A"), user("V"), assistant("B")))
    assert both.others == (first,)
    assert trained(chat, both) == ["B<|im_end|>"]
    assert "…<|im_end|>" in chat.show(both, colour=False)


def test_a_template_that_ends_only_some_turns_is_refused(tiny_folder):
    loses = TEMPLATES["tulu3"].replace("+ eos_token", "+ ('' if message['content'] == 'A' else eos_token)")
    with pytest.raises(ChatError, match="missing end-of-turn token '<|im_end|>' after turn 1".replace("|", r"\|")):
        with_template(tiny_folder, loses).encode((user("U"), assistant("A")))


@pytest.mark.parametrize("closing", ["''", "'\\n'", "'</s>'"])
def test_a_template_without_an_end_token_asks_but_is_not_trained(tiny_folder, closing):
    chat = with_template(tiny_folder, TEMPLATES["tulu3"].replace("eos_token", closing))
    assert chat.prompt_ids((user("U"),)) == theirs(chat, (user("U"),), generation_prompt=True)
    assert chat.stops == {258}
    with pytest.raises(ChatError, match="row 3: missing end-of-turn token"):
        chat.encode((user("U"), assistant("A")), "row 3")


def test_a_template_whose_generation_prompt_is_not_its_header_is_not_trained(tiny_folder):
    begins = TEMPLATES["tulu3"].replace("{{ '<|assistant|>\\n' }}", "{{ '<|assistant|>\\nSure: ' }}")
    with pytest.raises(ChatError, match="right after its generation prompt"):
        with_template(tiny_folder, begins).encode((user("U"), assistant("A")))


def test_a_thought_that_only_the_generation_prompt_opens_is_closed_before_the_answer(tiny_folder):
    opens = TEMPLATES["tulu3"].replace("{{ '<|assistant|>\\n' }}", "{{ '<|assistant|>\\n<think>' }}")
    chat = with_template(tiny_folder, opens)
    assert trained(chat, chat.encode((user("U"), assistant("A")))) == ["</think>\n\nA<|im_end|>"]


def written(chat: Chat, text: str, asked: str = "U") -> str:
    """The text of a completion of these characters."""
    ids = chat.tokenizer.encode(text, add_special_tokens=False)
    return chat.completion(ids, [0.0] * len(ids), (), chat.begun(chat.prompt_ids((user(asked),)))).text


@pytest.mark.parametrize("mark", ["think", "cot"])
def test_a_completion_begins_inside_the_thought_that_its_prompt_opens(tiny_folder, mark):
    opens = TEMPLATES["tulu3"].replace("{{ '<|assistant|>\\n' }}", f"{{{{ '<|assistant|>\\n<{mark}>\\n' }}}}")
    chat = with_template(tiny_folder, opens)
    assert answer_of(written(chat, f"Why? So.\n</{mark}>\n\nFour.<|im_end|>")) == Answer("Why? So.", "Four.")
    assert answer_of(written(chat, "Why? So.<|im_end|>")) == Answer("Why? So.", "", unfinished=True)
    ids = chat.tokenizer.encode("Why\n", add_special_tokens=False)
    assert chat.completion(ids, [0.0] * len(ids), ("\n",), "<think>\n").text == "<think>\nWhy"  # stops cut its own text


def test_a_prompt_that_opens_no_thought_changes_nothing(tiny_chat):
    assert written(tiny_chat, "Four.", asked="What is <think>") == "Four."
    assert tiny_chat.begun(tiny_chat.prompt_ids((Message(PLAIN, "Q: 2 + 2?\nA: <think>"),))) == "<think>\n"


def test_special_tokens_that_mark_a_thought_stay_in_the_text(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "[TOOL]"]})
    chat = Chat(tokenizer)
    text = written(chat, "[THINK]Why? So.[/THINK]Four.[TOOL]<|im_end|>")
    assert text == "[THINK]Why? So.[/THINK]Four."


def test_a_template_that_opens_only_later_answers_is_refused(tiny_folder):
    """A first turn by the assistant would have its header trained, because nothing is rendered before it."""
    inside = TEMPLATES["tulu3"].replace(
        "{% endfor %}{% if add_generation_prompt %}", "{% if loop.last and add_generation_prompt %}"
    )
    chat = with_template(tiny_folder, inside + "{% endfor %}")
    with pytest.raises(ChatError, match="starts with system or user"):
        chat.encode((assistant("A"), user("U"), assistant("B")))


def test_the_templates_own_refusal_is_passed_on(tiny_folder):
    chat = with_template(
        tiny_folder,
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATES["tulu3"],
    )
    with pytest.raises(ChatError, match="refuses a conversation with the turns system, user: no system"):
        chat.render((Message("system", "S"), user("U")))


def test_an_unknown_template_is_refused_and_without_any_plain_text_is_read(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    with pytest.raises(ChatError, match="unknown chat template 'zephyr'"):
        Chat(tokenizer, "zephyr")
    tokenizer.chat_template = None
    plain = Chat(tokenizer)
    assert plain.prompt_ids((Message(PLAIN, "2 + 2 ="),)) == list(b"2 + 2 =")
    with pytest.raises(ChatError, match=re.escape('set template = "tulu3"')):
        plain.prompt_ids((user("U"),))
    assert Chat(tokenizer, "tulu3").end_id == 258


def test_tokenizers_that_trim_offsets_keep_their_borders(tiny_folder):
    """Llama 3's post-processor trims white space off offsets; a header's newline must not become an answer."""
    from tokenizers import processors

    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    chat = Chat(tokenizer, "tulu3")
    assert trained(chat, chat.encode((user("U"), assistant(" \nA ")))) == [" \nA <|im_end|>"]


def test_long_rows_are_shown_in_part(tiny_chat):
    with pytest.raises(ChatError, match=r"… \d+ characters …") as caught:
        tiny_chat.encode((user("x" * 9000),))
    assert len(str(caught.value)) < 3000
