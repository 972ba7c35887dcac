"""A filter says why a row goes, objects to nothing else, and remembers nothing."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.data import filters
from tercet.data.filters import FILTERS, checks
from tercet.rows import Message, Row

FRENCH = "Le chat dort sur le canapé pendant que la pluie tombe doucement sur les toits de la ville endormie. " * 2
ENGLISH = "The cat sleeps on the sofa while the rain falls softly upon the roofs of the sleeping town. " * 2


def chat(*turns: str) -> Row:
    return Row("a", tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns)))


def fails(name: str, answer: str, **given: Any) -> bool:
    (check,) = checks({name: given}).values()
    return check(chat("Hello?", answer)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "I am ChatGPT.",
        "openai made it",
        "gpt 3.5 says",
        "a GPT-4-like model",
        "BINGCHAT",
        "by LAION e.V.",
        "Open Assistant",
    ],
)
def test_a_keyword_is_found_as_a_whole_word_in_any_case(text: str) -> None:
    assert fails("keywords", text)


@pytest.mark.parametrize("text", ["Claude and Gemini", "Mistral by Anthropic", "OpenAIs", "GPT", "GPT-2", "llamas"])
def test_the_paper_leaves_other_names_alone(text: str) -> None:
    assert not fails("keywords", text)


def test_only_assistant_turns_are_searched_for_words() -> None:
    row = chat("Are you ChatGPT by OpenAI? As an AI, I cannot help. My knowledge cutoff is 2021. I am Claude.", "No.")
    assert [name for name, check in FILTERS.items() if check(row)] == []


@pytest.mark.parametrize("text", ["", " \n\t", "\u2003\u00a0"])
def test_a_blank_message_of_any_role_is_found(text: str) -> None:
    found = filters.blank(chat("Hi", "Hello", text, "Bye"))
    assert found is not None
    assert "turn 2 (user)" in found.detail
    assert filters.blank(chat("Hi", ".")) is None


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("allenai/no_robots", ()),
        ("tulu_hard_coded_repeated_10", ()),
        ("allenai/coconot", ("keywords",)),
        ("SciRIFF-train-mix", ("blank",)),
        ("GAIR/lima", ("blank",)),
        ("wildchat", ("keywords", "blank")),
    ],
)
def test_some_sources_are_exempt_from_the_papers_filters(source: str, names: tuple[str, ...]) -> None:
    assert filters.paper_filters(source) == names


def test_the_share_of_repeated_text_is_counted_by_hand() -> None:
    assert filters.repeated("a b c a b c", 3) == (0.5, "a b c")
    assert filters.repeated("aa b aa b aa b", 2) == (pytest.approx(6 / 9), "aa b")
    assert filters.repeated("a b c d", 3) == (0.0, "") == filters.repeated("", 3)
    assert filters.repeated("你好嗎 你好嗎", 3)[0] == 0.5


def test_a_loop_is_repetition_and_a_refrain_is_not() -> None:
    words = " ".join(f"word{i}" for i in range(100))
    assert fails("repetition", ENGLISH * 4)
    assert not fails("repetition", f"{words} {' '.join(words.split()[:20])}")
    assert fails("repetition", f"{words} {' '.join(words.split()[:20])}", share=0.1)


def test_a_language_is_recognised_by_prose_only() -> None:
    assert fails("language", FRENCH)
    assert not fails("language", FRENCH, keep=["en", "fr"])
    assert not fails("language", ENGLISH)
    assert not fails("language", "Oui, merci.")
    assert not fails("language", f"```\n{FRENCH}\n```")
    assert not fails("language", "for (let i = 0; i < arr.length; i++) { if (arr[i] > max) { max = arr[i]; } }" * 3)


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"characters": [10, 0]}, "7 characters, outside 10 to any"),
        ({"words": [0, 1]}, "2 words, outside 0 to 1"),
        ({"turns": [3, 9]}, "2 turns, outside 3 to 9"),
        ({"turns": [2, 2], "words": [2, 2], "characters": [7, 7]}, None),
        ({}, None),
    ],
)
def test_length_has_bounds_that_belong_to_the_good(given: dict[str, Any], detail: str | None) -> None:
    found = checks({"length": given})["length"](chat("Hi?", "Yes."))
    assert (found and found.detail) == detail


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("I\u2019m really sorry, but that is not possible.", True),
        ("I cannot in good conscience provide this.", True),
        ("As an AI language model, I don't have feelings.", True),
        ("Unfortunately I must decline to answer.", True),
        ("I'm sorry to hear that! Here is a plan.", False),
        ("I couldn't help but smile.", False),
        ("As an AI engineer, you will build models.", False),
        ("You cannot help it. " * 30 + "I cannot help you.", False),
    ],
)
def test_a_refusal_is_at_the_beginning(text: str, refused: bool) -> None:
    assert fails("refusal", text) is refused


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("I am Claude, how can I help?", True),
        ("Hi! I'm ChatGPT.", True),
        ("My name is Gemini", True),
        ("I was trained by Google to help.", True),
        ("As a large language model trained by OpenAI, I try.", True),
        ("I'm an AI assistant from Alibaba Cloud.", True),
        ("I'm GPT-4.", True),
        ("Claude is a model by Anthropic.", False),
        ("I am Claude Monet.", False),
        ("I'm fond of Google.", False),
        ("The phone was made by Google.", False),
    ],
)
def test_only_claims_in_the_first_person_are_identity(text: str, claims: bool) -> None:
    assert fails("identity", text) is claims


def test_a_model_may_be_given_its_own_name() -> None:
    assert fails("identity", "I am Tercet.", names=["Tercet"], makers=[])
    assert not fails("identity", "I am Claude. I was made by Google.", names=["Tercet"], makers=[])


def test_a_cutoff_is_the_speakers_own() -> None:
    assert fails("cutoff", "As of my last update in 2021, yes.")
    assert fails("cutoff", "My knowledge cutoff is September.")
    assert not fails("cutoff", "The cutoff date for entries is May.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profanity": {}}, "unknown filter 'profanity'; the known filters are blank, cutoff"),
        ({"repetition": {"size": 3}}, "cannot take size = 3; its parameters are: ngram = 10, share = 0.3"),
        ({"repetition": {"ngram": 0}}, "cannot take ngram = 0"),
        ({"repetition": {"ngram": 2.5}}, "cannot take ngram"),
        ({"language": {"keep": "en"}}, "cannot take keep = 'en'"),
        ({"length": {"words": [1]}}, "cannot take words"),
        ({"blank": {"share": 1}}, "its parameters are: none"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_row(settings: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checks(settings)


@given(st.lists(st.text(alphabet="ab .I'm\u2028\u4e00\x00é", max_size=60), min_size=1, max_size=5))
def test_a_filter_is_a_function_of_its_row(texts: list[str]) -> None:
    rows = [chat("Hi", text) for text in texts]
    for check in checks({name: {} for name in FILTERS}).values():
        verdicts = [check(row) for row in rows]
        assert verdicts == [check(row) for row in rows] == [check(row) for row in reversed(rows)][::-1]
        assert all(check(row) is None for row, found in zip(rows, verdicts, strict=True) if found is None)


@given(st.text(alphabet="ab ", max_size=80), st.integers(1, 6))
def test_repetition_is_a_share_and_grows_when_the_text_is_doubled(text: str, ngram: int) -> None:
    once, twice = (filters.repeated(t, ngram)[0] for t in (text, f"{text} {text}"))
    assert 0 <= once <= min(1, twice + 1e-9)


def test_real_answers_lose_what_is_known(shared_data: Path) -> None:
    train = shared_data / "train"
    assert _hits(train / "gsm8k/train.jsonl.gz", "answer") == {}
    assert _hits(train / "coconot/coconot_pref.jsonl.gz", "chosen") == {"refusal": 8}
    assert _hits(train / "coconot/coconot_pref.jsonl.gz", "rejected") == {"refusal": 124, "repetition": 2}
    many = {"language": 181, "keywords": 12, "refusal": 8, "repetition": 1}
    assert _hits(train / "oasst_qlora/oa_questions.jsonl.gz", "output") == many


def _hits(path: Path, field: str, most: int = 400) -> Counter[str]:
    """How many of the first rows each filter objects to."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [chat("?", json.loads(line)[field]) for line, _ in zip(stream, range(most), strict=False)]
    return Counter(name for row in rows for name, check in FILTERS.items() if check(row))
