from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun

from tercet.rows import read_table
from tercet.store import Store
from tercet.watch import snapshot
from tercet.watch.snapshot import StoreView, recent

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")
SAMPLE: dict[str, Any] = {"ids": [5, 6], "logps": [-0.1] * 2, "text": "It is 3.", "stop": "eos", "score": 1.0}
SAMPLE |= {"grade": [1.0, "3", "graded", ""], "reward": 10.0, "parts": {"gsm8k@1": 1.0}}


def only(store: Path) -> dict[str, Any]:
    (found,) = [one for one in StoreView(Store(store)).stages() if one["folder"].startswith(".draft")]
    return found


def write(folder: Path, name: str, value: Any) -> None:
    """Write a file of a draft, as if long ago."""
    (folder / name).write_text(json.dumps(value) if not isinstance(value, str) else value)
    os.utime(folder / name, (1e9, 1e9))


@linux
def test_a_stage_whose_lock_is_held_runs_and_says_how_far_it_is(draft, tmp_path: Path) -> None:
    draft(locked=True, done=30, total=120, seconds=60.0, note="loss 0.5", metrics={"loss": 0.5, "odd": 1.0})
    found = only(tmp_path / "runs")
    assert (found["name"], found["kind"], found["key"], found["recipe"]) == ("rlvr", "grpo", "0123456789ab", "story")
    assert (found["state"], found["done"], found["of"], found["note"]) == ("running", 30, 120, "loss 0.5")
    assert found["left"] == pytest.approx(180.0)
    assert found["figures"] == {"loss": 0.5}


def test_the_time_left_follows_the_speed_since_it_was_first_seen(draft, tmp_path: Path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: now[0])
    folder = draft(locked=True, done=30, total=120, seconds=6000.0)  # of which a killed run took the most
    os.utime(folder / "progress.json")
    view = StoreView(Store(tmp_path / "runs"))
    view.stages()
    now[0] += 10
    (folder / "progress.json").write_text(json.dumps({"done": 40, "total": 120, "seconds": 6010.0}))
    assert view.stages()[0]["left"] == pytest.approx(80.0)


def test_a_draft_that_changed_just_now_counts_as_running(draft, tmp_path: Path) -> None:
    os.utime(draft(done=1, total=2) / "progress.json")
    assert only(tmp_path / "runs")["state"] == "running"


@pytest.mark.parametrize(
    ("result", "state", "note"),
    [
        (None, "stopped", "its process ended without a word; the same command continues it"),
        ({"code": 143, "message": "was stopped by SIGTERM", "keep": True}, "stopped", "was stopped by SIGTERM"),
        ({"message": "was ended by force", "clear": False}, "stopped", "was ended by force"),
        ({"code": 1, "message": "no such row", "keep": True}, "failed", "no such row"),
    ],
)
def test_a_stage_that_ended_early_says_why(draft, tmp_path: Path, result, state: str, note: str) -> None:
    folder = draft(done=1, total=2)
    if result:
        write(folder, "result.json", result)
    found = only(tmp_path / "runs")
    assert (found["state"], found["note"]) == (state, note)


def test_artifacts_are_listed_newest_first_with_what_they_report(made: FakeRun) -> None:
    found = {one["name"]: one for one in StoreView(Store(made.store)).stages()}
    assert found.keys() == set(made.recipe.order()) - {"page"}
    assert {one["state"] for one in found.values()} == {"done"}
    assert (found["ppo"]["kind"], found["ppo"]["seconds"], found["ppo"]["alerts"]) == ("ppo", 312.9, 2)


def test_damaged_records_jobs_and_logs_cost_nothing_but_themselves(draft, made: FakeRun, tmp_path: Path) -> None:
    folder = draft(done=1, total=2)
    for name in ("job.json", "progress.json", "result.json"):
        write(folder, name, "{torn")
    bad = tmp_path / "runs" / "sft-ffffffffffff"
    bad.mkdir()
    (bad / "artifact.json").write_text("{")
    view = StoreView(Store(tmp_path / "runs"))
    found = {one["name"]: one for one in view.stages()}
    assert found["sft"]["state"] == "damaged"
    assert found["rlvr"]["state"] == "stopped"
    for name in (bad.name, folder.name):
        shown = view.stage(name)
        assert shown is not None
        assert view.curves(shown[1]) == recent(view, shown[1]) == []


def test_curves_of_a_running_stage_are_its_journals_but_for_torn_lines(draft, tmp_path: Path) -> None:
    folder = draft(locked=True)
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "reward": 1.5}\nto\0rn\n{"step": 1, "reward": 2.5}\n{"step": 2, "rew'
    )
    view = StoreView(Store(tmp_path / "runs"))
    shown = view.stage(folder.name)
    assert shown is not None
    (curve,) = view.curves(shown[1])
    assert (curve.title, curve.points) == ("Reward", [(0.0, 1.5), (1.0, 2.5)])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('ard": 3.5}\n')
    assert view.curves(shown[1])[0].points[-1] == (2.0, 3.5)


def test_alerts_of_a_running_stage_are_read_from_its_log(draft, tmp_path: Path) -> None:
    folder = draft(locked=True)
    write(
        folder,
        "log.txt",
        "note: 3 rows\nalert after round 7: `kl` in round 7: too far\nalert after round 9: `hollow`\n",
    )
    assert only(tmp_path / "runs")["alerts"] == 2
    assert snapshot.live_alerts(folder)[0] == {"title": "Alert", "first": 7, "message": "`kl` in round 7: too far"}


def test_the_last_round_of_a_running_stage_is_shown(draft, tmp_path: Path) -> None:
    folder = draft(locked=True)
    group = {"place": 0, "prompt_id": "r1", "samples": [SAMPLE, SAMPLE | {"reward": 0.0}]}
    lines = [{"round": i, "records": [group, {"done": True, "version": i}]} for i in range(2)]
    (folder / "work" / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"round": 2')
    view = StoreView(Store(tmp_path / "runs"))
    shown = view.stage(folder.name)
    assert shown is not None
    found = recent(view, shown[1])
    assert [(one["figure"], one["good"]) for one in found] == [("reward 10", True), ("reward 0", False)]
    assert found[0] | {"figure": ""} == {
        "asked": "Which?", "text": "It is 3.", "figure": "", "good": True, "about": "round 1 · gsm8k@1 · graded",
    }  # fmt: skip


def test_the_last_completions_of_a_finished_stage_are_shown(made: FakeRun) -> None:
    view = StoreView(Store(made.store))
    shown = view.stage(made.folder("ppo").name)
    assert shown is not None
    rows = read_table(made.folder("ppo") / "payload" / "tercet" / "rollouts.parquet")[-2:]
    assert [one["text"] for one in recent(view, shown[1], most=2)] == [row["text"] for row in rows]


def test_the_last_answers_of_an_evaluation_are_shown(made: FakeRun) -> None:
    view = StoreView(Store(made.store))
    shown = view.stage(made.folder("eval-sft").name)
    assert shown is not None
    assert [one["about"].split(" · ")[0] for one in recent(view, shown[1], most=3)] == ["facts@1"] * 3


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", ".locks", ".cache", "nobody-1", ""])
def test_nothing_but_stages_can_be_asked_for(draft, tmp_path: Path, name: str) -> None:
    draft()
    (tmp_path / "x").mkdir()
    assert StoreView(Store(tmp_path / "runs")).stage(name) is None


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; expected a store"):
        StoreView(Store(tmp_path / "nowhere")).stages()
