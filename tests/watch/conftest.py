from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tercet.rows import Message, Row, write_table

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from fake_rollouts import write_rewarded
from fake_run import FakeRun

KEY = "0123456789ab"
Drafted = Callable[..., Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    """A finished run; tests only read it."""
    return write_rewarded(tmp_path_factory.mktemp("watched") / "runs")


@pytest.fixture
def draft(tmp_path: Path) -> Iterator[Drafted]:
    """Write the draft of a stage into `tmp_path/runs`; with `locked` some process holds its lock."""
    locks: list[int] = []

    def write(name: str = "rlvr", kind: str = "grpo", *, locked: bool = False, **progress: Any) -> Path:
        store = tmp_path / "runs"
        folder = store / f".draft-{name}-{KEY}"
        (folder / "work").mkdir(parents=True)
        (store / ".locks").mkdir(exist_ok=True)
        spec = {"kind": kind, "prompts": "rows", "monitor": {"kl": 0.5, "rounds": 2}}
        rows = store / "rows-1"
        recipe = {"name": "story", "stage": {name: spec, "rows": {"kind": "mix"}}}
        job = {"name": name, "recipe": recipe, "inputs": {"rows": str(rows)}, "identity": {"spec": spec}}
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "progress.json").write_text(json.dumps(progress))
        if not rows.exists():
            write_table(
                rows / "payload" / "rows.parquet", [Row("r1", (Message("user", "Which?"),), verifier="gsm8k@1")]
            )
        lock = os.open(store / ".locks" / f"{name}-{KEY}", os.O_CREAT | os.O_RDWR)
        locks.append(lock)
        if locked:
            fcntl.flock(lock, fcntl.LOCK_EX)
        for file in folder.iterdir():
            os.utime(file, (1e9, 1e9))  # long ago: only the lock tells that it runs
        return folder

    yield write
    for lock in locks:
        os.close(lock)
