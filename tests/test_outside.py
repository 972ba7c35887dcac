"""What may reach a terminal or a file, and which URL holds a password."""

from __future__ import annotations

import json

import pytest

from tercet.outside import (
    has_userinfo,
    mended,
    printable,
    printable_json,
    unicode_error,
    unicode_only,
    without_userinfo,
)
from tercet.recipe import BaseSpec
from tercet.rows import RowError
from tercet.rows_file import read_file
from tercet.verify import Grade


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ü, 日本, 😀, ×\tand\nlines", "plain, ü, 日本, 😀, ×\tand\nlines"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\rb\x9bc\x7f", "a\\rb\\x9bc\\x7f"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("\ud800", "\\ud800"),
        (
            "👩\u200d🔬 \u0645\u06cc\u200c\u062e",
            "👩\u200d🔬 \u0645\u06cc\u200c\u062e",
        ),  # joiners are part of pictures and words
    ],
)
def test_a_terminal_gets_the_escape_of_what_it_would_obey(text, shown):
    assert printable(text) == shown


def test_json_on_a_terminal_stays_the_same_value():
    value = {"\x1b": ["\x9b\u202e\ud800\x7f", 1.5, None]}
    assert json.loads(printable_json(json.dumps(value, ensure_ascii=False))) == value


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDFFF": 1}', '["a\\ud83dx"]'])
def test_half_a_pair_is_found_and_mended(text):
    value = json.loads(text)
    assert "half of a surrogate pair" in unicode_error(text, value)
    json.dumps(mended(value), ensure_ascii=False).encode()


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud800"', '"plain"'])
def test_whole_characters_are_no_error(text):
    value = json.loads(text)
    assert unicode_error(text, value) == ""
    assert mended(value) == value
    assert unicode_only(value) == value


def test_a_row_with_half_a_pair_is_refused_with_its_place(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "fine"}\n{"a": "\\ud800"}\n', encoding="utf-8")
    with pytest.raises(RowError, match=r"rows.jsonl, line 2: half of a surrogate pair, \\ud800"):
        list(read_file(file))
    assert [row["a"] for row in read_file(file, mend=True)] == ["fine", "\\ud800"]


def test_a_grade_holds_only_what_can_be_stored():
    assert Grade(1.0, answer="a\ud800", detail="\udfff").answer == "a\\ud800"


@pytest.mark.parametrize(
    "url", ["http://me:pw@host/v1", "https://me@host", " HTTP://a:b@[::1]:8000/v1#m", "ftp://u:p@h/f"]
)
def test_a_user_in_a_url_is_found_and_hidden(url):
    assert has_userinfo(url)
    assert "pw" not in without_userinfo(f"--set x={url}: wrong")
    with pytest.raises(ValueError, match="user name or a password"):
        BaseSpec(model=url)


@pytest.mark.parametrize(
    "text", ["http://host/v1#a@b", "https://host/path/@user", "me@host", "mail me@host", "hf:a/b@main"]
)
def test_other_at_signs_are_no_user(text):
    assert not has_userinfo(text)
    assert without_userinfo(text) == text
