from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from fake_run import FakeRun
from test_page import written

from tercet.report import charts, collect, monitors
from tercet.report.collect import Curve, Stage
from tercet.report.page import run
from tercet.rows import RowError


def stage_of(fake: FakeRun, name: str) -> Stage:
    return collect.walk(fake.spec.evals, fake.inputs, fake.recipe)[name]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_alerts_stand_at_the_top_and_beside_the_curves(rewarded: FakeRun, tmp_path: Path) -> None:
    html = written(rewarded, tmp_path)
    head, rest = html.split("<main")
    assert "2 alerts in the training of ppo" in text_of(head)
    assert "rewarded without an answer (round 21), hardly any variety (round 34)" in text_of(head)
    training = text_of(rest.split('id="training"')[1].split('id="samples"')[0])
    assert "rewarded without an answer hollow 21 to 27 0.31 above 0.2 `hollow` in round 21: the share" in training
    assert "hardly any variety entropy 34 0.014 below 0.02" in training
    assert "No alert: all 11 monitored figures stayed within their thresholds" in training  # of rlvr
    assert 'href="rollouts.html#stage=ppo&amp;round=21"' in rest


def test_every_alert_of_the_trainer_has_a_title() -> None:
    known = tomllib.loads(files("tercet.train.rl").joinpath("alerts.toml").read_text(encoding="utf-8"))
    assert set(monitors.NAMES) == set(known)


def test_the_metrics_of_the_report_count_alerts(rewarded: FakeRun, tmp_path: Path) -> None:
    assert run(rewarded.spec, rewarded.inputs, tmp_path, rewarded.context)["alerts"] == 2


def test_an_artifact_from_before_the_monitors_shows_no_alerts(fake: FakeRun, tmp_path: Path) -> None:
    assert monitors.summary(stage_of(fake, "rlvr")) == {}
    html = written(fake, tmp_path)
    shown = html.split("</style>")[1].split('id="recipe"')[0]
    assert "alert" not in shown.replace("alert(", "")  # the texts hold a script


def test_damaged_alerts_are_an_error_that_names_the_file(rewarded: FakeRun) -> None:
    path = rewarded.folder("ppo") / "payload" / "tercet" / "alerts.json"
    path.write_text("{}")
    with pytest.raises(RowError, match=r"alerts\.json: expected a JSON list, got dict"):
        monitors.summary(stage_of(rewarded, "ppo"))


def test_an_alert_without_a_number_is_shown(rewarded: FakeRun) -> None:
    path = rewarded.folder("ppo") / "payload" / "tercet" / "alerts.json"
    alert = {"alert": "kl", "round": 3, "value": float("nan"), "threshold": 1.0, "message": "`kl` in round 3"}
    path.write_text(json.dumps([alert]))
    (shown,) = monitors.summary(stage_of(rewarded, "ppo"))["raised"]
    assert (shown["value"], shown["threshold"], shown["last"]) == ("no number", "above 1", 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rewarded", "alert at or below 0"),
        ("entropy", "alert below 0.02"),
        ("logp_gap", "alert above 0.1"),
        ("hollow", "alert above 0.2"),
        ("length", "alert above 150"),  # three times the mean of the first five rounds
    ],
)
def test_thresholds_come_from_the_spec_of_the_stage(rewarded: FakeRun, name: str, text: str) -> None:
    curve = Curve("ppo", name, name, [(i, 48.0 + i) for i in range(40)], True)
    bound = monitors.bound(stage_of(rewarded, "ppo"), curve)
    assert bound is not None
    assert bound.text == text


@pytest.mark.parametrize("name", ["loss", "reward", "grad_norm", "critic_loss"])
def test_other_curves_have_no_threshold(rewarded: FakeRun, name: str) -> None:
    assert monitors.bound(stage_of(rewarded, "ppo"), Curve("ppo", name, name, [(0, 1.0)], True)) is None


def test_a_threshold_nearby_is_a_line_and_one_far_off_is_words() -> None:
    points = [(float(i), 0.01 * i) for i in range(20)]
    near = charts.curve(points, label="x", bound=charts.Bound(0.3, "alert above 0.3"))
    far = charts.curve(points, label="x", bound=charts.Bound(9.0, "alert above 9"))
    below = charts.curve(points, label="x", bound=charts.Bound(-9.0, "alert below −9"))
    assert near.count('class="bound"') == 1
    assert ">alert above 0.3<" in near
    assert ">↑ alert above 9<" in far
    assert ">↓ alert below −9<" in below
    assert 'class="bound"' not in far + below


def test_monitored_figures_are_main_curves_of_reinforcement_learning_only(rewarded: FakeRun) -> None:
    main = [curve.name for curve in collect.curves(stage_of(rewarded, "ppo")) if curve.main]
    assert main[:2] == ["loss", "critic_loss"]
    assert set(collect.MONITORED) <= set(main)
    assert "lr" not in main
    assert "lr" in [curve.name for curve in collect.curves(stage_of(rewarded, "sft")) if curve.main]
    titles = {curve.name: curve.title for curve in collect.curves(stage_of(rewarded, "ppo"))}
    assert titles["score_length@1"] == "Score: length@1"


def test_a_reward_model_shows_its_accuracy_by_subset(rewarded: FakeRun, tmp_path: Path) -> None:
    text = text_of(written(rewarded, tmp_path))
    assert "pairs held out 78.0 % ± 2.0 412 words@1 81.0 % ± 1.9 411 orders 100.0 % 1" in text
    assert "bench 75.0 % ± 2.4 336 Chat section 94.0 % ± 2.4 100" in text


def test_a_reward_model_without_accuracies_has_no_table_of_them(rewarded: FakeRun, tmp_path: Path) -> None:
    path = rewarded.folder("scorer") / "payload" / "tercet" / "accuracy.json"
    path.write_text('{"held_out": null, "tests": {}}')
    assert "how often it preferred" not in written(rewarded, tmp_path)
    path.unlink()
    assert "how often it preferred" not in written(rewarded, tmp_path)
