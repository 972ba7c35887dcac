"""What a forecast offers where a stage does not fit: written into the recipe, it is accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tercet.forecast.machines import ASSUMED, machine
from tercet.forecast.shape import known
from tercet.forecast.stages import forecast, setting_of
from tercet.forecast.work import Work
from tercet.recipe import library, load

SHAPE = known("meta-llama/Llama-3.1-8B")
CARD, BIG, NODE, CPU = (machine(name) for name in ("h100", "h200", "h100x8", "cpu"))
OFFLOAD = "placement.offload = true"
PLAIN = "placement.recompute=false"
LORA = "stage.sft.lora = { r = 16 }"
CASES = [  # recipe, stage, completions, machine, settings, and what the forecast offers
    ("tulu3-8b", "skills-sft", 500, replace(CARD, memory=26e9), (), "placement.gen_tokens = 16384"),
    ("tulu3.1-8b", "rlvr", 768, NODE, ("placement.depth_first=false", PLAIN), "placement.recompute = true"),
    (
        "tulu3-8b",
        "sft",
        0,
        replace(CPU, memory=175e9, host=175e9),
        ("placement.ranks=1", PLAIN),
        "placement.recompute = true",
    ),
    ("tulu3-8b", "sft", 0, BIG, (), "placement.offload = true"),
    ("tulu3-8b", "sft", 0, replace(BIG, memory=130e9, host=100e9), (), 'stage.sft.optimizer = "adamw8bit"'),
    ("tulu3-8b", "sft", 0, replace(CARD, host=80e9), (), LORA),
    ("tulu3-8b", "sft", 0, replace(CPU, memory=80e9, host=80e9), ("placement.ranks=1",), LORA),
    ("tulu3-8b", "sft", 0, replace(CARD, memory=42e9, host=300e9), (PLAIN,), "placement.ranks = 16 on 16 cards"),
    ("tulu3-8b", "rlvr", 768, replace(NODE, memory=70e9), (PLAIN,), 'stage.rlvr.engine = "vllm" on cards of its own'),
    ("tulu3-8b", "dpo", 0, CARD, (), "placement.offload = true"),
    ("tulu3-8b", "rm", 0, replace(CARD, memory=30e9), (PLAIN,), "placement.recompute = true, placement.offload = true"),
    (
        "tulu3-8b",
        "sft",
        0,
        replace(NODE.with_cards(32), node=8, memory=18e9, host=100e9),
        ("placement.nodes=4", "placement.ranks=32"),
        "placement.mesh.replicate = 1",
    ),
    (
        "tulu3-8b",
        "rm",
        0,
        replace(CARD, memory=22e9),
        (),
        f"{OFFLOAD}, placement.activation_offloading = true",
    ),
]


def work(name: str, stage: str, completions: int, where, settings=()) -> Work:
    recipe = load(library.located(name), settings)
    spec = recipe.spec(stage)
    ahead = {"steps": 2} | ({"completions": completions} if completions else {})
    value = SHAPE if getattr(spec, "value", "") else None
    return Work(stage, spec, SHAPE, value, setting_of(spec, recipe, where, completions), ahead)


@pytest.mark.parametrize(("name", "stage", "completions", "where", "settings", "offered"), CASES)
def test_what_is_offered_is_accepted(name, stage, completions, where, settings, offered):
    found = forecast(work(name, stage, completions, where, settings), where, ASSUMED)
    assert found.refused
    assert found.instead == offered
    applied = []
    for part in offered.split(", "):
        change, _, place = part.partition(" on ")
        applied.append(change.replace(" = ", "=", 1))
        if place.endswith(" cards"):
            where = replace(where.with_cards(int(place.split()[0])), node=8)
    again = forecast(work(name, stage, completions, where, (*settings, *applied)), where, ASSUMED)
    assert again.refused == ""


def test_several_ranks_on_a_cpu_share_its_memory():
    where = replace(CPU, memory=170e9, host=170e9)
    settings = ("placement.recompute=true",)
    one, eight = (
        forecast(work("tulu3-8b", "sft", 0, where, (f"placement.ranks={n}", *settings)), where, ASSUMED) for n in (1, 8)
    )
    assert one.refused == ""
    assert "of a node's 170" in eight.refused


def test_nothing_is_offered_where_nothing_fits():
    where = replace(CARD, memory=6e9)
    found = forecast(work("tulu3-8b", "sft", 0, where), where, ASSUMED)
    assert found.refused
    assert found.instead == ""


def test_a_model_that_only_writes_is_served_elsewhere():
    where = replace(CARD, memory=16e9)
    found = forecast(work("tulu3-8b", "skills-sft", 500, where), where, ASSUMED)
    assert "http://HOST/v1#NAME" in found.instead
