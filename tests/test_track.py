from __future__ import annotations

import io
import json
import math
import os
import time

import pytest
from rich.console import Console

from tercet import track
from tercet.track import LiveBoard, Tracker, board, forget_progress, read_metrics, read_progress


def text_of(stream: io.StringIO) -> str:
    return " ".join(stream.getvalue().split())


def test_every_line_is_valid_json_whatever_is_logged(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(1, loss=math.nan, lr=math.inf, tokens=12)
    tracker.log(2, loss=0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": None, "lr": None, "tokens": 12}, {"step": 2, "loss": 0.5}]


def test_of_a_repeated_step_the_last_line_counts(tmp_path):
    for loss in (1.0, 2.0):
        tracker = Tracker(tmp_path)
        tracker.log(1, loss=loss)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_progress_carries_the_last_metrics(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(3, loss=0.25)
    tracker.progress(4, 4, "done soon")
    found = read_progress(tmp_path)
    assert (found["done"], found["total"], found["note"], found["metrics"]) == (4, 4, "done soon", {"loss": 0.25})


def test_time_counts_on_over_killed_runs(tmp_path):
    (tmp_path / "progress.json").write_text('{"seconds": 100.0}')
    assert Tracker(tmp_path).seconds >= 100


def test_progress_is_written_seldom(tmp_path, monkeypatch):
    tracker, written = Tracker(tmp_path), []
    monkeypatch.setattr(os, "replace", lambda *_: written.append(1))
    for done in range(1000):
        tracker.progress(done, 2000)
    assert len(written) < 20


def test_other_ranks_write_nothing(tmp_path):
    tracker = Tracker(None)
    tracker.log(1, loss=1.0)
    tracker.progress(1, 2)
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """A sink that keeps what it is told; from step `fails` on it fails."""

    name = "recorder"

    def __init__(self, fails: float = math.inf) -> None:
        self.told: list[tuple[object, ...]] = []
        self.fails = fails

    def log(self, step, values):
        if step >= self.fails:
            raise ConnectionError("http://me:secret@host is away")
        self.told.append((step, values))

    def table(self, name, step, rows):
        self.told.append((name, step, list(rows)))

    def close(self, done):
        self.told.append(("close", done))


def test_other_trackers_are_opened_at_the_first_step_and_told_each_one_and_how_it_ended(tmp_path):
    other, opened = Recorder(), []
    tracker = Tracker(tmp_path, lambda step, before: opened.append((step, list(before))) or [other])
    tracker.progress(1, 2)
    assert (opened, tracker.shown) == ([], False)
    tracker.log(5, loss=math.nan)
    tracker.table("completions", 5, [{"text": "a", "reward": 1.0}])
    assert opened == [(5, [])]
    assert tracker.shown
    assert tracker.close({"steps": 5.0})
    assert other.told == [
        (5, {"loss": None}),
        ("completions", 5, [{"text": "a", "reward": 1.0}]),
        (5, {"final/steps": 5.0}),
        ("close", True),
    ]


def test_a_stage_that_goes_on_gives_the_other_trackers_the_steps_before(tmp_path):
    first = Tracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, loss=float(step))
    seen = []
    Tracker(tmp_path, lambda step, before: seen.extend([step, [line["step"] for line in before]]) or []).log(3, loss=0)
    assert seen == [3, [1, 2]]


def test_a_tracker_that_fails_is_left_out_and_ends_nothing(tmp_path, capsys):
    failing, other = Recorder(fails=2), Recorder()
    tracker = Tracker(tmp_path, lambda step, before: [failing, other])
    for step in (1, 2, 3):
        tracker.log(step, loss=1.0)
    assert tracker.close(None)
    assert [step for step, _ in failing.told] == [1]
    assert other.told[-1] == ("close", False)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    said = capsys.readouterr().err
    assert (
        said.count("recorder failed and is told nothing more of this stage: ConnectionError: http://[hidden]@host") == 1
    )


def test_trackers_that_cannot_begin_end_nothing(tmp_path, capsys):
    tracker = Tracker(tmp_path, lambda step, before: 1 / 0)
    tracker.log(1, loss=1.0)
    assert tracker.close({})
    assert "no other tracker is told: ZeroDivisionError" in capsys.readouterr().err


def test_a_tracker_that_does_not_end_is_not_waited_for(tmp_path, capsys):
    other = Recorder()
    other.close = lambda done: time.sleep(60)
    tracker = Tracker(tmp_path, lambda step, before: [other])
    tracker.log(1, loss=1.0)
    began = time.monotonic()
    assert not tracker.close({}, within=0.1)
    assert time.monotonic() - began < 2
    assert "had not sent everything" in capsys.readouterr().err


def test_away_from_a_terminal_the_board_is_lines():
    stream = io.StringIO()
    with board(Console(file=stream), {"words": "synth", "sft": "sft"}) as view:
        view.exists("words", {"rows": 3.0})
        view.start("sft", "continues where it stopped")
        view.update("sft", {"done": 1, "total": 4, "metrics": {"loss": 1.5}})
        view.done("sft", {"steps": 4.0}, 61)
    assert stream.getvalue().splitlines() == [
        "sft (sft) starts: continues where it stopped",
        "sft done in 1:01  steps 4",
    ]


def test_a_progress_line_comes_when_its_time_has_come(monkeypatch):
    stream = io.StringIO()
    view = board(Console(file=stream), {"sft": "sft"})
    view.start("sft")
    view.every = 0.0
    view.update("sft", {"done": 1, "total": 4, "metrics": {"loss": 1.5, "reward": 0.2, "other": 1}})
    assert "sft 1/4 0:00 loss 1.5 reward 0.2" in text_of(stream)


def test_on_a_terminal_the_board_is_a_live_table():
    stream = io.StringIO()
    view = board(
        Console(file=stream, force_terminal=True, width=100), {"words": "synth", "sft": "sft", "page": "report"}
    )
    assert isinstance(view, LiveBoard)
    with view:
        view.exists("words", {"rows": 3.0})
        view.start("sft")
        view.update("sft", {"done": 1, "total": 4, "note": "", "metrics": {"tokens_per_second": 123.4, "loss": None}})
        view.failed("page")
        view.note("a note")
        row = Console(file=io.StringIO(), width=100)
        row.print(view._render())
    shown = " ".join(row.file.getvalue().split())
    assert "✓ words synth exists rows 3" in shown
    assert "1/4 0:00 loss nan tok/s 123" in shown
    assert "✗ page report" in shown
    assert "a note" in stream.getvalue()


def test_time_left_counts_from_where_this_process_found_the_stage(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(track.time, "monotonic", lambda: clock[0])
    view = board(Console(file=io.StringIO()), {"sft": "sft"})
    view.start("sft")
    view.update("sft", {"done": 50, "total": 100})
    clock[0] += 10
    view.update("sft", {"done": 60, "total": 100})
    assert view.lines["sft"].left() == pytest.approx(40)


def test_a_continued_stage_takes_the_lines_off_that_it_writes_again(tmp_path):
    first = Tracker(tmp_path)
    for step in range(1, 6):
        first.log(step, loss=float(step))
    with open(tmp_path / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": 6, "lo')  # a kill cut it short
    second = Tracker(tmp_path)
    for step in range(4, 7):
        second.log(step, loss=10.0 * step)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]


def test_a_damaged_line_of_metrics_is_left_out_and_said(tmp_path, capsys):
    Tracker(tmp_path).log(1, loss=1.0)
    with open(tmp_path / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": \xff}\n')
    Tracker(tmp_path).log(2, loss=2.0)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"[1]", b"7", b"\xff\xfe", b'{"done": 3'])
def test_a_damaged_progress_file_is_no_progress(tmp_path, damage):
    (tmp_path / "progress.json").write_bytes(damage)
    assert read_progress(tmp_path) == {}


def test_of_a_stage_that_continues_the_board_shows_no_old_progress_and_counts_its_own_speed(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(track.time, "monotonic", lambda: clock[0])
    (tmp_path / "progress.json").write_text('{"done": 57, "total": 100, "note": "", "seconds": 9.5}')
    forget_progress(tmp_path)
    assert read_progress(tmp_path) == {"seconds": 9.5}
    view = board(Console(file=io.StringIO()), {"sft": "sft"})
    view.start("sft", "continues where it stopped")
    view.update("sft", read_progress(tmp_path))
    assert view.lines["sft"].progress == {"note": "continues where it stopped"}
    clock[0] += 30  # until it trains
    view.update("sft", {"done": 50, "total": 100})
    clock[0] += 10
    view.update("sft", {"done": 60, "total": 100})
    assert view.lines["sft"].left() == pytest.approx(40)
