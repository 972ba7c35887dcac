"""The recipe of a user's own files in docs/start.md, run as it stands: from three files and a function to the page."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tercet import pipeline
from tercet.recipe import load
from tercet.records import read_scores
from tercet.rows import read_table
from tercet.store import Store

pytestmark = pytest.mark.usefixtures("forked_stages")
PAGE = Path(__file__).parents[1] / "docs" / "start.md"
SMALL = (  # a model and sizes for a test; all else is as a reader finds it
    'base={ model = "tiny:seed=3" }',
    "placement={ threads = 1 }",
    "stage.mine.max_new_tokens=8",
    "stage.sft.max_length=256",
    "stage.dpo.max_length=256",
    "stage.rl.rounds=1",
    "stage.rl.batch=4",
    "stage.rl.num_generations=2",
    "stage.rl.max_new_tokens=8",
    "stage.rl.max_length=256",
)
THINGS = (
    "apples",
    "boats",
    "candles",
    "doors",
    "eggs",
    "ferns",
    "gates",
    "hats",
    "inks",
    "jars",
    "kegs",
    "lamps",
    "maps",
    "nuts",
    "oars",
)


def block(language: str) -> str:
    """The block of this language in the section of one's own files."""
    section = (
        PAGE.read_text(encoding="utf-8").partition("## Your own files, benchmark and verifier")[2].partition("\n## ")[0]
    )
    found = re.search(rf"```{language}\n# ([\w.]+)\n(.*?)```", section, re.S)
    assert found
    return found[2]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "yours.toml").write_text(block("toml"), encoding="utf-8")
    (tmp_path / "my_reward.py").write_text(block("python"), encoding="utf-8")
    drawn = random.Random(5)
    asked = [f"How many {' and '.join(drawn.sample(THINGS, 6))} has number {i}?" for i in range(30)]
    lines(tmp_path / "problems.jsonl", [{"question": text, "answer": str(i)} for i, text in enumerate(asked)])
    lines(
        tmp_path / "chats.jsonl",
        [
            {
                "messages": [
                    {"role": "user", "content": f"Tell me of {thing}."},
                    {"role": "assistant", "content": f"I like {thing}."},
                ]
            }
            for thing in THINGS
        ],
    )
    lines(
        tmp_path / "preferences.jsonl",
        [{"prompt": f"Do you like {thing}?", "chosen": "Yes, I do.", "rejected": "no"} for thing in THINGS],
    )
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def test_the_recipe_is_no_longer_than_promised() -> None:
    assert len(block("toml").strip().splitlines()) <= 25


def test_three_files_and_a_function_become_a_model_a_benchmark_and_a_page(folder: Path) -> None:
    recipe, store = load(folder / "yours.toml", SMALL), Store(folder / "runs")
    made = pipeline.run(recipe, store)
    assert set(made) == {"base", *recipe.stage}
    assert made["mine"].metrics["items"] == 20
    prompts = read_table(made["prompts"].payload / "rows.parquet")
    benchmark = {row["asked"][0] for row in read_table(made["mine"].payload / "benchmark.parquet")}
    assert 0 < len(prompts) <= 10
    assert not benchmark & {row["messages"][0]["content"] for row in prompts}
    assert {row["verifier"] for row in prompts} == {"my_reward.py:score"}
    after = read_scores(made["after"].payload)["mine@1"]
    assert (after.n, after.card.verifier, after.outcomes["error"]) == (20, "my_reward.py:score", 0)
    assert "mine@1" in (made["report"].payload / "index.html").read_text(encoding="utf-8")
    (folder / "my_reward.py").write_text(block("python") + "\n", encoding="utf-8")
    why = {line.name: line.why for line in pipeline.plan(recipe, store) if not line.exists}
    assert set(why) == {"rl", "before", "after", "report"}, (
        "an edit of the reward trains nothing again that it did not pay"
    )
    assert "my_reward.py:score changed" in why["rl"]
