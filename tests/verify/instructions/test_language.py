"""The shared language tools: sentences and words as nltk cuts them, a repeatable language, strict and loose."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tercet.verify import VerifierError
from tercet.verify.instructions.english import sentences, words
from tercet.verify.instructions.language import (
    grade_instructions,
    language_of,
    loose_texts,
    read_instructions,
)


def test_importing_the_module_loads_no_library() -> None:
    code = "import sys, tercet.verify.instructions.language\n"
    code += "print(sorted({'nltk', 'langdetect', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50. He left.", ["Dr. Smith paid $3.50.", "He left."]),
        ("A title\n\nwith no stop. Next.", ["A title\n\nwith no stop.", "Next."]),
        ("1. First. 2. Second.", ["1.", "First.", "2.", "Second."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Hi! \U0001f600 Yo. \U0001f600", ["Hi!", "\U0001f600 Yo.", "\U0001f600"]),
        ("One.Two.", ["One.Two."]),
        ("", []),
    ],
)
def test_sentences_are_cut_by_punkt(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_words_are_treebank_tokens_of_each_sentence() -> None:
    assert words('It\'s "well-known". I can\'t.') == [
        "It", "'s", "``", "well-known", "''", ".", "I", "ca", "n't", ".",
    ]  # fmt: skip


def test_sentences_and_words_equal_those_of_nltk_with_its_own_data(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared_data / "nltk_data")])
    with gzip.open(shared_data / "eval/alpaca_eval/baseline_gpt4_1106_preview_outputs.json.gz") as file:
        texts = [row["output"] for row in json.load(file)][:100]
    with gzip.open(shared_data / "train/gpteacher/roleplay-instruct.json.gz") as file:
        texts += [row["response"] for row in json.load(file)][:100]
    for text in texts:
        assert sentences(text) == nltk.sent_tokenize(text)
        assert words(text) == nltk.word_tokenize(text)


def test_the_language_of_a_text_is_the_same_in_any_order_of_calls() -> None:
    texts = ["Hello there", "ok no", "Der Hund schläft.", "taxi bar hotel", "menu"]
    first = [language_of(text) for text in texts]
    assert [language_of(text) for text in reversed(texts)] == first[::-1]
    assert first[2] == "de"


@pytest.mark.parametrize("text", ["", "123 456", "?!", "https://example.com/a"])
def test_a_text_without_letters_has_no_language(text: str) -> None:
    assert language_of(text) is None


def test_the_loose_texts_drop_outer_lines_and_asterisks() -> None:
    assert loose_texts(" a\n*b*\n\nc ") == [
        " a\n*b*\n\nc ", "*b*\n\nc", "a\n*b*", "*b*", " a\nb\n\nc ", "b\n\nc", "a\nb", "b",
    ]  # fmt: skip


def test_blank_loose_texts_are_skipped_and_equal_ones_are_asked_once() -> None:
    assert loose_texts("one line") == ["one line"]
    assert loose_texts("*one*") == ["*one*", "one"]
    assert loose_texts("* *") == ["* *"]
    assert loose_texts(" \n ") == []


def test_a_check_that_raises_loosely_is_not_followed() -> None:
    def only_whole(text: str) -> bool:
        if "\n" not in text:
            raise RuntimeError("too short")
        return False

    grade = grade_instructions("a\nb", [("odd", only_whole), ("fine", lambda text: text == "a\nb")])
    assert (grade.score, grade.outcome) == (0.0, "error")
    assert grade.detail == "failed: odd; odd: RuntimeError: too short"
    assert grade.numbers["followed_loose"] == 1.0


def test_a_row_is_read_without_nulls_and_kept_whole() -> None:
    row = {"key": 3, "prompt": "Do.", "instruction_id_list": ["a:b", "c:d"], "kwargs": [{"n": 2.0, "m": None}, None]}
    assert read_instructions(json.dumps(row), "any@1") == ([("a:b", {"n": 2}), ("c:d", {})], row)
    with pytest.raises(VerifierError, match="any@1 expects a JSON row"):
        read_instructions('{"kwargs": []}', "any@1")
