"""Stages of recipes on machines: bytes, hours, refusals and what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tercet.forecast.machines import ASSUMED, machine
from tercet.forecast.shape import known
from tercet.forecast.stages import forecast, setting_of
from tercet.forecast.work import Work
from tercet.recipe import library, load

CARDS = machine("h100x8")
SHAPE = known("meta-llama/Llama-3.1-8B")


def work(stage: str, name: str = "tulu3-8b", cards=CARDS, **ahead: int) -> Work:
    recipe = load(library.located(name))
    spec = recipe.spec(stage)
    value = SHAPE if getattr(spec, "value", "") else None
    return Work(stage, spec, SHAPE, value, setting_of(spec, recipe, cards), ahead)


def test_the_sft_mixture_takes_the_hours_that_six_flops_a_token_take():
    steps = 2 * 939_344 // 128
    found = forecast(work("sft", steps=steps), CARDS, ASSUMED)
    by_hand = 6 * (SHAPE.parameters - 128256 * 4096) * steps * 128 * 690 / (8 * 989e12 * 0.3)
    assert found.hours == pytest.approx(by_hand / 3600)
    assert found.dollars == pytest.approx(found.hours * 8 * CARDS.price)
    assert found.refused == ""


def test_more_ranks_than_rows_are_not_faster():
    many = machine("h100x256")
    half = many.with_cards(128)  # as many as a step has rows
    hours = [forecast(work("sft", cards=one, steps=100), one, ASSUMED).hours for one in (many, half)]
    assert hours[0] == hours[1]


def test_a_group_that_a_card_cannot_hold_is_taken_branch_by_branch():
    one = work("rlvr", "tulu3.1-8b", steps=2, completions=768)
    assert forecast(one, CARDS, ASSUMED).refused == ""
    assert one.setting.tokens == one.spec.max_length + one.spec.max_new_tokens


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_70b_model_fits_eight_cards_as_each_reads_its_share_alone(stage):
    base = work(stage, "tulu3-8b", steps=10)
    found = forecast(replace(base, shape=known("meta-llama/Llama-3.1-70B")), CARDS, ASSUMED)
    assert found.refused
    assert found.recompute
    assert found.instead == "placement.offload = true"


def test_generation_takes_at_least_the_time_to_read_the_weights():
    found = forecast(work("rlvr", "tulu3.1-8b", steps=2, completions=8), CARDS, ASSUMED)
    assert found.hours * 3600 > ASSUMED["answer"] * 2 * SHAPE.active / CARDS.bandwidth


def test_hours_are_not_known_where_the_number_of_items_is_not():
    found = forecast(work("skills-sft"), CARDS, ASSUMED)
    assert found.hours is None
    assert found.dollars is None


def test_the_page_shows_what_the_command_computes(docs_script):
    script = docs_script("make_forecast")
    assert script.PAGE.read_text(encoding="utf-8") == script.render(), "run `make docs`"
