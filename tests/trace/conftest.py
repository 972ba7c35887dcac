"""The store that tests of traces share, and copies of it for those that change it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.trace.stores import run_of

from tercet.store import Artifact, Store


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    """A finished run; tests leave it as it is, but for its cache."""
    return run_of(tmp_path_factory.mktemp("traced") / "runs")


@pytest.fixture
def own_run(tmp_path: Path):
    """A run of the test's own."""
    yield run_of(tmp_path / "runs")
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)
