from __future__ import annotations

import json
from pathlib import Path

import pytest

from tercet.cli.main import main
from tercet.recipe import load
from tercet.store import Store

pytestmark = pytest.mark.usefixtures("forked_stages")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with chats, preferences, problems and a verifier, and no recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tercet"])
    chats = [[{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}!"}] for i in range(12)]
    files = {
        "chats.jsonl": [{"messages": turns} for turns in chats],
        "pairs.jsonl": [{"prompt": f"Say {i}.", "chosen": f"{i}", "rejected": "no"} for i in range(12)],
        "sums.jsonl": [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(12)],
        "odd.jsonl": [{"x": 1, "y": 2}],
        "own.jsonl": [{"q": f"{i} + 1?", "a": f"{i + 1}"} for i in range(12)],
    }
    for name, rows in files.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.py").write_text("def score(completion, answer):\n    return float(len(completion) % 2)\n")
    return tmp_path


LINES = {
    "sft": ["sft", "tiny:", "chats.jsonl"],
    "dpo": ["dpo", "tiny:", "pairs.jsonl"],
    "reward": ["reward", "tiny:", "pairs.jsonl"],
    "grpo": ["grpo", "tiny:", "sums.jsonl", "--verifier", "gsm8k@2"],
    "own grpo": ["grpo", "tiny:", "own.jsonl", "--verifier", "mine.py:score", "--prompt", "q", "--answer", "a"],
}


@pytest.mark.parametrize("words", LINES.values(), ids=LINES)
@pytest.mark.parametrize("tasks", [[], ["--eval", "quick"]], ids=["alone", "evaluated"])
def test_a_line_writes_a_recipe_that_nothing_would_stop(place, capsys, words, tasks):
    assert main([*words, *tasks, "--dry-run"]) == 0
    said = capsys.readouterr().out
    (file,) = (place / "runs").glob("*.toml")
    assert file.read_text(encoding="utf-8") in said
    assert main(["plan", str(file)]) == 0
    stages = load(file).stage
    assert ("report" in stages) == (bool(tasks) and words[0] != "reward")  # a reward model answers nothing
    assert all("benchmark" in spec.against for spec in stages.values() if spec.kind in ("mix", "pair_mix") and tasks)


def test_lengths_are_what_the_model_reads(place):
    assert main([*LINES["sft"], "--dry-run"]) == main([*LINES["grpo"], "--dry-run"]) == 0
    assert load("runs/sft-chats.toml").stage["sft"].max_length == 2048
    grpo = load("runs/grpo-sums.toml").stage["grpo"]
    assert grpo.max_length + grpo.max_new_tokens == 2048


@pytest.mark.parametrize("words", LINES.values(), ids=LINES)
def test_a_line_trains_and_its_recipe_finds_all_made(place, capsys, words):
    small = ["max_length=128"] + ["rounds=1", "batch=2", "num_generations=2", "max_new_tokens=4"] * (words[0] == "grpo")
    settings = [word for one in small for word in ("--set", f"stage.{words[0]}.{one}")]
    assert main([*words, *settings]) == 0
    assert f"recipe: {next((place / 'runs').glob('*.toml'))}" in capsys.readouterr().out
    assert Store("runs").open(words[0]).metrics["steps"] >= 1
    assert main(["run", str(next((place / "runs").glob("*.toml"))), *settings]) == 0
    assert "nothing to do" in capsys.readouterr().out


NEW = [
    (["--model", "tiny:"], {"chats", "sft", "problems", "grpo"}),
    (["--data", "chats.jsonl"], {"chats", "sft"}),
    (["--preferences", "pairs.jsonl", "--model", "tiny:"], {"preferences", "dpo"}),
    (["--data", "chats.jsonl", "--preferences", "pairs.jsonl", "--problems", "sums.jsonl", "--model", "tiny:"],
     {"chats", "sft", "preferences", "dpo", "problems", "grpo"}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "stages"), NEW, ids=["nothing", "chats", "pairs", "all"])
def test_new_writes_a_commented_recipe_of_what_is_there(place, capsys, words, stages):
    assert main(["new", "mine", *words]) == 0
    assert "next: tercet plan mine.toml" in capsys.readouterr().out
    assert stages | {"benchmark", "before", "after", "report"} <= set(load("mine.toml").stage)
    lines = Path("mine.toml").read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        assert not line.startswith("[") or lines[i - 1].startswith("#") or "items-" in line or "after" in line
    assert "tiny:" not in words or main(["plan", "mine.toml"]) == 0


def test_new_overwrites_nothing(place, capsys):
    Path("mine.toml").write_text("mine")
    assert main(["new", "mine"]) == 2
    assert "mine.toml: exists" in capsys.readouterr().err
    assert Path("mine.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sft", "tiny:", "absent.jsonl"], "absent.jsonl"),
        (["sft", "nowhere", "chats.jsonl"], "nowhere: no such folder or artifact"),
        (["sft", "tiny:", "odd.jsonl"], "odd.jsonl"),
        (["grpo", "tiny:", "sums.jsonl", "--verifier", "gsm9k@1"], "gsm9k"),
        (["sft", "tiny:", "chats.jsonl", "--eval", "quik"], "quik"),
    ],
)
def test_what_a_line_cannot_do_is_said_before_anything_is_made(place, capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list((place / "runs").glob("*-*-*/artifact.json"))
