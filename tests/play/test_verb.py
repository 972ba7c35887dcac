"""What the verb `play` refuses, before any model is opened."""

from __future__ import annotations

import pytest

from tercet.cli.main import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--public"], "--public: whoever reaches the page may ask; it needs --read-only"),
        (["--host", "0.0.0.0"], "set a key in TERCET_API_KEY"),
        (["--judge", "nobody", "--port", "0"], "--judge nobody: expected"),
    ],
)
def test_what_cannot_be_served_is_said_before_a_model_is_opened(run_store, words, message, capsys, monkeypatch):
    monkeypatch.delenv("TERCET_API_KEY", raising=False)
    assert main(["play", str(run_store.root), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
