"""config.json as transformers may see it: published configurations stay as they are, whatever their family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tercet.models.config_file import check_sizes, without_code
from tercet.models.headers import BaseError, described, inside, read_json
from tercet.models.hf_folder import quiet
from tercet.models.miniature import DEPTHS

SAID = {"dtype", "_name_or_path"}  # of every file; the first is kept where it is a precision
ONE_OF_EACH = ("llama", "gpt2", "qwen3_moe", "gemma3", "mamba2", "deepseek_v3", "phi3")


def unchanged(kind: str) -> None:
    with quiet():
        values = json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
    check_sizes(values, Path("config.json"))
    plain, left = without_code(values)
    assert not left
    assert values.keys() - plain.keys() <= SAID


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_familys_own_configuration_is_left_as_it_is(kind):
    unchanged(kind)


@pytest.mark.filterwarnings("ignore")
def test_so_is_that_of_every_family_that_transformers_knows():
    for kind in sorted({*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {"gemma4_assistant"}):  # its own defaults disagree
        unchanged(kind)


@pytest.mark.parametrize("key", DEPTHS)
def test_no_name_of_depth_goes_without_a_limit(key):
    with pytest.raises(BaseError, match=f"{key} = 1000000, expected a number from 1 to 2,000"):
        check_sizes({key: 10**6}, Path("config.json"))


def test_ways_to_compute_and_precisions_may_be_said():
    said = {"_attn_implementation": "eager", "experts_implementation": "grouped_mm", "dtype": "bfloat16"}
    assert without_code(said) == (said, [])


def test_a_length_may_mean_without_a_limit_and_mambas_steps_have_none():
    check_sizes({"model_max_length": 10**30, "time_step_limit": [0.0, float("inf")]}, Path("config.json"))


def test_a_header_is_believed_where_every_tensor_has_its_bytes(tmp_path):
    said = json.dumps({"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(said).to_bytes(8, "little") + said + b"\0" * 8)
    assert described(tmp_path / "x.safetensors") == ({"b": ("F32", (2,))}, 8 + len(said) + 8)


def test_a_link_may_stay_inside_and_may_lead_nowhere(tmp_path):
    (tmp_path / "a").write_text("{}")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("absent")
    assert read_json(inside(tmp_path, "b")) == {}
    assert not inside(tmp_path, "c").is_file()
