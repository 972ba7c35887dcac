"""A recipe of one's own that asks models, run through the command line, so that it can be killed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.recipe import load
from tercet.store import Artifact, Store


class Workspace:
    """A folder with `recipe.toml`, the files it names, and the store it fills."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "runs")

    def write(self, recipe: str, **files: list[dict[str, Any]]) -> None:
        """The recipe, and jsonl files by name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.toml").write_text(recipe)
        for name, rows in files.items():
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def copy(self, without: str) -> Workspace:
        """The same workspace beside this one, where one stage has not been made and nothing was asked."""
        folder = self.folder.with_name("again")
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(f"{without}-*", ".requests"))
        return Workspace(folder)

    def run(self, stage: str, *sets: str) -> Artifact:
        """The stage's artifact, made here (its process is a child)."""
        recipe = load(self.folder / "recipe.toml", sets)
        return pipeline.run(recipe, self.store, only=[stage], console=Console(file=io.StringIO()))[stage]

    def log(self, stage: str) -> Path:
        """The request log of a stage."""
        return self.store.root / ".requests" / f"{stage}.jsonl"

    def lines(self, stage: str) -> list[dict[str, Any]]:
        """The whole lines of a request log."""
        file = self.log(stage)
        whole = file.read_bytes() if file.is_file() else b""
        return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]

    def kill_when(self, stage: str, answers: int, extra: float) -> None:
        """SIGKILL a run of the stage, all its processes, a moment after its log has so many answers."""
        store = ["--store", str(self.store.root)]
        command = [sys.executable, "-m", "tercet", "run", "recipe.toml", "--only", stage, *store]
        with open(self.folder / "output.txt", "ab") as output:
            process = subprocess.Popen(command, cwd=self.folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while sum("text" in line for line in self.lines(stage)) < answers:
                assert process.poll() is None, (self.folder / "output.txt").read_text()
                assert time.monotonic() < deadline, "the stage makes no progress"
                time.sleep(0.002)
            time.sleep(extra)
            assert process.poll() is None, "ended too early"
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL what a process has started, then the process."""
    children = Path("/proc") / str(process.pid) / "task" / str(process.pid) / "children"
    for child in children.read_text().split() if children.exists() else []:
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait()
    time.sleep(0.1)  # what was on its way to a server has arrived


@pytest.fixture(scope="module")
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Workspace]]:
    """Makes workspaces; their artifacts may be removed afterwards."""
    folders: list[Path] = []

    def new_workspace() -> Workspace:
        folders.append(tmp_path_factory.mktemp("workspace"))
        return Workspace(folders[-1] / "first")

    yield new_workspace
    for folder in folders:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
