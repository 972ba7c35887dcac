"""The verb `trace`: spans in colour, rows below, the same as JSON."""

from __future__ import annotations

import io
import json
import subprocess

import pytest
from tests.trace.stores import PLANTED, run_of

from tercet.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    yield run_of(tmp_path_factory.mktemp("traced") / "runs")[0]
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path_factory.getbasetemp())], check=False)


@pytest.fixture
def trace(store, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main.main(["trace", "rlvr", *words, "--store", str(store.root)])
        return (code, *capsys.readouterr())

    return run


def test_a_planted_sentence_is_shown_with_its_row(trace):
    code, out, _ = trace(f"They say {PLANTED}.")
    assert code == 0
    assert "1  14 words, once, rarity" in out
    assert "sft, rlvr: sft-data-" in out
    assert "row 7, assistant; birds (CC-BY-4.0)" in " ".join(out.split())
    assert "82% of 17 words stand in the rows, 8 or more in a row" in out
    assert "searched for dpo: 1 rows (pairs) of choices-" in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_fresh_answer_from_standard_input_has_no_rows(trace, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Nothing of this was ever written down by anybody here."))
    code, out, _ = trace("-")
    assert code == 0
    assert "no 8 words in a row of these 11 stand in the rows" in out


def test_json_is_the_trace_and_what_was_searched(trace):
    code, out, _ = trace(PLANTED, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["spans"][0]["text"] == PLANTED
    assert [one["what"] for one in found["searched"]] == ["rows", "pairs", "rollouts"]


def test_a_terminal_obeys_nothing_of_a_row(trace):
    _, out, _ = trace(f"\x1b]0;owned\x07 {PLANTED}")
    assert "\x1b" not in out
    assert "\\x1b]0;owned\\x07" in out


def test_what_was_never_trained_is_bad_input(store, capsys):
    assert main.main(["trace", "base", "text", "--store", str(store.root)]) == 2
    assert "nothing in its lineage was trained" in capsys.readouterr().err
