"""Trackers beside our own log: what a recipe may name, what is refused before anything runs, and the real libraries.

The libraries are extras and large: a test of one is skipped where it is not installed (`pip install 'tercet[track]'`).
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from pathlib import Path

import pytest

from tercet import pipeline, preflight, trackers
from tercet.cli.main import main
from tercet.cli.start import settings
from tercet.preflight import machine
from tercet.recipe import Recipe, RecipeError, load
from tercet.store import Artifact, Draft, Identity, Store
from tercet.trackers import TRACKERS, TrackedRun

RECIPE = """
name = "words"
[base]
model = "tiny:"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 8
[stage.sft]
kind = "sft"
model = "base"
rows = "words"
learning_rate = 1e-3
num_epochs = 1
batch = 4
max_length = 512
"""


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    file = tmp_path / "words.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def refused(recipe: Recipe, store: Store, **options: bool) -> list[str]:
    lines = pipeline.plan(recipe, store)
    return [f"{one.stage} {one.key}: {one.what}" for one in pipeline.obstacles(recipe, lines, {}, **options)]


def test_report_to_on_the_command_line_is_the_recipes(recipe_file):
    args = argparse.Namespace(set=["seed=3"], report_to=["wandb", "mlflow"])
    assert load(recipe_file, settings(args)).placement.report_to == ("wandb", "mlflow")
    assert settings(argparse.Namespace(set=["seed=3"], report_to=[])) == ["seed=3"]


def test_an_unknown_tracker_is_refused_by_name(recipe_file, tmp_path, capsys):
    assert main(["run", str(recipe_file), "--store", str(tmp_path / "runs"), "--report-to", "wanb"]) == 2
    said = capsys.readouterr().err
    assert "placement.report_to.0 = 'wanb' (did you mean 'wandb'?)" in said


def test_a_tracker_that_is_not_installed_stops_the_run_before_it_begins(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "trackio" else object())
    recipe = load(recipe_file, ["placement.report_to=['trackio', 'tensorboard']"])
    found = refused(recipe, Store(tmp_path / "runs"))
    assert found == ["sft placement.report_to: it needs the package trackio: pip install 'tercet[track]'"]


def test_wandb_without_a_login_is_refused_unless_it_keeps_its_files_here(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    recipe, store = load(recipe_file, ["placement.report_to=['wandb']"]), Store(tmp_path / "runs")
    assert "nobody is logged in to Weights & Biases at api.wandb.ai" in refused(recipe, store)[0]
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert refused(recipe, store) == []
    assert "which --offline forbids" in refused(recipe, store, offline=True)[0]
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "netrc").unlink()
    assert refused(recipe, store, offline=True) == []


@pytest.mark.parametrize(
    ("tracker", "variable", "value"),
    [("mlflow", "MLFLOW_TRACKING_URI", "http://host:5000"), ("trackio", "TRACKIO_SPACE_ID", "me/space")],
)
def test_offline_refuses_a_tracker_that_sends(recipe_file, tmp_path, monkeypatch, tracker, variable, value):
    monkeypatch.setattr(machine, "find_spec", lambda name: object())
    recipe, store = load(recipe_file, [f"placement.report_to=['{tracker}']"]), Store(tmp_path / "runs")
    monkeypatch.delenv(variable, raising=False)
    assert refused(recipe, store, offline=True) == []
    monkeypatch.setenv(variable, value)
    assert f"{tracker} sends to where {variable} says" in refused(recipe, store, offline=True)[0]


def test_the_old_variable_is_answered_with_the_new_key(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TERCET_TRACK", "wandb")
    with pytest.raises(RecipeError, match="--report-to"):
        pipeline.run(load(recipe_file), Store(tmp_path / "runs"))


def test_a_stage_without_steps_is_asked_for_no_tracker(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    recipe = load(recipe_file, ["placement.report_to=['trackio']"])
    lines = [one for one in pipeline.plan(recipe, Store(tmp_path / "runs")) if one.name != "sft"]
    preflight.refuse(pipeline.obstacles(recipe, lines, {}))


def test_a_cell_of_a_table_is_one_line_and_no_markup():
    assert trackers._cell("a|b\n<script>") == "a&#124;b<br>&lt;script>"
    assert len(trackers._cell("x" * 5000)) == trackers.CELL


def test_a_tracker_that_cannot_begin_leaves_the_others(run, monkeypatch, capsys):
    class Quiet:
        where = "here"

        def __init__(self, run, step):
            self.told = []

        def log(self, step, values):
            self.told.append(step)

    monkeypatch.setitem(TRACKERS, "wandb", lambda run, step: 1 / 0)
    monkeypatch.setitem(TRACKERS, "mlflow", Quiet)
    (sink,) = trackers.opened(run, ["wandb", "mlflow"], 3, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}])
    assert sink.told == [1, 2]
    assert "wandb could not begin and is told nothing of this stage: ZeroDivisionError" in capsys.readouterr().err
    assert trackers.places([run.store / run.name]) == ["mlflow: here"]


# ---- the real libraries ----

CONFIG = {"stage": {"kind": "sft", "learning_rate": 1e-3, "lora": None}, "recipe": {"name": "words"}}
LINEAGE = {"base": "base-0123456789ab", "long": f"{'n' * 80}-0123456789ab"}
ROWS = [{"prompt": "1 + 1?", "text": "2 | two\n", "reward": 1.0}, {"prompt": "<b>?", "text": "é", "reward": 0.0}]


@pytest.fixture
def run(tmp_path, monkeypatch) -> TrackedRun:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    return TrackedRun("words", "sft-3f2a90c1b7de", "sft", tmp_path / "runs", CONFIG, LINEAGE)


def report_of(run: TrackedRun) -> Artifact:
    """A report that shows the run's stage."""
    found = []
    for kind, inputs in (("sft", {}), ("report", {"sft": run.name.rpartition("-")[2]})):
        name, key = (kind, run.name.rpartition("-")[2]) if kind == "sft" else (kind, "0" * 12)
        draft = Draft(run.store, name, key)
        draft.open()
        (draft.payload / trackers.PAGE).write_text("<!doctype html><title>words</title>", encoding="utf-8")
        found.append(draft.commit(Identity(kind, 1, {}, inputs), {}, 0.0))
    return found[-1]


