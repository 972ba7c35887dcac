"""What the verb `play` shows and refuses, before any model is opened."""

from __future__ import annotations

import pytest

from tercet.cli.main import VERBS, main
from tercet.cli.parser import parser
from tercet.cli.play import _Shown


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


def test_columns_are_a_runs_models_and_others_each_once_and_under_names_of_their_own(run_store, sharp_folder, tmp_path):
    server = "http://localhost:9/v1#org/sft"
    words = [str(run_store.root), str(run_store.open("sft").path), str(sharp_folder), server]
    shown = _Shown(parser(VERBS).parse_args(["play", *words, "--store", str(tmp_path / "runs")]))
    sft = run_store.open("sft")
    assert [column.name for column in shown.columns] == ["base", sft.path.name, sharp_folder.name, "sft"]
    assert list(shown.folders.values())[1] == sft.payload
    assert [one.column.name for one in shown.servers] == ["sft"]
