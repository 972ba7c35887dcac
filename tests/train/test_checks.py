"""Every bad configuration has its error: before step 1, with the numbers or names that are wrong and what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig

from rerecord import rerecord
from tercet.models.chat import TEMPLATES
from tercet.recipe import GRPOSpec, PPOSpec, RecipeError, SFTSpec, load
from tercet.rows import read_rows, write_table
from tercet.store import Identity
from tercet.train.checks import CheckError, check_authors, check_context, check_critic, check_schedule
from tercet.train.loop import TrainingError

IMPOSSIBLE = json.dumps({"func_name": "verify_keywords", "keyword_list": ["a word that no two-layer model will write"]})
CRITIC = {"kind": "ppo", "model": "base", "value": "critic", "prompts": "sft-data", "rounds": 1, "batch": 4}
CRITIC |= {"max_new_tokens": 8, "max_length": 128}


@pytest.fixture
def run_stage(workspace, tmp_path):
    """Run a stage of the workspace's recipe in this process, with stages changed or added."""

    def run_stage(name: str, **stages: dict[str, Any]) -> Path:
        out = tmp_path / "out"
        workspace.run_stage(name, out, **stages)
        return out

    return run_stage


@pytest.fixture
def model(workspace, tmp_path):
    """Commit another model to the workspace's store: the base with another template, configuration or token."""

    def model(name: str, *, template: str = "", token: str = "", **config: Any) -> Path:
        draft = workspace.store.draft(name, "0" * 12)
        draft.open()
        folder = draft.payload
        shutil.copytree(workspace.store.open("base").payload, folder, dirs_exist_ok=True)
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
        _change(folder / "config.json", config)
        if template:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
            _change(folder / "tokenizer_config.json", {"chat_template": template})
        if token:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.add_tokens([token])
            tokenizer.save(str(folder / "tokenizer.json"))
        draft.commit(Identity("model", 1, {}, {}), {}, 0.0)
        return workspace.store.open(name).payload

    return model


def _change(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.fixture
def change_rows(workspace):
    """Rewrite the workspace's prompts: `change_rows({"r3": {"verifier": ""}})`, or all of them under the key ""."""

    def change_rows(changes: dict[str, dict[str, str]]) -> None:
        path = workspace.store.open("sft-data").payload / "rows.parquet"
        rows = [replace(row, **(changes.get("", {}) | changes.get(row.id, {}))) for row in read_rows(path)]
        subprocess.run(["chmod", "-R", "u+w", str(path.parent)], check=True)
        write_table(path, rows)
        rerecord(path.parents[1])

    return change_rows


# --- What the recipe sees by itself ----------------------------------------------------------------------------------
HEAD = """
name = "bad"
[base]
model = "tiny:"
[stage.sft-data]
kind = "synth"
generator = "words@1"
rows = 8
[stage.learn]
kind = "grpo"
model = "base"
prompts = "sft-data"
rounds = 2
"""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("batch = 6\nminibatches = 4", ("batch = 6", "minibatches = 4", "equal parts")),
        ("num_generations = 1", ("learn.num_generations = 1", "greater than or equal to 2")),
        ("max_new_tokens = 64\noverlong_tokens = 64", ("overlong_tokens = 64", "below max_new_tokens = 64")),
        ("warmup_ratio = 1.0", ("warmup_ratio = 1.0", "less than 1")),
    ],
)
def test_the_recipe_refuses_what_needs_no_model_to_see(tmp_path, line, words):
    (tmp_path / "recipe.toml").write_text(HEAD + line, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.toml")
    message = str(caught.value)
    assert all(word in message for word in ("recipe.toml, line", *words)), message


# --- Context ---------------------------------------------------------------------------------------------------------
def test_prompt_and_response_together_may_not_exceed_the_context(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder)
    common = {"model": "base", "prompts": "sft-data", "rounds": 1, "max_length": 1024}
    check_context(config, GRPOSpec(**common, max_new_tokens=1024))
    for spec in (GRPOSpec(**common, max_new_tokens=1025), PPOSpec(**common, max_new_tokens=1025, value="base")):
        with pytest.raises(CheckError, match=r"max_length = 1024 .* max_new_tokens = 1025 .* 2049 .* 2048") as caught:
            check_context(config, spec)
        assert "lower them by 1" in str(caught.value)


def test_rows_may_not_be_longer_than_the_context(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder)
    check_context(config, SFTSpec(model="base", rows="sft-data", max_length=2048))
    with pytest.raises(CheckError, match="max_length = 4096 tokens, beyond the context of the model 'base', 2048"):
        check_context(config, SFTSpec(model="base", rows="sft-data"))


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "rlvr"])
def test_every_stage_checks_the_context_first(run_stage, stage):
    with pytest.raises(ValueError, match="beyond the context"):
        run_stage(
            stage, **{stage: {"max_length": 2047, "max_new_tokens": 2} if stage == "rlvr" else {"max_length": 2049}}
        )


# --- Learning rate ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("warmup", "total", "bad"),
    [(0.03, 1, False), (0.0, 1, False), (0.5, 3, False), (0.5, 4, False), (0.9, 5, True), (0.96, 20, True)],
)
def test_a_warm_up_as_long_as_the_run_is_refused(warmup, total, bad):
    spec = SFTSpec(model="base", rows="sft-data", learning_rate=1e-3, warmup_ratio=warmup)
    if not bad:
        check_schedule(spec, total)
        return
    with pytest.raises(CheckError, match=rf"warmup_ratio = {warmup} of {total} updates is {total} updates.*0\.001"):
        check_schedule(spec, total)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "rlvr"])