def told(run: TrackedRun, name: str) -> None:
    """A run whose tracker was turned on at step 2, which was killed after step 3 and took it again; then its page."""
    lines = [{"step": step, "loss": 1.0 / step, "nothing": None} for step in (1, 2, 3, 4)]
    for first, steps in ((2, (2, 3)), (3, (3, 4))):
        (sink,) = trackers.opened(run, [name], first, lines[: first - 1])
        for step in steps:
            sink.log(step, {"loss": 1.0 / step, "nothing": None})
        sink.table("completions", steps[-1], ROWS)
        sink.log(steps[-1], {"final/steps": 4.0})
        sink.close(True)
    time.sleep(1.1 if name == "wandb" else 0)  # which names files kept offline by the second
    assert list(trackers.link(report_of(run), list(TRACKERS))) == []


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_each_step_once(run):
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(run, "tensorboard")
    found = EventAccumulator(str(run.folder), size_guidance={"tensors": 0}).Reload()
    losses = [(one.step, round(one.value, 4)) for one in found.Scalars("loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25)]
    last = {name: found.Tensors(f"{name}/text_summary")[-1] for name in ("completions", "about", "report")}
    text = {name: one.tensor_proto.string_val[0].decode() for name, one in last.items()}
    assert "| 1 + 1? | 2 &#124; two | 1 |" in text["completions"]
    assert "base-0123456789ab" in text["about"]
    assert '"learning_rate": 0.001' in text["about"]
    assert str(run.store / "report-000000000000" / "payload" / "index.html") in text["report"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_config_lineage_steps_table_and_page(run):
    mlflow = pytest.importorskip("mlflow", reason="the extra `track` is not installed")
    told(run, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.root / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    assert (found.info.run_name, found.info.status) == (run.name, "FINISHED")
    assert found.data.params == {"kind": "sft", "learning_rate": "0.001", "lora": "null"}
    assert found.data.tags["tercet.lineage.base"] == "base-0123456789ab"
    assert found.data.tags["tercet.report"] == str(run.store / "report-000000000000" / "payload" / "index.html")
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [one.step for one in sorted(history, key=lambda one: one.step)] == [1, 2, 3, 4]
    folder = Path(client.download_artifacts(found.info.run_id, ""))
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert json.loads((folder / "completions.json").read_text())["columns"] == ["step", *ROWS[0]]
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_config_steps_and_table(run, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="the extra `track` is not installed")
    folder = Path(trackio.utils.TRACKIO_DIR)  # read at its first import
    told(run, "trackio")
    with sqlite3.connect(folder / "words.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = ?", [run.name]).fetchall()
        config = json.loads(database.execute("select config from configs").fetchone()[0])
    assert {step for step, _ in rows} >= {1, 2, 3, 4}
    logged = [json.loads(metrics) for _, metrics in rows]
    assert any(one.get("completions", {}).get("_type") == "trackio.table" for one in logged)
    assert any(one.get("report", {}).get("_type") == "trackio.markdown" for one in logged)
    assert config["lineage"] == LINEAGE
    assert config["stage"]["learning_rate"] == 1e-3


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_config_tags_steps_table_and_page(run):
    pytest.importorskip("wandb", reason="the extra `track` is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    told(run, "wandb")
    records = []
    for file in sorted(run.root.glob("wandb/offline-run-*/*.wandb")):
        for data in framed(file.read_bytes()):
            records.append(Record.FromString(data))
    about = next(one.run for one in records if one.WhichOneof("record_type") == "run")
    assert (about.run_id, about.project, about.run_group, about.job_type) == (run.name, "words", "words", "sft")
    assert set(about.tags) >= {"kind:sft", "base-0123456789ab"}
    assert all(len(tag) <= trackers.TAG for tag in about.tags)
    assert json.loads(next(one.value_json for one in about.config.update if one.key == "stage")) == CONFIG["stage"]
    lines = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in one.history.item}
        for one in records
        if one.WhichOneof("record_type") == "history"
    ]
    assert {line["_step"] for line in lines} >= {1, 2, 3, 4}
    assert {key.partition(".")[0] for line in lines for key in line} >= {"completions", "report"}


def framed(data: bytes) -> list[bytes]:
    """The records of a file in LevelDB's log format, which begins with a header of seven bytes: blocks of 32 KiB with
    chunks of checksum (4), length (2), kind (1: whole, 2: first, 3: middle, 4: last)."""
    found, part, at, block = [], b"", 7, 32768
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found
