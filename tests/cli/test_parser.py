from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tercet
from tercet.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]


def wrong(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    return capsys.readouterr().err


def completed(line: str, folder: Path) -> set[str]:
    """What a shell would offer behind a line."""
    out = folder / "offered"
    settings = {
        "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "_ARGCOMPLETE_IFS": "\n",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "tercet"], cwd=folder, env=os.environ | settings, check=True)
    return {word.strip() for word in out.read_text().splitlines()}


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert capsys.readouterr().out == f"tercet {tercet.__version__}\n" == f"tercet {project['version']}\n"


@pytest.mark.parametrize(
    ("word", "meant"), [("runn", "run"), ("pln", "plan"), ("evaluate", "eval"), ("Export", "export")]
)
def test_a_misspelt_verb_gets_the_one_that_was_meant(capsys, word, meant):
    assert f"no {word!r}; did you mean {meant!r}?" in wrong(capsys, word)


def test_a_wrong_choice_gets_the_one_that_was_meant(capsys):
    assert "no 'bfloat'; did you mean 'bfloat16'?" in wrong(capsys, "chat", "x", "--dtype", "bfloat")


def test_the_help_has_every_verb_once_and_fits_80_columns(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    assert sorted(VERBS) == sorted(line.split()[0] for line in lines if line.startswith("  ") and line[2] != " ")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tercet pl", {"plan"}),
        ("tercet plan quick", {"quickstart"}),
        ("tercet plan mi", {"mine.toml"}),
        ("tercet run tiny --only rl", {"rlvr"}),
        ("tercet run tiny --only sft,rl", {"sft,rlvr"}),
        ("tercet check --store runs some", {"something", "something-0123456789ab"}),
    ],
)
def test_a_shell_completes_verbs_recipes_stages_and_artifacts(tmp_path, line, offered):
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "runs" / "something-0123456789ab").mkdir(parents=True)
    (tmp_path / "runs" / "something-0123456789ab" / "artifact.json").write_text("{}")
    assert completed(line, tmp_path) >= offered


def test_the_recipes_that_come_along_are_listed_and_found_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert all(file.stem in said for file in (ROOT / "recipes").glob("*.toml"))
    assert main(["show", "tulu3-8b"]) == 0
    assert 'name = "tulu3-8b"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "qickstart"), "no such recipe file (did you mean 'quickstart'?); check the path"),
        (("plan", "folder"), "folder: is a folder; expected a recipe file, such as a.toml"),
        (("plan", "tiny", "--set", "stage.sftt.batch=1"), "[stage.sftt] (did you mean 'sft'?) lacks the key 'kind'"),
        (("grade", "gsm8k@2", "absent.jsonl"), "absent.jsonl: no such file; expected one with a line of JSON"),
    ],
)
def test_what_cannot_be_found_is_said_with_what_was_meant(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.toml").write_text("")
    assert main(list(words)) == 2
    assert message in capsys.readouterr().err
