"""A user's reward file from the recipe to the page: it pays, it grades, and an edit of it makes results stale."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tercet import pipeline, preflight
from tercet.launch.ending import StageError
from tercet.recipe import Recipe, RecipeError, load
from tercet.records import read_scores
from tercet.rows import Message, read_table
from tercet.store import Artifact, Store
from tercet.verify import verifier

pytestmark = pytest.mark.usefixtures("forked_stages")
REWARD = """
FACTOR = 1.0

def short(completion, answer):
    return FACTOR * (len(completion) % 2)

def whole(prompt, completion, answer, info):
    assert prompt.startswith("say"), prompt
    return float(info.get("even", len(completion) % 2))

def trl(prompts, completions, **columns):
    return [float(columns["answer"][0].isdigit())]

def compute_score(data_source, solution_str, ground_truth, extra_info):
    return {"score": 0.5, "pred": data_source}

def turns(completions: list[list[dict]], **columns):
    return [float(len(completions[0][0]["content"]) % 2)]
"""
FORMS = ("short", "whole", "trl", "compute_score", "turns")
RECIPE = """
name = "own"
base = {{ model = "tiny:seed=3" }}
placement = {{ threads = 1, micro_tokens = 256 }}

[stage.problems]
kind = "mix"
sources = [{{ path = "problems.jsonl", require_answer = false }}]

[stage.mine]
kind = "benchmark"
rows = "problems"
max_new_tokens = 8

[stage.rl]
kind = "grpo"
model = "base"
prompts = "problems"
extra = [{extra}]
rounds = 1
batch = 5
num_generations = 2
max_new_tokens = 8
max_length = 256

[stage.eval]
kind = "eval"
model = "rl"
benchmark = "mine"

