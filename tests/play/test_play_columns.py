"""Columns have labels that differ, and nobody is told where a server stands."""

from __future__ import annotations

import json

from tercet.play.columns import labelled, local, server


def test_labels_of_columns_differ(tiny_folder):
    two = labelled([local("a", tiny_folder, "sft"), local("b", tiny_folder, "sft"), local("c", tiny_folder)])
    assert [column.label for column in two] == ["a", "b", "c"]
    assert len({column.tokenizer for column in two}) == 1


def test_the_page_is_not_told_where_a_server_stands():
    told = json.dumps(server("other", "https://secret.example/v1", "org/m", 0).to_json())
    assert "secret" not in told
    assert json.loads(told)["server"] is True
