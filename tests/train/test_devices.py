"""Training computes where the process is put: on another device than the CPU's, the same figures."""

from __future__ import annotations

import pytest

from elsewhere import DEVICE, elsewhere
from tercet.device import place
from tercet.kernels import native
from tercet.models import fused
from tercet.track import read_metrics

STAGES = {"sft": {"steps": 2}, "dpo": {"steps": 2}, "reward": {"steps": 2}, "rlvr": {"rounds": 2}, "ppo": {"rounds": 2}}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_the_same_elsewhere(workspace, tmp_path, monkeypatch, stage) -> None:
    for module in (native, fused):  # elsewhere there are no compiled kernels, so here none either
        monkeypatch.setattr(module, "native", lambda: native.Native(None, "as elsewhere"))
    workspace.run_stage(stage, tmp_path / "here", **{stage: STAGES[stage]})
    asked: list[object] = []
    monkeypatch.setattr(place, "device", lambda: asked.append(DEVICE) or DEVICE)
    with elsewhere():
        workspace.run_stage(stage, tmp_path / "there", **{stage: STAGES[stage]})
    assert asked
    curves = [read_metrics(tmp_path / f"{name}.draft" / "metrics.jsonl") for name in ("here", "there")]
    for one, other in zip(*curves, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3, abs=1e-4)
