from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import FakeRun, write_run


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    """A finished quickstart without its page."""
    return write_run(tmp_path / "runs")
