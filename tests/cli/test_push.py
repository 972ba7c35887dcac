"""The verb `push` against a hub on this machine, through huggingface_hub."""

from __future__ import annotations

import json
import time

import huggingface_hub
import pytest
from huggingface_hub import DatasetCard, ModelCard

import tercet
from fake_hub import TOKEN, in_the_hubs_place
from tercet.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own upload


@pytest.fixture
def hub(monkeypatch):
    with in_the_hubs_place(monkeypatch) as hub:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield hub


@pytest.fixture
def push(made, capsys):
    """Run the verb: exit code, standard output, standard error; none of which may hold a secret."""

    def push(artifact: str, name: str, *options: str):
        code = main.main(["push", artifact, name, "--store", str(made.root), *options])
        found = capsys.readouterr()
        assert TOKEN not in found.out + found.err
        assert "secret-of-this-address" not in found.out + found.err
        assert not list(made.root.glob(".push-*"))
        return code, found.out, found.err

    return push


def test_a_model_arrives_whole_with_a_card_that_the_hub_takes(hub, push, made):
    code, out, err = push("base", "me/mine", "--private", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["url"] == f"{hub.url}/me/mine"
    assert hub.repositories["models/me/mine"]["visibility"] == "private"
    files = hub.files["models/me/mine"]
    assert sorted(files) == said["files"]
    assert files["model.safetensors"] == (made.open("base").payload / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    card.validate()
    assert "vllm serve me/mine" in card.text


def test_a_data_set_arrives_as_parquet_with_its_sources(hub, push, made):
    code, _, err = push("mix", "me/rows")
    assert code == 0, err
    files = hub.files["datasets/me/rows"]
    assert files["rows.parquet"] == (made.open("mix").payload / "rows.parquet").read_bytes()
    DatasetCard(files["README.md"].decode()).validate()


def test_a_report_arrives_as_a_static_space(hub, push):
    code, _, err = push("page", "me/report")
    assert code == 0, err
    assert hub.repositories["spaces/me/report"]["sdk"] == "static"
    assert sorted(hub.files["spaces/me/report"]) == ["README.md", "index.html"]


def test_a_space_of_a_run_names_the_models_that_were_pushed_at_their_commits(hub, push, made, recipe, tmp_path):
    assert push("base", "me/mine")[0] == 0
    wheel = tmp_path / "tercet-0.1-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    for number, word in enumerate((str(made.root), str(recipe), "page", "base")):
        code, _, err = push(word, f"me/demo{number}", "--space", "--wheel", str(wheel))
        assert code == 0, err
        files = hub.files[f"spaces/me/demo{number}"]
        lines = files["play.args"].decode().splitlines()
        assert lines[:2] == [f"me/mine@{'1' * 40}", "--name=base"]
        assert lines[2].startswith("--title=")
        assert files["requirements.txt"] == b"./tercet-0.1-py3-none-any.whl[play]\n"
        assert files[wheel.name] == b"a wheel"
        assert hub.repositories[f"spaces/me/demo{number}"]["sdk"] == "docker"
        assert "models:\n- me/mine\n" in files["README.md"].decode()
    (made.root / "pushed.jsonl").unlink()


def test_a_dry_run_of_a_space_asks_nobody_and_names_a_base_that_anybody_can_make(hub, push, made, tmp_path):
    code, _, err = push(str(made.root), "me/demo", "--space", "--dry-run", str(tmp_path / "out"))
    assert (code, hub.requests) == (0, []), err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "Dockerfile", "README.md", "play.args", "requirements.txt",
    ]  # fmt: skip
    assert (tmp_path / "out" / "play.args").read_text().splitlines()[0] == "tiny:"
    assert (tmp_path / "out" / "requirements.txt").read_text() == f"tercet[play]=={tercet.__version__}\n"


def test_a_hub_that_is_busy_is_asked_again(hub, push):
    hub.failing = {"/api/repos/create": 1, "/lfs/": 2, "/api/models/me/mine/commit": 1}
    assert push("base", "me/mine")[0] == 0
    assert "model.safetensors" in hub.files["models/me/mine"]


def test_a_second_push_uploads_no_large_file_again(hub, push):
    hub.failing = {"/api/models/me/mine/commit": 99}  # every try of this command
    code, _, err = push("base", "me/mine")
    assert code == 1
    assert "the same command goes on where this one ended" in err
    hub.failing, before = {}, len(hub.requests)
    assert push("base", "me/mine")[0] == 0
    assert not [path for _, path in hub.requests[before:] if path.startswith("/lfs/")]


def test_a_dry_run_writes_the_folder_and_asks_nobody(hub, push, tmp_path):
    code, out, _ = push("mix", "me/rows", "--dry-run", str(tmp_path / "out"))
    assert code == 0
    assert "nothing was uploaded" in out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["README.md", "rows.parquet"]
    assert hub.requests == []


@pytest.mark.parametrize(
    ("artifact", "name", "options", "code", "told"),
    [
        ("eval", "me/mine", (), 2, "models, data and reports are pushed"),
        ("base", "mine", (), 2, "expected OWNER/NAME"),
        ("base", "me/mi ne", (), 2, "alphanumeric"),
        ("mix", "me/rows", ("--gguf", "f16"), 2, "is no model"),
        ("mix", "other/rows", (), 1, "the token may not write there"),
        ("mix", "me/demo", ("--space",), 2, "takes a run, or a model of one"),
        ("base", "me/demo", ("--space", "--gguf", "f16"), 2, "of the push of a model"),
        ("base", "me/demo", ("--space", "--wheel", "absent.whl"), 2, "expected a wheel of Tercet"),
        ("base", "me/mine", ("--wheel", "tercet-1.whl"), 2, "is for --space alone"),
    ],
)
def test_what_cannot_be_pushed_is_said(hub, push, artifact, name, options, code, told):
    found, _, err = push(artifact, name, *options)
    assert found == code
    assert told in err


@pytest.mark.parametrize(("token", "told"), [("", "run `hf auth login`"), ("hf_wrong", "the token is not known")])
def test_who_is_not_known_hears_it_before_anything_is_written(hub, push, monkeypatch, token, told):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setenv("HF_TOKEN", token)
    code, _, err = push("mix", "me/rows")
    assert code == 1
    assert told in err
    assert not hub.repositories
