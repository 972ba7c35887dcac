from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fake_rollouts import write_rewarded
from fake_run import FakeRun, write_run


@pytest.fixture(scope="session")
def first_fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return write_run(tmp_path_factory.mktemp("fake") / "runs")


@pytest.fixture(scope="session")
def first_rewarded(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return write_rewarded(tmp_path_factory.mktemp("rewarded") / "runs")


@pytest.fixture
def fake(first_fake: FakeRun, tmp_path: Path) -> FakeRun:
    """A finished quickstart without its page."""
    return _copy(first_fake, tmp_path / "runs")


@pytest.fixture
def rewarded(first_rewarded: FakeRun, tmp_path: Path) -> FakeRun:
    """The same with a reward model and PPO, whose monitors raised two alerts."""
    return _copy(first_rewarded, tmp_path / "runs")


def _copy(made: FakeRun, store: Path) -> FakeRun:
    shutil.copytree(made.store, store)
    recipe = made.recipe.model_copy(deep=True)
    return FakeRun(recipe, store, replace(made.context, recipe=recipe, work=store / "work"))
