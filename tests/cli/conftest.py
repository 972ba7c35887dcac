"""A small finished run that cards, pushes and cleaning look at."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests import forked

from tercet.cli import main
from tercet.store import Store

RECIPE = """
name = "small"
[base]
model = "tiny:"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 16
[stage.mix]
kind = "mix"
sources = [{ path = "FILE" }]
[stage.items]
kind = "synth"
generator = "words@1"
rows = 2
split = "test"
[stage.bench]
kind = "benchmark"
tasks = ["words@1"]
items = ["items"]
[stage.eval]
kind = "eval"
model = "base"
benchmark = "bench"
max_new_tokens = 4
[stage.page]
kind = "report"
evals = ["eval"]
[placement]
threads = 1
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """The recipe's file, with the data that it names."""
    folder = tmp_path_factory.mktemp("finished")
    turns = [{"role": "user", "content": "Name a | b"}, {"role": "assistant", "content": "c"}]
    (folder / "own.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE.replace("FILE", str(folder / "own.jsonl")), encoding="utf-8")
    return folder / "recipe.toml"


@pytest.fixture(scope="session")
def made(recipe, stage_server):
    """The store of the run, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        forked.forks(stage_server, patch)
        assert main.main(["run", str(recipe), "--store", str(recipe.parent / "runs")]) == 0
    yield Store(recipe.parent / "runs")
    subprocess.run(["chmod", "-R", "u+w", str(recipe.parent)], check=True)
