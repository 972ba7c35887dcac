"""`recompute = "auto"`: on where a stage would not fit otherwise, off where it does, and told."""

from __future__ import annotations

import json

import pytest

from tercet.forecast import recomputation
from tercet.forecast.recomputation import decided
from tercet.recipe import library, load

LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(recomputation, "has_gpu", lambda: True)


@pytest.mark.parametrize(("memory", "again"), [(85e9, False), (40e9, True)])
def test_a_card_that_is_too_small_without_recomputes_and_says_so(folder, card, memory, again):
    recipe = load(library.located("tulu3-8b"), ("placement.ranks=8",))
    found, why = decided(recipe, "sft", {recipe.spec("sft").model: folder}, lambda: memory)
    assert found.placement.recompute is again
    assert bool(why) == again
    assert not why or "of its 40 GB" in why


def test_a_setting_and_a_shape_that_nobody_knows_stay(folder, card):
    recipe = load(library.located("tulu3-8b"), ("placement.recompute=false",))
    assert decided(recipe, "sft", {recipe.spec("sft").model: folder}, lambda: 1e9) == (recipe, "")
    recipe = load(library.located("tulu3-8b"))
    (folder / "config.json").write_text("{}")
    assert decided(recipe, "sft", {recipe.spec("sft").model: folder}, lambda: 1e9)[0].placement.recompute is False


def test_other_stages_are_left_alone(folder, card):
    recipe = load(library.located("tulu3-8b"))
    assert decided(recipe, "skills-sft", {}, lambda: 1e9)[0] is recipe
