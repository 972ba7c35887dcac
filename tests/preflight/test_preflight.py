"""What would stop a later stage is said before the first one runs, all of it, and nothing that would not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tercet import pipeline, preflight
from tercet.evals.task import Item
from tercet.preflight import facts
from tercet.recipe import Recipe, RecipeError, load
from tercet.rows import Message, write_table
from tercet.store import Store

HELLO = (Message("user", "Hello"),)
TINY = {"model": "tiny:"}
URL = {"kind": "model", "model": "http://127.0.0.1:1/v1#m"}
WORDS = {"kind": "synth", "generator": "words@1", "rows": 30}
ITEMS = WORDS | {"split": "test"}
SFT = {"kind": "sft", "model": "base", "rows": "words", "max_length": 512}
GRPO = {"kind": "grpo", "model": "base", "prompts": "words", "rounds": 1, "max_length": 256, "max_new_tokens": 64}


def found(stage: dict[str, Any], tmp_path: Path, *, offline: bool = False, **more: Any) -> list[tuple[str, str, str]]:
    """The obstacles of a recipe in memory, whose files are in `tmp_path`."""
    recipe = Recipe.model_validate({"name": "r", "base": TINY, "stage": stage} | more)
    recipe._folder = tmp_path
    lines = pipeline.plan(recipe, Store(tmp_path / "runs"))
    return [tuple(one) for one in pipeline.obstacles(recipe, lines, {}, offline=offline)]


def one(stage: dict[str, Any], tmp_path: Path, **more: Any) -> tuple[str, str, str]:
    (obstacle,) = found(stage, tmp_path, **more)
    return obstacle


def written(tmp_path: Path, name: str, *rows: dict[str, Any]) -> str:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def chat(question: str = "2 + 2?", answer: str = "4", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def mix(path: str, kind: str = "mix", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "sources": [{"path": path, **more}]}


def test_a_recipe_that_would_run_through_has_no_obstacles(tmp_path):
    own = written(tmp_path, "own.jsonl", chat(verifier="gsm8k@1", reference="4"))
    stage = {
        "words": WORDS, "items": ITEMS, "own": mix(own),
        "benchmark": {"kind": "benchmark", "tasks": ["words@1"], "items": ["items"]},
        "sft": SFT, "rl": GRPO | {"prompts": "own"},
        "eval": {"kind": "eval", "model": "rl", "benchmark": "benchmark", "require": ["words >= 0.1"]},
    }  # fmt: skip
    assert found(stage, tmp_path, offline=True) == []


@pytest.mark.parametrize(
    ("stage", "key", "says"),
    [
        (SFT | {"max_length": 4096}, "max_length", "4,096 tokens, and the model 'base' reads 2,048; lower it by 2,048"),
        (GRPO | {"max_new_tokens": 2000}, "max_length", "make 2,256 tokens"),
        (SFT | {"model": "server"}, "model", "'server' is behind a URL and has no weights here"),
        (GRPO | {"extra": [{"verifier": "quality@1"}]}, "extra.0.verifier", "asks a model, and the stage names none"),
        (GRPO | {"prompts": "talk"}, "prompts", "generator talk@1): row '1' names no verifier"),
        (SFT | {"optimizer": "adamw8bit"}, "optimizer", "pip install 'tercet[bits]'"),
    ],
)
def test_what_a_training_stage_would_refuse_is_known_before(tmp_path, monkeypatch, stage, key, says):
    monkeypatch.setattr("tercet.preflight.machine.find_spec", lambda name: None)
    others = {"words": WORDS, "talk": WORDS | {"generator": "talk@1"}, "server": URL}
    name, where, what = one(others | {"it": stage}, tmp_path)
    assert (name, where) == ("it", key)
    assert says in what


@pytest.mark.parametrize(
    ("stage", "key", "says"),
    [
        (mix("owner/far", adapter="sharegtp"), "sources.0", "unknown adapter 'sharegtp'"),
        (mix("owner/far", "pair_mix", adapter="gsm8k"), "sources.0", "'gsm8k' gives no pairs"),
        (mix("owner/far", verifier="gsm9k@1"), "sources.0.verifier", "unknown verifier 'gsm9k@1'"),
        (GRPO | {"extra": [{"verifier": "nope@1"}]}, "extra.0.verifier", "unknown verifier 'nope@1'"),
    ],
)
def test_names_of_adapters_and_verifiers_are_known_before_a_hub_is_asked(tmp_path, stage, key, says):
    revision = {"revision": "0" * 40}
    stage = stage | {"sources": [source | revision for source in stage["sources"]]} if "sources" in stage else stage
    name, where, what = one({"words": WORDS, "it": stage}, tmp_path)
    assert (name, where) == ("it", key)
    assert says in what


def test_more_ranks_than_cards_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tercet.preflight.machine.has_gpu", lambda: True)
    monkeypatch.setattr("tercet.preflight.machine.cards", lambda: 2)
    _, key, what = one({"words": WORDS, "it": SFT}, tmp_path, placement={"ranks": 4})
    assert (key, "there are 2 cards; set it to 2" in what) == ("ranks", True)


@pytest.mark.parametrize(
    ("stage", "placement", "says"),
    [
        (SFT, {"ranks": 4, "mesh": {"tensor": 4}}, "tensor = 4 does not divide the 2 heads of the model"),
        (SFT, {"ranks": 3, "mesh": {"context": 3}}, "context = 3 does not divide the 4 attention heads"),
        (SFT | {"lora": {"r": 4}}, {"ranks": 2, "mesh": {"tensor": 2}}, "adapters are not split"),
    ],
)
def test_a_mesh_that_a_model_cannot_have_is_found(tmp_path, monkeypatch, stage, placement, says):
    monkeypatch.setattr("tercet.preflight.machine.find_spec", lambda name: name)
    name, key, what = one({"words": WORDS, "it": stage}, tmp_path, placement=placement)
    assert (name, key) == ("it", "placement.mesh")
    assert says in what


def test_a_family_without_a_tensor_plan_is_found_once_its_configuration_is_here(tmp_path):
    placement = {"ranks": 2, "mesh": {"tensor": 2}}
    away = {"model": "far/away", "revision": "0" * 40}
    assert found({"words": WORDS, "it": SFT}, tmp_path, base=away, placement=placement) == []
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2", "n_head": 4}')
    obstacles = found({"words": WORDS, "it": SFT}, tmp_path, base={"model": "model"}, placement=placement)
    assert any("transformers has no tensor plan for gpt2; leave it at 1" in what for _, _, what in obstacles)


@pytest.mark.parametrize("key", ["offload", "activation_offloading"])
def test_offloading_without_a_card_is_found_where_the_ranks_run_here(tmp_path, monkeypatch, key):
    monkeypatch.setattr("tercet.preflight.machine.has_gpu", lambda: False)
    name, where, what = one({"words": WORDS, "it": SFT}, tmp_path, placement={key: True})
    assert (name, where) == ("it", f"placement.{key}")
    assert "there is no card here; leave it out" in what
    assert found({"words": WORDS, "it": SFT}, tmp_path, placement={key: True, "launch": "env", "ranks": 2}) == []


def test_rows_that_give_no_pairs_and_prompts_without_verifier_are_found_in_the_heads_of_files(tmp_path):
    chats = written(tmp_path, "chats.jsonl", chat(), chat("3 + 3?", "6"))
    pairs = one({"pairs": mix(chats, "pair_mix", adapter="auto")}, tmp_path)
    assert pairs[:2] == ("pairs", "sources.0")
    assert "pairs" in pairs[2]
    name, key, what = one({"rows": mix(chats), "rl": GRPO | {"prompts": "rows"}}, tmp_path)
    assert (name, key) == ("rl", "prompts")
    assert "stage 'rows', sources.0" in what
    assert "names no verifier; give its source `verifier`" in what


def test_a_reference_answer_that_cannot_be_read_is_found(tmp_path):
    rows = written(tmp_path, "rows.jsonl", chat(verifier="ifeval@1", reference="not JSON"))
    _, key, what = one({"rows": mix(rows), "rl": GRPO | {"prompts": "rows"}}, tmp_path)
    assert key == "prompts"
    assert "cannot be graded" in what


def test_a_file_that_cannot_be_read_is_found_with_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"messages": [\n')
    name, key, what = one({"rows": mix("rows.jsonl")}, tmp_path)
    assert (name, key) == ("rows", "sources.0")
    assert "line 1: not valid JSON" in what


@pytest.mark.parametrize(
    ("benchmark", "evaluation", "key", "says"),
    [
        ({"items": []}, {}, "items", "words@1 has no items; add a synth stage"),
        ({"items": ["words"]}, {}, "items.0", 'split = "test"'),
        ({"tasks": ["xstest@1"]}, {}, "judge", "an LLM judge grades xstest@1"),
        ({}, {"require": ["gsm8k >= 0.5"]}, "require.0", "'gsm8k' names 0 tasks of this evaluation (words@1)"),
        ({}, {"model": "encoder"}, "model", "'encoder' is an encoder, which writes no text"),
    ],
)
def test_what_an_evaluation_would_refuse_is_known_before(tmp_path, benchmark, evaluation, key, says):
    stage = {
        "words": WORDS,
        "items": ITEMS,
        "encoder": {"kind": "model", "model": "tiny:", "encoder": True},
        "benchmark": {"kind": "benchmark", "tasks": ["words@1"], "items": ["items"]} | benchmark,
        "eval": {"kind": "eval", "model": "base", "benchmark": "benchmark"} | evaluation,
    }
    obstacles = {where: what for _, where, what in found(stage, tmp_path)}
    assert says in obstacles[key]


def test_prompts_that_cannot_fit_the_context_are_found(tmp_path):
    text = "".join(f"Question: {i} + {i}?\nAnswer: {2 * i}\n\n" for i in range(100))
    turns = (Message("user", text),)
    about = {"reference": "1", "verifier": "gsm8k@1", "gold": -1, "skill": "", "template": ""}
    items = [
        Item(task=task, item=str(i), messages=turns[:i], options=(), fields=(), **about)
        for task, i in (("long@1", 1), ("mixed@1", 1), ("mixed@1", 0))
    ]
    write_table(tmp_path / "benchmark.parquet", [replace(one, messages=one.messages or HELLO) for one in items])
    (tmp_path / "tasks.json").write_text("[]")
    stage = {
        "items": ITEMS,
        "benchmark": {"kind": "benchmark", "tasks": ["words@1"], "items": ["items"]},
        "eval": {"kind": "eval", "model": "base", "benchmark": "benchmark"},
    }
    recipe = Recipe.model_validate({"name": "r", "base": TINY, "stage": stage})
    (known,) = preflight.obstacles(recipe, ["eval"], {"benchmark": tmp_path}, {})
    assert known[:2] == ("eval", "benchmark")
    assert "prompts of long@1 have" in known.what  # of `mixed@1` only one is too long
    assert "tokens and more, and the model 'base' reads 2,048" in known.what


def test_a_model_beyond_the_memory_of_the_machine_is_found(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"max_position_embeddings": 4096}')
    weight = {"dtype": "BF16", "shape": [70_000, 1_000_000], "data_offsets": [0, 140_000_000_000]}
    header = json.dumps({"w": weight}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    monkeypatch.setattr("tercet.preflight.models.has_gpu", lambda: False)
    monkeypatch.setattr("tercet.preflight.models._memory", lambda: 64e9)
    _, key, what = one({"words": WORDS, "sft": SFT}, tmp_path, base={"model": "model"})
    assert key == "model"
    assert "70.0 billion parameters of 'base' need 1,120 GB" in what
    assert "there are 64 GB here" in what


def test_a_budget_needs_a_price_and_a_pool_two_models(tmp_path):
    rated = {"kind": "rated_pairs", "prompts": "words", "pool": ["server"], "judge": "server", "budget": 5.0}
    keys = {where for _, where, _ in found({"words": WORDS, "server": URL, "rated": rated}, tmp_path)}
    assert keys == {"budget", "pool"}


def test_openais_server_needs_a_key(tmp_path, monkeypatch):
    for name in ("TERCET_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    stage = {"judge": {"kind": "model", "model": "https://api.openai.com/v1#gpt"}}
    assert "set OPENAI_API_KEY" in one(stage, tmp_path)[2]
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    assert found(stage, tmp_path) == []


def test_what_needs_the_network_is_listed_and_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    base = {"model": "wheel:no-such-model==1#x.gguf", "sha256": "0" * 64}
    stage = {"rows": mix("openai/gsm8k", adapter="auto", revision="main"), "judge": URL, "words": WORDS}
    recipe = Recipe.model_validate({"name": "r", "base": base, "stage": stage | {"sft": SFT}})
    lines = pipeline.plan(recipe, Store(tmp_path / "runs"))
    assert pipeline.needs_network(recipe, lines, {}) == {"base": [base["model"]], "rows": ["openai/gsm8k"]}
    assert pipeline.obstacles(recipe, lines, {}) == []
    offline = pipeline.obstacles(recipe, lines, {}, offline=True)
    assert [(one.stage, one.key) for one in offline] == [("base", "model"), ("rows", "sources.0.path")]
    mirror = {"openai/gsm8k": str(tmp_path / written(tmp_path, "gsm.jsonl", chat()))}
    assert list(pipeline.needs_network(recipe, lines, mirror)) == ["base"]


def test_run_says_everything_at_once_and_starts_nothing(tmp_path):
    stage = {"words": WORDS, "sft": SFT | {"max_length": 4096}, "rl": GRPO | {"max_new_tokens": 4000}}
    recipe = Recipe.model_validate({"name": "r", "base": TINY, "stage": stage})
    with pytest.raises(RecipeError, match="2 things would stop this run, so nothing was started") as caught:
        pipeline.run(recipe, Store(tmp_path / "runs"))
    listed = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in listed] == ["  [stage.sft] max_length", "  [stage.rl] max_length"]
    assert list(Store(tmp_path / "runs")) == []


def test_data_and_servers_go_before_training():
    stage = {
        "sft": SFT,
        "words": WORDS,
        "server": URL,
        "more": {"kind": "personas", "model": "server", "write": "persona_math", "seeds": {"stage": "words"}},
        "after": {"kind": "sft", "model": "sft", "rows": "rows", "max_length": 64},
        "rows": {"kind": "mix", "sources": [{"stage": "words"}]},
    }
    recipe = Recipe.model_validate({"name": "r", "base": TINY, "stage": stage})
    assert recipe.order() == ["base", "words", "server", "rows", "more", "sft", "after"]


def test_the_context_of_the_tiny_model_is_what_is_built(tmp_path):
    from tercet.models import tiny

    tiny.build(tmp_path, 0)
    built = json.loads((tmp_path / "config.json").read_text())
    assert {key: built[key] for key in facts.TINY} == facts.TINY
    assert facts.ModelFacts("m", tmp_path, {}).parameters > 0


def test_no_recipe_of_the_project_is_refused(monkeypatch):
    """But for what this machine lacks: memory, cards, engines, an allocation."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-32]")
    monkeypatch.setattr("tercet.preflight.models._memory", lambda: float("inf"))
    monkeypatch.setattr("tercet.preflight.machine.find_spec", lambda name: name)
    monkeypatch.setattr("tercet.preflight.machine.shutil.which", lambda name: name)
    for file in sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml")):
        recipe = load(file)
        assert [str(one) for one in preflight.obstacles(recipe, recipe.order(), {}, {})] == [], file.name
