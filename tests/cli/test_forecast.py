"""`tercet plan --machine`: no weights, no network, and a refusal where something cannot fit."""

from __future__ import annotations

import json

import pytest

from tercet.cli.main import main


@pytest.fixture
def plan(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def called(*line: str) -> tuple[int, str, str]:
        code = main(["plan", *line, "--store", str(tmp_path)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


def test_what_fits_has_gigabytes_hours_and_a_price(plan):
    code, out, _ = plan("smollm2-135m", "--machine", "h100")
    assert code == 0
    assert "assumed: 690 tokens a row" in out
    assert "$3.90 a card and hour" in out
    line = next(line for line in out.splitlines() if line.startswith("sft "))
    assert "$" in line


def test_what_cannot_fit_is_refused_with_what_does(plan):
    whole = ("tulu3.1-8b", "--machine", "h100x8", "--set", "placement.depth_first=false")
    plain = (*whole, "--set", "placement.recompute=false")
    code, out, err = plan(*plain, "--json")
    assert code == 2
    assert "[stage.rlvr] --machine: needs" in err
    assert "what fits: placement.recompute = true" in err
    found = {one["name"]: one for one in json.loads(out)["stages"]}
    assert found["rlvr"]["instead"] == "placement.recompute = true"
    assert found["sft"]["bytes"]["master weights"] == 4 * 8_030_261_248 / 8
    assert plan(*whole, "--set", "placement.recompute=true")[0] == 0
    code, out, _ = plan(*whole)
    assert code == 0
    assert "compute their activations again: rlvr" in out, "left to the forecast"


def test_an_unknown_model_is_named_and_an_unknown_machine_refused(plan):
    code, out, _ = plan("tulu3-8b", "--machine", "h100x8", "--set", "base.model=a/b", "--json")
    assert code in (0, 2)
    assert json.loads(out)["unknown"]["sft"] == "a/b"
    code, _, err = plan("tulu3-8b", "--machine", "h10")
    assert code == 2
    assert "no such machine" in err


def test_a_round_with_engines_is_shown_by_phase_within_eighty_columns(plan):
    engines = ("placement.engine.placement=apart", "placement.engine.replicas=4", "stage.rlvr.engine=vllm")
    line = ("tulu3.1-8b", "--machine", "h100x64", *(word for one in engines for word in ("--set", one)))
    code, out, _ = plan(*line)
    assert code == 0
    shown = out.splitlines()
    [head] = [number for number, text in enumerate(shown) if text.startswith("stage") and "tail" in text]
    assert " ".join(shown[head].split()) == "stage ranks engines read write tail weights score train round"
    assert shown[head + 2].split()[:5] == ["rlvr", "60", "4", "x", "1"]
    assert max(len(text.rstrip()) for text in shown[head : head + 3]) <= 80
    found = {one["name"]: one for one in json.loads(plan(*line, "--json")[1])["stages"]}
    assert found["rlvr"]["engines"]["replicas"] == 4
    phases = found["rlvr"]["phases"]
    assert phases.pop("round") == pytest.approx(sum(phases.values()))
    assert found["sft"]["phases"] == {}


@pytest.mark.parametrize(("recipe", "where", "cards"), [("tulu3-70b", "h100x64", 4), ("tulu3-405b", "h100x256", 16)])
def test_whole_large_recipes_are_planned_with_evaluations_on_engines_of_several_cards(plan, recipe, where, cards):
    code, out, _ = plan(recipe, "--machine", where, "--json")
    assert code == 0
    stages = {one["name"]: one for one in json.loads(out)["stages"]}
    evaluations = [one for one in stages.values() if one["kind"] == "eval"]
    assert len(evaluations) == 10
    assert {one["ranks"] for one in evaluations} == {cards}
    assert not any(one["refused"] for one in stages.values())
