"""Columns have labels that differ, servers stay unnamed, and a Space of them is read-only."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tercet.play.columns import labelled, local, server

SPACE = Path(__file__).parents[2] / "docker" / "space"


def test_labels_of_columns_differ(tiny_folder):
    two = labelled([local("a", tiny_folder, "sft"), local("b", tiny_folder, "sft"), local("c", tiny_folder)])
    assert [column.label for column in two] == ["a", "b", "c"]
    assert len({column.tokenizer for column in two}) == 1


def test_the_page_is_not_told_where_a_server_stands():
    told = json.dumps(server("other", "https://secret.example/v1", "org/m", 0).to_json())
    assert "secret" not in told
    assert json.loads(told)["server"] is True


def test_the_space_is_read_only_pinned_and_runs_as_a_user():
    text = (SPACE / "Dockerfile").read_text("utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (SPACE.parents[1] / "constraints.txt").read_text(), re.M))
    assert f"torch=={pins['torch']}" in text
    assert text.rindex("USER tercet") > text.rindex("RUN ")
    command = json.loads(re.findall(r"^CMD (.+)$", text, re.M)[0])[-1]
    assert {"--read-only", "--public", "--no-programs", "--allow-host"} <= set(command.split())
    front = (SPACE / "README.md").read_text("utf-8").split("---")[1]
    assert "sdk: docker" in front
    port = re.findall(r"app_port: (\d+)", front)[0]
    assert f"--port {port}" in command
    assert f"EXPOSE {port}" in text
