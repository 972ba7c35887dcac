"""`tercet skill`: its commands parse, its skeleton is a recipe, its names are hints, its mistakes give its errors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tercet.cli import main, skill
from tercet.cli.parser import entry, parser
from tercet.recipe import KINDS, load
from tercet.recipe.file import HINTS

MISTAKES = skill.table()["mistake"]
ROWS = {
    "chats.jsonl": [
        {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}!"}]}
        for i in range(12)
    ],
    "pairs.jsonl": [{"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "no"} for i in range(12)],
    "sums.jsonl": [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(12)],
    "odd.jsonl": [{"x": 1, "y": 2}],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the skeleton as mine.toml and the files that it names."""
    for name, rows in ROWS.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "mine.toml").write_text(skill.skeleton(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_a_skill_file_of_less_than_150_lines_with_every_kind_of_stage():
    text = skill.text()
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    about = yaml.safe_load(head)
    assert set(about) == {"name", "description"}
    assert about["name"] == "tercet"
    assert 100 < len(about["description"]) <= 1024
    assert len(text.splitlines()) < 150
    assert not [kind for kind in KINDS if kind != "base" and f"\n* `{kind}`" not in body]


def test_its_twelve_commands_parse_and_say_what_the_command_line_says(place):
    commands = skill.table()["commands"]
    assert len(commands) == 12
    for line in commands:
        verb, *words = shlex.split(line)[1:]
        parser(main.VERBS).parse_args([verb, *words])
        assert f"{line}    # {entry(verb)['help']}" in skill.text()


def test_its_skeleton_is_a_recipe_that_nothing_would_stop(place, mirror, capsys):
    assert set(load("mine.toml").stage) >= {"sft", "dpo", "grpo", "before", "after", "report"}
    assert main.main(["plan", "mine.toml", "--set", "base.model=tiny:", "--mirror", str(mirror)]) == 0
    assert "0 of 11 stages exist" in capsys.readouterr().out


def test_its_names_from_elsewhere_are_the_hints_of_recipes():
    assert not [name for name in skill.table()["names"] if f"* {name}: {HINTS[name]}\n" not in skill.text()]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[one["write"] for one in MISTAKES])
def test_a_mistake_gives_the_error_that_it_names(place, mirror, capsys, mistake):
    line = shlex.split(mistake["write"]) if mistake["write"].startswith("tercet ") else []
    setting = ["--set", "base.model=tiny:", "--set", mistake["write"], "--mirror", str(mirror)]
    assert main.main(line[1:] or ["plan", "mine.toml", *setting]) == 2
    said = capsys.readouterr().err
    assert mistake["says"] in said
    assert "would stop this run" not in said or said.count("\n  [") <= 2  # it alone, seen from two stages at most


def test_install_writes_it_into_the_folder_of_skills_and_again(tmp_path, capsys):
    for _ in range(2):
        assert main.main(["skill", "--install", str(tmp_path / "skills")]) == 0
        file = tmp_path / "skills" / "tercet" / "SKILL.md"
        assert capsys.readouterr().out == f"{file}\n"
        assert file.read_text(encoding="utf-8") == skill.text()
    assert main.main(["skill"]) == 0
    assert capsys.readouterr().out == skill.text().rstrip() + "\n"