def test_every_stage_refuses_a_rate_that_never_warms_up(run_stage, stage):
    with pytest.raises(ValueError, match=r"warmup_ratio = 0\.9 of 3 updates"):
        run_stage(stage, **{stage: {"warmup_ratio": 0.9, "rounds" if stage == "rlvr" else "steps": 3}})


# --- Models that do not belong together ------------------------------------------------------------------------------
def test_a_critic_may_have_another_size(workspace, model):
    check_critic(workspace.store.open("base").payload, model("critic", hidden_size=32, num_hidden_layers=1))


BAD_CRITICS = {
    "architecture": ({"model_type": "qwen2"}, ("another architecture", "'llama'", "'qwen2'")),
    "vocabulary": ({"token": "<new>"}, ("another vocabulary", "260 tokens instead of 259", "'<new>' (id 259)")),
    "embedding": ({"vocab_size": 200}, ("embedding of 200 rows", "up to id 258")),
    "template": ({"template": TEMPLATES["tulu3"]}, ("another chat template", "<|assistant|>", "<|im_start|>")),
}


@pytest.mark.parametrize(("change", "words"), BAD_CRITICS.values(), ids=BAD_CRITICS)
def test_a_value_model_that_does_not_fit_is_refused(workspace, model, change, words):
    with pytest.raises(CheckError) as caught:
        check_critic(workspace.store.open("base").payload, model("critic", **change))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", ["architecture", "vocabulary", "template"])
def test_ppo_refuses_it_before_the_first_rollout(run_stage, model, name):
    change, words = BAD_CRITICS[name]
    model("critic", **change)
    with pytest.raises(ValueError, match=words[0]):
        run_stage("ppo", critic={"kind": "model", "model": "tiny:"}, ppo=CRITIC)


def test_pairs_written_with_another_template_are_refused(workspace, model):
    pairs = workspace.store.open("preference-data")
    check_authors(workspace.store.open("base"), pairs)
    model("other", template=TEMPLATES["tulu3"])
    with pytest.raises(
        CheckError, match="'base', which wrote the pairs of the stage 'preference-data' uses another chat"
    ):
        check_authors(workspace.store.open("other"), pairs)


def test_pairs_are_followed_through_a_mixture(workspace, model):
    model("other", template=TEMPLATES["tulu3"])
    preference_data = workspace.store.open("preference-data")
    draft = workspace.store.draft("mixed", "1" * 12)
    draft.open()
    draft.commit(Identity("pair_mix", 1, {}, {"preference-data": preference_data.key}), {}, 0.0)
    with pytest.raises(CheckError, match="the stage 'preference-data'"):
        check_authors(workspace.store.open("other"), workspace.store.open("mixed"))


def test_dpo_refuses_pairs_of_another_template(run_stage, model):
    model("other", template=TEMPLATES["tulu3"])
    with pytest.raises(ValueError, match="another chat template"):
        run_stage("dpo", other={"kind": "model", "model": "tiny:"}, dpo={"model": "other"})


# --- Verifiers -------------------------------------------------------------------------------------------------------
BAD_ROWS = {
    "no verifier": ({"r3": {"verifier": ""}}, ("r3", "verifier")),
    "no verifier at all": ({"": {"verifier": "", "reference": ""}}, ("verifier",)),
    "an unknown verifier": ({"r5": {"verifier": "gsm9k@1"}}, ("gsm9k@1", "gsm8k@1")),
    "an unreadable reference answer": ({"r7": {"reference": "no JSON"}}, ("r7",)),
}


@pytest.mark.parametrize(("changes", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_graded_stops_before_the_first_rollout(run_stage, change_rows, changes, words):
    change_rows(changes)
    with pytest.raises(ValueError, match=r".") as caught:
        run_stage("rlvr", rlvr={"rounds": 1})
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- Alerts ----------------------------------------------------------------------------------------------------------
SHORT = {"rounds": 4, "batch": 2, "num_generations": 4, "max_new_tokens": 8}


def alerts(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "tercet" / "alerts.json").read_text(encoding="utf-8"))
    return found


def test_a_reward_that_stays_zero_raises_an_alert(run_stage, change_rows):
    change_rows({"": {"verifier": "tulu_if@1", "reference": IMPOSSIBLE}})
    (alert,) = [
        one for one in alerts(run_stage("rlvr", rlvr=SHORT | {"monitor": {"rounds": 2}})) if one["alert"] == "reward"
    ]
    assert alert["value"] == 0.0


def test_a_reward_that_stays_zero_stops_the_run_where_the_recipe_says_so(run_stage, change_rows):
    change_rows({"": {"verifier": "tulu_if@1", "reference": IMPOSSIBLE}})
    with pytest.raises(TrainingError, match="reward"):
        run_stage("rlvr", rlvr=SHORT | {"monitor": {"rounds": 2, "stop": ["reward"]}})


EXPLODING = SHORT | {"num_generations": 8, "learning_rate": 0.3, "monitor": {"rounds": 1, "kl": 0.05}}


def test_an_exploding_kl_raises_an_alert(run_stage):
    assert "kl" in {one["alert"] for one in alerts(run_stage("rlvr", rlvr=EXPLODING))}


def test_an_exploding_kl_stops_the_run_where_the_recipe_says_so(run_stage):
    with pytest.raises(TrainingError, match=r"(?i)\bkl\b"):
        run_stage("rlvr", rlvr=EXPLODING | {"monitor": {"rounds": 1, "kl": 0.05, "stop": ["kl"]}})
