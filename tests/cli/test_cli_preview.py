"""`tercet data FILE`: what a file becomes before a recipe names it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tercet.cli import output
from tercet.cli.main import VERBS
from tercet.cli.parser import parser

Run = Callable[..., str]
ASKED, ANSWER = (
    {"role": "user", "content": "How many legs has an ant?"},
    {"role": "assistant", "content": "An ant has six."},
)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Write rows, run the verb on them; what it printed, its exit code checked."""

    def shown(rows: list[Any], *options: object, code: int = 0, name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        words = ["data", tmp_path / name, "--store", tmp_path / "runs", *options]
        args = parser(VERBS).parse_args([str(word) for word in words])
        assert args.verb(args) == code
        return capsys.readouterr().out

    return shown


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_layout_account_lengths_and_mask_are_printed(run: Run) -> None:
    rows = [{"messages": [ASKED, ANSWER], "context": "a book"}] * 7 + [{"messages": [ANSWER]}]
    said = squeezed(run(rows))
    assert "rows.jsonl is read as 'rows': every row has messages" in said
    assert "8 rows read: 7 kept, 1 bad" in said
    assert "1 has no user turn" in said
    assert "7 context" in said
    assert "words min 10 % median 90 % 99 % max sum" in said
    assert "row 10 10 10 10 10 10 70 trained 4 4 4 4 4 4 28" in said
    assert "row 1 of 7: rows.jsonl-1 user How many legs has an ant? assistant ⟦An ant has six.⟧" in said
    assert "row 5 of 7" in said
    assert "row 6 of 7" not in said


def test_what_is_context_is_not_marked_as_trained(run: Run) -> None:
    said = squeezed(run([{"messages": [ASKED, {**ANSWER, "weight": 0}, ASKED, ANSWER]}]))
    assert "assistant An ant has six. user" in said
    assert "assistant ⟦An ant has six.⟧" in said
    assert "trained 4" in said


def test_a_file_of_pairs_shows_both_answers(run: Run) -> None:
    rows = [{"prompt": ASKED["content"], "chosen": "It has six.", "rejected": "Eight, or so it seems."}]
    said = squeezed(run(rows))
    assert "chosen ⟦It has six.⟧ rejected ⟦Eight, or so it seems.⟧" in said
    assert "prompt 6 6 6 6 6 6 6 chosen 3 3 3 3 3 3 3 rejected 5" in said
    assert "assistant ⟦It has six.⟧" in squeezed(run(rows, "--need", "rows"))


def test_answers_with_labels_are_shown_with_them(run: Run) -> None:
    rows = [{"prompt": ASKED["content"], "completion": text, "label": text == "Six."} for text in ("Six.", "Eight.")]
    said = squeezed(run(rows))
    assert "labelled good user How many legs has an ant? assistant ⟦Six.⟧" in said
    assert "labelled bad user How many legs has an ant? assistant ⟦Eight.⟧" in said
    assert "2 rows read: 1 kept, 1 left out" in squeezed(run(rows, "--need", "rows"))


def test_prompts_with_their_verifiers_are_shown(run: Run) -> None:
    said = squeezed(run([{"id": "a", "messages": [ASKED], "verifier": "gsm8k@1", "reference": "6"}]))
    assert "rows graded by" in said
    assert "1 gsm8k@1" in said
    assert "a, gsm8k@1: '6' user How many legs has an ant?" in said
    assert "⟦" not in said


def test_with_a_model_rows_are_its_texts_and_lengths_its_tokens(run: Run, tiny_folder: Path) -> None:
    from tercet.models.chat import open_chat
    from tercet.rows import messages_from

    rows = [{"messages": [ASKED, ANSWER]}, {"messages": [ASKED]}]
    found = json.loads(run(rows, "--model", tiny_folder, "--json"))
    encoded = open_chat(tiny_folder).encode(messages_from(rows[0]["messages"]))
    assert [line["part"] for line in found["lengths"]] == ["row", "trained", "prompt"]
    assert [line["max"] for line in found["lengths"][:2]] == [len(encoded.token_ids), sum(encoded.mask)]
    said = squeezed(run(rows, "--model", tiny_folder))
    assert f"tokens of {tiny_folder}" in found["counted"]
    assert "⟦An ant has six." in said
    assert said.count("⟦") == 1


def test_what_cannot_be_read_at_all_is_said_with_exit_code_2(run: Run) -> None:
    assert "no known layout fits rows with the keys x" in squeezed(run([{"x": 1}] * 3, code=2))
    found = json.loads(run([{"messages": [ANSWER]}] * 3, "--json", code=2))
    assert (found["read"], found["kept"], found["bad"][0]["rows"]) == (3, 0, 3)


def test_a_long_text_is_shown_without_its_middle(run: Run) -> None:
    said = squeezed(run([{"messages": [ASKED, {"role": "assistant", "content": "x " * 5000}]}]))
    assert "… 9,400 characters …" in said
    assert said.count("x ") < 700


def test_on_a_terminal_tables_and_rows_fit_its_width(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    words = "several words of an answer that is rather long " * 9
    said = run([{"messages": [ASKED, {"role": "assistant", "content": words}], "context": "x"}] * 3 + ["{"])
    plain = re.sub(r"\x1b\[[\d;]*m", "", said)
    assert max(map(len, plain.splitlines()[2:])) <= 80
    assert "\x1b[32mseveral words" in said
    assert "⟦" not in said


def test_progress_shows_on_a_terminal_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    output.waiting(iter([1, 2, 3]), "rows of a.jsonl")
    assert "rows" not in capsys.readouterr().err
    monkeypatch.setattr(output, "WAIT", -1.0)
    output.waiting(iter([1, 2, 3]), "rows of a.jsonl")
    assert "rows of a.jsonl" in capsys.readouterr().err


def test_a_file_has_a_page_with_its_account_lengths_and_rows(run: Run, tmp_path: Path) -> None:
    lost = {"messages": [ANSWER]}
    rows = [{"messages": [{**ASKED, "content": f"<b>{i}</b> legs?"}, ANSWER], "context": "a book"} for i in range(70)]
    page = tmp_path / "new" / "rows.html"
    said = run([*rows, lost], "--out", page)
    html = page.read_text()
    assert f"page: {page}" in said
    assert html.count('<details class="item"') == 60
    for text in ("71", "has no user turn", "context", "Lengths in words", "&lt;b&gt;0&lt;/b&gt; legs?", "file of rows"):
        assert text in html
    assert "<b>0</b>" not in html
    found = json.loads(run([*rows, lost], "--out", page, "--json"))
    assert (found["page"], len(found["rows"]), found["kept"]) == (str(page), 5, 70)


def test_the_page_of_pairs_labels_and_nothing_at_all(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    run([{"chosen": [ASKED, ANSWER], "rejected": [ASKED, {**ANSWER, "content": "Eight."}]}], "--out", page)
    assert "Rejected" in page.read_text()
    assert "Eight." in page.read_text()
    run([{"prompt": "Legs?", "completion": "Six.", "label": True}], "--out", page)
    assert "Labelled good." in page.read_text()
    run([{"messages": [ANSWER]}], "--out", page, code=2)
    assert "No row could be read." in page.read_text()
