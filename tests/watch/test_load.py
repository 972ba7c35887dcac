from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tercet import machine
from tercet.watch.load import MachineLoad


def test_the_load_is_a_share_and_sizes_are_of_this_machine(tmp_path: Path) -> None:
    load = MachineLoad(tmp_path)
    sum(range(2_000_000))
    found = load.read()
    assert found["cores"] >= 1
    assert found["cpu"] is None or 0 <= found["cpu"] <= 1
    assert found["memory"] is None or 0 < found["memory"][0] < found["memory"][1]
    assert 0 <= found["disk"][0] <= found["disk"][1]


def test_the_processors_share_is_that_of_the_ticks_since_the_last_reading(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    (tmp_path / "stat").write_text("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2\n")
    load = MachineLoad(tmp_path)
    (tmp_path / "stat").write_text("cpu  160 0 80 805 55 0 0 0 0 0\n")
    assert load.read()["cpu"] == pytest.approx(0.9)
    (tmp_path / "stat").unlink()
    assert 0 <= load.read()["cpu"] <= 1


def test_cards_are_asked_of_their_driver(tmp_path, monkeypatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA H200, 87, 1024, 143771"\necho "broken, [N/A], x, y"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (card,) = MachineLoad(tmp_path).read()["cards"]
    assert card == {"name": "NVIDIA H200", "load": 0.87, "memory": [2.0**30, 143771 * 2.0**20]}
