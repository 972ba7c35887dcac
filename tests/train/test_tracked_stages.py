"""What other trackers are told of a run: each step of training, tables of completions, where the page is."""

from __future__ import annotations

import json

import pytest

from tercet import pipeline, stage, trackers
from tercet.recipe import Recipe
from tercet.stage import StageJob
from tercet.store import Artifact, Identity

TOLD: list[tuple[object, ...]] = []


class Recorder:
    """A tracker that keeps what it is told."""

    name = where = "tensorboard"

    def __init__(self, run: trackers.TrackedRun, step: int | None) -> None:
        TOLD.append(("run", run, step))

    def log(self, step, values):
        TOLD.append(("log", step, values))

    def table(self, name, step, rows):
        TOLD.append((name, step, rows))

    def link(self, page):
        TOLD.append(("page", page))

    def close(self, done):
        TOLD.append(("close", done))


@pytest.fixture
def told(monkeypatch):
    TOLD.clear()
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Recorder)
    return TOLD


def make(workspace, recipe: Recipe, name: str) -> Artifact:
    """A stage, in this process, as `python -m tercet.stage` makes it."""
    node = pipeline.graph(recipe, workspace.store)[name]
    draft = workspace.store.draft(name, node.key)
    draft.open()
    inputs = {need: str(workspace.store.open(need).path) for need in node.inputs}
    job = StageJob.of(recipe, name, node, inputs, {})
    track = stage._tracker(job, recipe, draft, True)
    track.close(stage._run(job, recipe, draft, track))
    return workspace.store.open(name)


def test_a_stage_that_trains_is_a_run_with_recipe_lineage_and_every_step(workspace, told):
    recipe = workspace.recipe(placement={"report_to": ("tensorboard", "tensorboard")})
    made = make(workspace, recipe, "sft")
    (_, run, step), *logged, last, end = told
    assert (run.name, run.kind, run.project, step) == (made.path.name, "sft", recipe.name, 1)
    assert run.config == {
        "stage": json.loads(recipe.spec("sft").model_dump_json()),
        "recipe": json.loads(recipe.model_dump_json()),
    }
    assert run.lineage == {name: workspace.store.open(name).path.name for name in ("base", "sft-data")}
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **values} for _, step, values in logged] == lines
    assert last == ("log", lines[-1]["step"], {f"final/{key}": value for key, value in made.metrics.items()})
    assert end == ("close", True)
    assert trackers.places([made.path]) == ["tensorboard: tensorboard"]


def test_every_so_many_rounds_completions_are_shown_with_their_rewards(workspace, told):
    placement = {"report_to": ("tensorboard",), "completions_every": 2}
    make(workspace, workspace.recipe(), "sft")
    made = make(workspace, workspace.recipe(rlvr={"rounds": 3}, placement=placement), "rlvr")
    tables = [one for one in told if one[0] == "completions"]
    assert [step for _, step, _ in tables] == [1, 3]
    row = tables[0][2][0]
    assert list(row)[:3] == ["prompt", "text", "reference"]
    from tercet.rows import read_table

    stored = next(iter(read_table(made.payload / "tercet" / "rollouts.parquet")))
    assert {key: row[key] for key in ("text", "reward", "score", "answer")} == {
        key: stored[key] for key in ("text", "reward", "score", "answer")
    }


def test_the_page_is_linked_from_the_runs_that_were_tracked(workspace, told):
    made = make(workspace, workspace.recipe(placement={"report_to": ("tensorboard",)}), "sft")
    told.clear()
    draft = workspace.store.draft("page", "0" * 12)
    draft.open()
    page = draft.commit(Identity("report", 1, {}, {"sft": made.key}), {}, 0.0)
    assert list(trackers.link(made, ["tensorboard"])) == list(trackers.link(page, ["wandb"])) == []
    assert told == []
    assert list(trackers.link(page, ["tensorboard"])) == []
    (_, run, step), *rest = told
    assert (run.name, run.config["stage"]["kind"], step) == (made.path.name, "sft", None)
    assert rest == [("page", page.payload / "index.html"), ("close", True)]


def test_trackers_change_no_key(workspace):
    told = workspace.recipe(placement={"report_to": ("wandb", "mlflow"), "completions_every": 1})
    assert pipeline.graph(told, workspace.store) == pipeline.graph(workspace.recipe(), workspace.store)
