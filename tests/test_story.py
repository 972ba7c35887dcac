"""The one story: `recipes/tiny.toml` from the base model to the page through the command line, twice from scratch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tercet.recipe import load
from tercet.rows import read_table
from tercet.store import Store
from tercet.track import read_metrics

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "tiny.toml"


def tercet(*argv: str, store: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tercet", argv[0], *argv[1:], "--store", str(store)]
    environment = os.environ | {"COLUMNS": "200", "TERCET_MIRROR": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def answer(*argv: str, store: Path):
    """What a verb prints with `--json`."""
    done = tercet(*argv, "--json", store=store)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def runs(folder: Path, *options: str) -> tuple[Store, str]:
    done = tercet("run", str(RECIPE), *options, store=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return Store(folder), done.stdout


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory):
    """The store of a finished run, and what the run said. Workers of one test run share it: the store has locks."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "story" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    yield runs(folder)
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


def test_every_stage_becomes_an_artifact_and_the_run_ends_with_scores_and_page(story):
    store, said = story
    recipe = load(RECIPE)
    assert {artifact.name: artifact.kind for artifact in store} == {name: recipe.kind(name) for name in recipe.order()}
    page = store.open("report").payload / "index.html"
    assert f"report: {page}" in said.replace("\n", "")
    assert "words@1" in said
    assert not list(store.root.glob(".draft-*"))


def test_a_second_run_does_nothing_and_says_so_at_once(story):
    store, _ = story
    began = time.monotonic()
    done = tercet("run", str(RECIPE), store=store.root)
    assert done.returncode == 0, done.stderr
    assert f"nothing to do: all {len(list(store))} stages exist" in done.stdout
    assert time.monotonic() - began < 5


def test_the_three_contaminated_rows_are_removed(story):
    store, _ = story
    removed = read_table(store.open("sft-data").payload / "removed.parquet")
    contaminated = [row for row in removed if row["source"] == "contaminated"]
    assert len(contaminated) == 3
    assert all("contamin" in row["rule"] for row in contaminated)
    kept = read_table(store.open("sft-data").payload / "rows.parquet")
    assert not [row for row in kept if row["source"] == "contaminated"]
    summary = json.loads((store.open("sft-data").payload / "summary.json").read_text(encoding="utf-8"))
    assert "contaminated" in json.dumps(summary)


def test_every_training_stage_left_a_model_its_table_and_its_curve(story):
    store, _ = story
    for name in ("sft", "dpo", "reward", "rlvr", "ppo"):
        artifact = store.open(name)
        for file in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "tercet/truncation.json"):
            assert (artifact.payload / file).is_file(), f"{name} has no {file}"
        curve = read_metrics(artifact.path / "metrics.jsonl")
        assert len(curve) == artifact.metrics["steps"]
        wanted = {"step", "lr", "tokens", "useful_tokens", "tokens_per_second", "memory_gb"}
        assert all(wanted <= line.keys() for line in curve)
    losses = [line["loss"] for line in read_metrics(store.open("sft").path / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0], "SFT learns something even here"
    rollouts = read_table(store.open("rlvr").payload / "tercet" / "rollouts.parquet")
    assert len(rollouts) == 4 * 8 * 4


def test_dpo_starts_at_log_2(story):
    store, _ = story
    first = read_metrics(store.open("dpo").path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(0.6931, abs=0.05)


def test_plan_says_that_everything_exists(story):
    store, _ = story
    lines = answer("plan", str(RECIPE), store=store.root)
    assert len(lines) == len(list(store))
    assert all(line["exists"] and Path(line["path"]).is_dir() for line in lines)
    stale = answer("plan", str(RECIPE), "--set", "stage.dpo.beta=2.0", store=store.root)
    missing = {line["name"]: line["why"] for line in stale if not line["exists"]}
    assert missing["dpo"] == "beta 5.0 -> 2.0"
    assert missing["rlvr"] == "input dpo changed"
    assert set(missing) == {"dpo", "rlvr", "ppo", "eval-dpo", "eval-rlvr", "eval-ppo", "report"}


def test_lineage_goes_back_to_the_base_model(story):
    store, _ = story
    line = [record["name"] for record in answer("lineage", "rlvr", store=store.root)]
    assert line[-1] == "rlvr"
    assert {"base", "words", "contaminated", "benchmark", "sft-data", "sft", "preference-data", "dpo"} < set(line)
    assert line.index("base") < line.index("sft") < line.index("preference-data") < line.index("dpo")


def test_check_finds_everything_intact(story):
    store, _ = story
    assert answer("check", store=store.root) == {"artifacts": len(list(store)), "faults": {}}


def test_compare_pairs_two_benchmarks_item_by_item(story):
    store, _ = story
    found = answer("compare", "eval-base", "eval-sft", store=store.root)
    lines = {line["task"]: line for line in found["tasks"]}
    assert {"words@1", "constraints@1", "talk@1", "facts@1"} <= set(lines)
    for line in lines.values():
        assert line["low"] <= line["difference"] <= line["high"]
        assert line["difference"] == pytest.approx(line["b"] - line["a"], abs=1e-9)
    assert lines["talk@1"]["b"] < lines["talk@1"]["a"], "fewer bits per byte of ordinary talk after training on some"


def test_an_exported_model_is_a_plain_folder_that_transformers_reads(story, tmp_path):
    store, _ = story
    said = answer("export", "rlvr", str(tmp_path / "out"), store=store.root)
    assert said["folder"] == str(tmp_path / "out")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] == ids["input_ids"].shape[1] + 3
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "tiny:seed=7" in card
    assert "eval-rlvr" in card


def test_the_page_needs_no_network_and_names_every_benchmark(story):
    store, _ = story
    page = (store.open("report").payload / "index.html").read_text(encoding="utf-8")
    for name in ("eval-base", "eval-sft", "eval-dpo", "eval-rlvr"):
        assert name in page
    for text in ('src="http', "src='http", 'href="https://cdn', "@import"):
        assert text not in page


def test_the_same_recipe_from_scratch_gives_the_same_bytes(story, tmp_path):
    """Everything but the page, which tells of times, PPO, and three benchmarks more of the kind compared here."""
    store, _ = story
    again, _ = runs(tmp_path / "runs", "--only", "reward,eval-sft,eval-rlvr")
    mine = {artifact.path.name: artifact.record["digest"] for artifact in store}
    theirs = {artifact.path.name: artifact.record["digest"] for artifact in again}
    assert len(theirs) == len(mine) - 5
    assert theirs.items() <= mine.items()
    subprocess.run(["chmod", "-R", "u+w", str(again.root)], check=True)
