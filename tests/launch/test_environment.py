"""The variables a stage's process starts with."""

from __future__ import annotations

import pytest

from tercet.launch.environment import environment
from tercet.recipe import Placement


@pytest.fixture(autouse=True)
def default_allocator(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)


def test_a_trainers_memory_grows_in_place():
    assert environment(Placement(), parallel=True)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_other_stages_keep_torchs_own_allocator():
    assert "PYTORCH_ALLOC_CONF" not in environment(Placement())


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_the_users_own_allocator_settings_are_kept(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128")
    assert "PYTORCH_ALLOC_CONF" not in environment(Placement(), parallel=True)
