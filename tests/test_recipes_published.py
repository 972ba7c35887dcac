"""What the recipes of the published models say, number by number, against a table written from paper and commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tercet.evals import suite
from tercet.recipe import (
    BenchmarkSpec,
    DPOSpec,
    EvalSpec,
    GRPOSpec,
    ModelSpec,
    PPOSpec,
    Recipe,
    RewardModelSpec,
    SFTSpec,
    load,
)

RECIPES = Path(__file__).parents[1] / "recipes"
SIZES = ("tulu3-8b", "tulu3-70b", "tulu3-405b")

# stage, key -> what 8B, 70B and 405B were trained with; one value where it is the same.
PUBLISHED: dict[tuple[str, str], Any] = {
    ("sft", "learning_rate"): (5e-6, 2e-6, 2e-6),
    ("sft", "batch"): (128, 128, 256),
    ("sft", "num_epochs"): 2,
    ("sft", "max_length"): 4096,
    ("sft", "schedule"): "linear",
    ("sft", "warmup_ratio"): 0.03,
    ("sft", "weight_decay"): 0.0,
    ("sft", "reduction"): "token_mean",
    ("sft", "seed"): (123, 456, 42),
    ("sft", "overlong"): "cut",
    ("sft", "eps"): 1e-8,
    ("sft", "betas"): (0.9, 0.999),
    ("sft", "max_grad_norm"): 1.0,
    ("dpo", "loss"): "dpo_norm",
    ("dpo", "beta"): 5.0,
    ("dpo", "learning_rate"): (5e-7, 2e-7, 2e-7),
    ("dpo", "batch"): (128, 128, 256),
    ("dpo", "num_epochs"): 1,
    ("dpo", "max_length"): 2048,
    ("dpo", "schedule"): "linear",
    ("dpo", "warmup_ratio"): 0.1,
    ("dpo", "weight_decay"): 0.0,
    ("dpo", "turns"): "all",
    ("dpo", "label_smoothing"): 0.0,
    ("dpo", "overlong"): "cut",
    ("dpo", "pairs"): ("preference-data", "preference-data-70b", "preference-data-405b"),
    ("rm", "model"): ("sft", "sft-8b", "sft-8b"),
    ("rm", "pairs"): "preference-data",
    ("rm", "learning_rate"): 3e-6,
    ("rm", "schedule"): "linear",
    ("rm", "warmup_ratio"): 0.0,
    ("rm", "batch"): 256,
    ("rm", "num_epochs"): 1,
    ("rm", "max_length"): 2048,
    ("rm", "overlong"): "drop",
    ("rm", "max_grad_norm"): 1.0,
    ("rm", "eps"): 1e-5,
    ("rlvr", "value"): "rm",
    ("rlvr", "model"): "dpo",
    ("rlvr", "learning_rate"): (3e-7, 1e-7, 1e-7),
    ("rlvr", "value_learning_rate"): (3e-7, 1e-7, 1e-7),
    ("rlvr", "schedule"): "linear",
    ("rlvr", "warmup_ratio"): (0.0, 0.1, 0.0),
    ("rlvr", "kl_beta"): (0.05, 0.07, 0.05),
    ("rlvr", "batch"): (7 * 32, 40 * 16, 232 * 8),
    ("rlvr", "num_generations"): 1,
    ("rlvr", "passes"): (4, 4, 1),
    ("rlvr", "minibatches"): 1,
    ("rlvr", "max_length"): 2048,
    ("rlvr", "max_new_tokens"): (2048, 2048, 1024),
    ("rlvr", "rounds"): (100_000 // 224, 400_000 // 640, 75),
    ("rlvr", "seed"): (3, 8, 3),
    ("rlvr", "gamma"): 1.0,
    ("rlvr", "lam"): 0.95,
    ("rlvr", "clip_low"): 0.2,
    ("rlvr", "clip_high"): 0.2,
    ("rlvr", "value_clip"): 0.2,
    ("rlvr", "value_coefficient"): 0.1,
    ("rlvr", "max_grad_norm"): 1.0,
    ("rlvr", "temperature"): 1.0,
    ("rlvr", "reward_scale"): 10.0,
    ("rlvr", "no_eos_reward"): -10.0,
    ("rlvr", "whiten"): True,
    ("rlvr", "score_at"): "after_end",
    ("rlvr", "old_logps"): "trainer",
    ("rlvr", "weight_decay"): 0.01,
    ("rlvr", "eps"): 1e-8,
    ("rlvr", "betas"): (0.9, 0.999),
    ("rlvr", "lag"): 1,
}
GRPO = {
    "preset": "tulu3.1",
    "model": "dpo",
    "prompts": "prompts",
    "rounds": 1920,
    "batch": 12 * 4,
    "num_generations": 16,
    "minibatches": 2,
    "passes": 1,
    "loss": "grpo",
    "learning_rate": 5e-7,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "kl_beta": 0.01,
    "kl_estimator": "k3",
    "kl_in": "loss",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "advantage": "standard",
    "reduction": "token_mean",
    "temperature": 1.0,
    "max_length": 2048,
    "max_new_tokens": 2048,
    "reward_scale": 10.0,
    "no_eos_reward": 0.0,
    "seed": 1,
}


def recipe(name: str) -> Recipe:
    return load(RECIPES / f"{name}.toml")


def written(name: str) -> str:
    """The text of a recipe and of those that it extends."""
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    above = re.search(r'^extends = "(.*)\.toml"$', text, re.MULTILINE)
    return (written(above[1]) if above else "") + text


@pytest.mark.parametrize("name", SIZES)
def test_every_published_number_stands_in_the_recipe(name: str) -> None:
    found, place = recipe(name), SIZES.index(name)
    stages = {"sft": SFTSpec, "dpo": DPOSpec, "rm": RewardModelSpec, "rlvr": PPOSpec}
    assert {key: type(found.stage[key]) for key in stages} == stages
    several = {key for key, value in PUBLISHED.items() if isinstance(value, tuple) and key[1] != "betas"}
    wanted = {key: value[place] if key in several else value for key, value in PUBLISHED.items()}
    assert {key: getattr(found.stage[key[0]], key[1]) for key in PUBLISHED} == wanted


def test_the_grpo_run_is_that_of_the_command() -> None:
    spec = recipe("tulu3.1-8b").stage["rlvr"]
    assert isinstance(spec, GRPOSpec)
    assert {key: getattr(spec, key) for key in GRPO} == GRPO
    assert spec.rounds * spec.batch * spec.num_generations == 1_474_560


@pytest.mark.parametrize("name", [*SIZES, "tulu3.1-8b"])
def test_no_published_number_is_left_to_a_default(name: str) -> None:
    found = recipe(name)
    keys = [("rlvr", key) for key in GRPO] if name == "tulu3.1-8b" else list(PUBLISHED)
    assert not [key for key in keys if key[1] not in found.stage[key[0]].model_fields_set]


@pytest.mark.parametrize("name", [*SIZES, "tulu3.1-8b"])
def test_every_number_of_a_training_stage_names_its_source(name: str) -> None:
    bare = [
        line
        for table in re.split(r"^(?=\[)", written(name), flags=re.MULTILINE)
        if re.match(r"\[stage\.(sft|dpo|rm|rlvr)\]", table)
        for line in table.splitlines()
        if re.match(r"\w+ = [-\d]", line) and "#" not in line and not line.startswith("rounds = 446")
    ]
    assert not bare


def test_31_differs_from_30_in_its_last_stage_alone() -> None:
    old, new = recipe("tulu3-8b"), recipe("tulu3.1-8b")
    changed = {name for name in old.stage if old.stage[name] != new.stage[name]}
    assert changed == {"rlvr", "report"}
    assert set(old.stage) == set(new.stage)


def test_the_critic_is_8b_at_every_size() -> None:
    assert recipe("tulu3-8b").base.model == "meta-llama/Llama-3.1-8B"
    for name in SIZES[1:]:
        found = recipe(name)
        start = found.stage["sft-8b"]
        assert isinstance(start, ModelSpec)
        assert (start.model, start.template) == ("allenai/Llama-3.1-Tulu-3-8B-SFT", found.base.template)
        assert found.needs("rm")[0] == "sft-8b"
        assert "sft" not in found.needs("rm")


@pytest.mark.parametrize("name", [*SIZES, "tulu3.1-8b"])
def test_every_checkpoint_is_evaluated_on_the_development_suite_and_the_last_one_the_unseen(name: str) -> None:
    found = recipe(name)
    evals = {key: spec for key, spec in found.stage.items() if isinstance(spec, EvalSpec)}
    evaluated: dict[str, set[str]] = {}
    for spec in evals.values():
        benchmark = found.stage[spec.benchmark]
        assert isinstance(benchmark, BenchmarkSpec)
        tasks = suite.tasks(benchmark.tasks)
        assert bool(spec.judge) == any(task.judge for task in tasks)
        evaluated.setdefault(spec.model, set()).update(task.id for task in tasks)
    counted = {task for names in suite.SUITES["dev"].rows.values() for task in names}
    unseen = set(suite.SUITES["unseen"].tasks)
    assert evaluated == {"sft": counted, "dpo": counted, "rlvr": counted | unseen}
    assert [key for key, spec in evals.items() if spec.final] == ["unseen"]
