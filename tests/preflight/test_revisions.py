from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tercet.preflight import revisions
from tercet.recipe import load
from tercet.recipe.pin import with_commits

COMMITS = {"models/org/model": "a" * 40, "datasets/org/rows": "b" * 40, "datasets/org/more": "c" * 40}
RECIPE = """# my recipe
name = "mine"

[base]
model = "org/model" # the best one

[stage.data]
kind = "mix"
sources = [
    { path = "org/rows" }, # first
    { path = "org/more", split = "test", revision = "" },
    { path = "org/fixed", revision = "main" },
    { path = "local.jsonl" },
]

[stage.sft]
kind = "sft"
model = "base"
rows = "data"
"""


class Hub(BaseHTTPRequestHandler):
    """Answers which commit a model or data set stands at, in the hub's form."""

    asked: list[str] = []  # noqa: RUF012  (the server makes the instances)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind, _, name = self.path.removeprefix("/api/").partition("/")
        commit = COMMITS.get(f"{kind}/{name.partition('?')[0].removesuffix('/revision/main')}")
        body = json.dumps({"id": name, "sha": commit} if commit else {"error": "Repository not found"}).encode()
        self.send_response(200 if commit else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if not commit:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub, in a folder with a recipe."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE, encoding="utf-8")
    Path("local.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def tercet(hub: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: the hub's library reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0" if hub else "1", "HF_HOME": str(Path("hf").absolute())}
    environment = os.environ | settings | ({} if hub else {"HF_ENDPOINT": ""})
    command = [sys.executable, "-m", "tercet", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_id_is_resolved_once_printed_and_pinned_in_the_key(hub):
    first = tercet(hub, "plan", "recipe.toml")
    assert f"org/model: resolved to commit {'a' * 40} and pinned" in first.stdout
    asked = len(Hub.asked)
    again = json.loads(tercet(hub, "plan", "recipe.toml", "--json").stdout)
    assert len(Hub.asked) == asked
    COMMITS["models/org/model"], before = "d" * 40, COMMITS["models/org/model"]
    try:
        assert json.loads(tercet("", "plan", "recipe.toml", "--json").stdout) == again  # remembered, also offline
    finally:
        COMMITS["models/org/model"] = before
    pinned = tercet(hub, "pin", "recipe.toml")
    assert pinned.returncode == 0, pinned.stderr
    keys = {line["name"]: line["key"] for line in json.loads(tercet(hub, "plan", "recipe.toml", "--json").stdout)}
    assert keys == {line["name"]: line["key"] for line in again}


def test_pin_writes_the_commits_and_leaves_the_rest_of_the_text_alone(hub):
    said = tercet(hub, "pin", "recipe.toml").stdout
    assert f"base: org/model {'a' * 40}" in said
    wanted = (
        RECIPE.replace("the best one\n", f'the best one\nrevision = "{"a" * 40}"\n')
        .replace('"org/rows" }', f'"org/rows", revision = "{"b" * 40}" }}')
        .replace('revision = "" }', f'revision = "{"c" * 40}" }}')
    )
    assert Path("recipe.toml").read_text(encoding="utf-8") == wanted
    assert "nothing to pin" in tercet(hub, "pin", "recipe.toml").stdout


def test_what_the_hub_does_not_know_is_an_obstacle_of_its_stage(hub):
    Path("recipe.toml").write_text(RECIPE.replace("org/rows", "org/gone"), encoding="utf-8")
    done = tercet(hub, "plan", "recipe.toml")
    assert done.returncode == 2
    assert "[stage.data] revision: the hub did not say which commit org/gone stands at" in done.stderr
    assert tercet(hub, "pin", "recipe.toml").returncode == 1


def test_a_damaged_memory_is_asked_again(hub):
    tercet(hub, "plan", "recipe.toml")
    kept = Path("runs/.cache/revisions.json")
    kept.write_text(kept.read_text().replace("a" * 40, "e" * 40))
    assert "resolved to commit " + "a" * 40 in tercet(hub, "plan", "recipe.toml").stdout


def test_what_the_mirror_replaces_and_what_lies_here_is_not_asked_for(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    mirror = {"org/model": "x", "org/rows": "y", "org/more:test": "z"}
    assert list(revisions.unpinned(load(tmp_path / "recipe.toml"), mirror)) == []


def test_a_folder_beside_the_recipe_is_no_hub_id_wherever_the_command_is_typed(tmp_path, monkeypatch):
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    for name in ("org/model", "org/rows", "org/more"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert list(revisions.unpinned(load(tmp_path / "recipe.toml"), {})) == []


def test_a_mirror_of_a_name_that_only_begins_alike_stands_in_for_nothing(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    found = revisions.unpinned(load(tmp_path / "recipe.toml"), {"org/model-2": "x", "org/rows-large": "y"})
    assert [one.name for one in found] == ["org/model", "org/rows", "org/more"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('base = { model = "a/b" }', 'base = { model = "a/b", revision = "C" }'),
        ("[base]\n  model = 'a/b'\n", "[base]\n  model = 'a/b'\n  revision = \"C\"\n"),
        ('[base]\nrevision = ""\nmodel = "a/b"', '[base]\nrevision = "C"\nmodel = "a/b"'),
        ('[base]\nmodel = "a\\u002fb"', None),
        ("", None),
    ],
)
def test_a_commit_is_written_beside_its_id_in_every_form_of_a_table(text, wanted):
    found, absent = with_commits(text, {("base",): ("a/b", "C")})
    assert found == (text if wanted is None else wanted)
    assert absent == ([("base",)] if wanted is None else [])