[stage.report]
kind = "report"
evals = ["eval"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a recipe, its rows and its reward; each form grades a row and pays a part of every reward."""
    (tmp_path / "my_reward.py").write_text(REWARD, encoding="utf-8")
    rows = [
        {"id": f"r{i}", "messages": [{"role": "user", "content": f"say {form}"}], "source": "play"}
        | {"verifier": f"my_reward.py:{form}", "reference": str(i)}
        for i, form in enumerate(FORMS)
    ]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    extra = ", ".join(f'{{ verifier = "my_reward.py:{form}", weight = 0.1 }}' for form in FORMS)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(extra=extra), encoding="utf-8")
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def recipe_of(folder: Path, change: Callable[[str], str] = lambda text: text) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return load(path)


def stale(folder: Path) -> dict[str, str]:
    lines = pipeline.plan(recipe_of(folder), Store(folder / "runs"))
    return {line.name: line.why for line in lines if not line.exists}


def test_each_form_pays_and_grades_and_an_edit_makes_all_of_it_stale(folder: Path) -> None:
    made = pipeline.run(recipe_of(folder), Store(folder / "runs"))
    rollouts = read_table(made["rl"].payload / "tercet" / "rollouts.parquet")
    assert len(rollouts) == 10
    assert {row["outcome"] for row in rollouts} == {"graded"}
    for row in rollouts:
        parts = {name.partition(":")[2]: score for name, score in json.loads(row["parts"]).items()}
        odd = float(len(row["text"]) % 2)
        expected = {"short": odd, "whole": odd, "trl": 1.0, "compute_score": 0.5, "turns": odd}
        assert {form: parts[form] for form in FORMS} == expected, "every form was called as it wants to be"
    scores = read_scores(made["eval"].payload)
    assert set(scores) == {f"mine:{form}@1" for form in FORMS}
    assert all(score.outcomes["error"] == 0 for score in scores.values())
    assert scores["mine:compute_score@1"].score == 0.5
    assert "mine:trl@1" in (made["report"].payload / "index.html").read_text(encoding="utf-8")
    for name in ("rl", "eval"):
        code = made[name].record["spec"]["code"]
        assert set(code) == {f"my_reward.py:{form}" for form in FORMS}
    assert stale(folder) == {}
    (folder / "my_reward.py").write_text(REWARD.replace("FACTOR = 1.0", "FACTOR = 0.5"), encoding="utf-8")
    why = stale(folder)
    assert set(why) == {"rl", "eval", "report"}, "rows and items are as before, what they earn is not"
    assert "my_reward.py:short changed" in why["rl"]


def test_a_verifier_that_only_rows_name_is_part_of_the_key_of_what_grades_by_it(folder: Path) -> None:
    store, recipe = Store(folder / "runs"), recipe_of(folder)
    before = pipeline.graph(recipe, store)
    assert set(before["eval"].spec["code"]) == {f"my_reward.py:{form}" for form in FORMS}
    assert "code" not in before["problems"].spec
    (folder / "my_reward.py").write_text(REWARD + "\n", encoding="utf-8")
    after = pipeline.graph(recipe, store)
    assert {name for name in before if before[name].key != after[name].key} == {"rl", "eval", "report"}


def test_a_recipe_without_code_of_a_user_has_the_keys_it_had(folder: Path) -> None:
    (folder / "problems.jsonl").write_text('{"prompt": "say", "verifier": "gsm8k@1"}\n', encoding="utf-8")
    recipe = recipe_of(folder, lambda text: "\n".join(line for line in text.splitlines() if "extra" not in line))
    assert all("code" not in node.spec for node in pipeline.graph(recipe, Store(folder / "runs")).values())


CLEANED = """
name = "cleaned"
base = { model = "tiny:" }

[stage.mine]
kind = "benchmark"
rows = "tests.jsonl"

[stage.train]
kind = "mix"
sources = [{ path = "tests.jsonl", require_answer = false }, { path = "more.jsonl", require_answer = false }]
against = ["mine"]
"""


def test_prompts_of_rl_that_are_the_benchmark_s_are_removed_from_a_mix_against_it(folder: Path) -> None:
    def row(name: str, place: str) -> str:
        text = f"How many days does a ship need from {place} if it sails three hundred miles a day?"
        messages = [{"role": "user", "content": text}]
        return json.dumps({"id": name, "messages": messages, "verifier": "my_reward.py:short", "reference": "4"}) + "\n"

    (folder / "tests.jsonl").write_text(row("a", "Lisbon to Genoa") + row("b", "Oslo to Hull"), encoding="utf-8")
    (folder / "more.jsonl").write_text(
        row("c", "x").replace("How many days does a ship", "Which boat"), encoding="utf-8"
    )
    (folder / "recipe.toml").write_text(CLEANED, encoding="utf-8")
    made = pipeline.run(recipe_of(folder), Store(folder / "runs"), only=["train"])
    removed = read_table(made["train"].payload / "removed.parquet")
    assert {(row["row"], row["rule"], row["task"]) for row in removed} == {
        ("a", "contaminated", "mine@1"),
        ("b", "contaminated", "mine@1"),
    }
    summary = json.loads((made["train"].payload / "summary.json").read_text(encoding="utf-8"))
    assert "verifiers" not in summary, "the key of what grades by it holds the digest"
    card = json.loads((made["mine"].payload / "tasks.json").read_text(encoding="utf-8"))[0]
    assert (card["data"]["path"], card["data"]["read"]) == ("tests.jsonl", 2)


def test_columns_that_a_source_names_reach_a_benchmark_s_verifier(folder: Path) -> None:
    lines = [{"text": f"say {i}", "truth": str(i), "even": i % 2} for i in range(2)]
    (folder / "raw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = 'path = "raw.jsonl", verifier = "my_reward.py:whole", prompt = "text", answer = "truth", info = ["even"]'
    stage = f'[stage.mine]\nkind = "benchmark"\nsource = {{ {source} }}\n'
    (folder / "recipe.toml").write_text(f'name = "t"\nbase = {{ model = "tiny:" }}\n{stage}', encoding="utf-8")
    made = pipeline.run(recipe_of(folder), Store(folder / "runs"))["mine"]
    items = read_table(made.payload / "benchmark.parquet")
    own = verifier(f"{folder}/my_reward.py:whole")
    graded = [own("x", item["reference"], prompt=(Message("user", item["asked"][0]),)) for item in items]
    assert [grade.score for grade in graded] == [0.0, 1.0], graded


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "my_reward.py:trl",
            "gone.py:trl",
            "[stage.rl] extra.2.verifier: the verifier 'gone.py:trl': there is no file",
        ),
        ("my_reward.py:trl", "my_reward.py:other", "my_reward.py has no 'other'; it has FACTOR, short, whole"),
        ("my_reward.py:trl", "nope@1", "[stage.rl] extra.2.verifier: unknown verifier 'nope@1'"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_found_by_the_plan(folder: Path, old: str, new: str, message: str) -> None:
    recipe = recipe_of(folder, lambda text: text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        preflight.refuse(pipeline.obstacles(recipe, pipeline.plan(recipe, Store(folder / "runs")), {}))
    assert message in str(caught.value)


def test_an_edit_between_plan_and_stage_stops_the_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage begins hours after its key was made; an edit meanwhile must not end under the old key."""
    made = pipeline.make_one

    def edited(job, *args) -> Artifact:
        if job.name != "rl":
            return made(job, *args)
        (folder / "my_reward.py").write_text(REWARD + "\n", encoding="utf-8")
        return made(job, *args)

    monkeypatch.setattr(pipeline, "make_one", edited)
    with pytest.raises(StageError, match="changed since the run began; run the same command again"):
        pipeline.run(recipe_of(folder), Store(folder / "runs"), only=["rl"])
