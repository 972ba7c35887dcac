"""What the command line prints fits a terminal of 80 columns, and no number is cut."""

from __future__ import annotations

import re

import pytest

from tercet.cli.output import table

HEAD = ("stage", "key", "why", "rows", "share", "score")
ROWS = [
    (
        "preference-data",
        "0123456789ab",
        "input sft changed, learning_rate 1e-05 -> 3e-05 " * 3,
        "1,234,567",
        "12%",
        "x",
    ),
    ("a-stage-of-a-rather-long-name", "ba9876543210", "not made yet", "8", "100%", "0.412 ± 0.045"),
]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_table_fits_the_terminal_and_cuts_neither_numbers_nor_keys(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    table(HEAD, ROWS)
    lines = re.sub("\x1b[^m]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    for whole in ("0123456789ab", "ba9876543210", "1,234,567", "12%", "100%"):
        assert any(whole in line for line in lines), whole


def test_elsewhere_nothing_is_cut(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    table(HEAD, ROWS)
    assert ROWS[0][2].strip() in capsys.readouterr().out
