"""`tercet doctor` says what holds and what cannot work, with exit code 3 where something cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tercet.cli.main import main

RECIPE = """
name = "small"
[base]
model = "tiny:seed=3"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 12
[stage.sft]
kind = "sft"
model = "base"
rows = "words"
max_length = 512
batch = 4
[stage.rl]
kind = "grpo"
model = "sft"
prompts = "words"
rounds = 1
batch = 2
num_generations = 2
max_length = 512
max_new_tokens = 16
[placement]
threads = 1
micro_tokens = 512
"""
FAR = "0123456789" * 4


@pytest.fixture
def asked(tmp_path, monkeypatch, capsys):
    """Run the verb on the recipe in a folder of its own; returns exit code and checks, by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TERCET_MIRROR", raising=False)

    def asked(text: str = RECIPE, *line: str) -> tuple[int, dict[str, list[tuple[str, str]]], dict[str, Any]]:
        Path("recipe.toml").write_text(text, encoding="utf-8")
        code = main(["doctor", "recipe.toml", "--json", *line])
        said = json.loads(capsys.readouterr().out)
        found: dict[str, list[tuple[str, str]]] = {}
        for one in said["checks"]:
            found.setdefault(one["check"], []).append((one["state"], f"{one['stage']}: {one['what']}"))
        return code, found, said

    return asked


@pytest.mark.slow
def test_a_recipe_that_runs_has_every_check_and_exit_code_0(asked):
    code, found, said = asked()
    assert code == 0, said["checks"]
    wanted = ["recipe", "versions", "ranks", "disk", "endpoints", "verifiers", "end tokens"]
    assert list(found) == [*wanted, "mask", "lengths", "speed", "generator", "longest batch"]
    states = {state for some in found.values() for state, _ in some}
    assert states <= {"ok", "warning", "not tried"}
    assert [one["stage"] for one in said["lengths"]] == ["sft", "rl"]
    assert {one["stage"] for one in said["rows"]} == {"sft", "rl"}
    assert not Path("runs").exists()


def eval_only(text: str) -> str:
    """The recipe without its training, so that no model is opened."""
    return text[: text.index("[stage.sft]")] + text[text.index("[placement]") :]


@pytest.mark.parametrize(
    ("more", "check", "says"),
    [
        (
            '[stage.far]\nkind = "mix"\nsources = [{ path = "own.jsonl", adapter = "nope" }]',
            "recipe",
            "unknown adapter",
        ),
        ('[stage.s]\nkind = "model"\nmodel = "http://127.0.0.1:1/v1#m"', "endpoints", "does not answer"),
        (
            '[stage.p]\nkind = "mix"\nsources = [{ path = "bad.jsonl" }]\n[stage.pairs]\nkind = "on_policy_pairs"\n'
            'model = "base"\nprompts = "p"',
            "verifiers",
            "gsm8k@1 grades 0 of 1 own answers as right: row 'a', '7 or 8'",
        ),
    ],
)
def test_each_kind_of_fault_has_its_line_and_exit_code_3(asked, more, check, says):
    Path("own.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "none"}]
    bad = {"id": "a", "messages": turns, "verifier": "gsm8k@1", "reference": "7 or 8"}
    Path("bad.jsonl").write_text(json.dumps(bad) + "\n")
    code, found, _ = asked(eval_only(RECIPE) + more)
    assert code == 3
    assert [what for state, what in found[check] if state == "cannot work" and says in what]


def test_a_model_that_is_not_here_is_said_and_its_steps_are_not_tried(asked):
    text = RECIPE.replace('"tiny:seed=3"', f'"owner/far"\nrevision = "{FAR}"')
    code, found, _ = asked(text, "--offline")
    assert code == 3  # --offline forbids to fetch it
    assert [state for state, what in found["model"] if "owner/far is not on this machine" in what] == ["not tried"]
    assert found["endpoints"] == [("not tried", ": --offline: owner/far")]
    assert "longest batch" not in found
