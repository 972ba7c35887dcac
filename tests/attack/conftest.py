"""What attacks on stages share: training stages with their inputs made, and processes that are born at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import pytest
from tests.train.conftest import Workspace, filled_workspace, launch, workspace

from tercet import pipeline, stage
from tercet.recipe import Recipe
from tercet.stage import StageJob
from tercet.store import Draft, Store

__all__ = ["Workspace", "filled_workspace", "launch", "workspace"]

# Children of this server are born with everything imported, so that a kill costs no start.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["tercet.stage", *(f"tercet.train.{kind}" for kind in ("sft", "dpo", "reward_model", "rl.grpo", "rl.ppo"))]
)


@pytest.fixture(autouse=True)
def interrupts_arrive() -> Iterator[None]:
    """A shell's background jobs ignore SIGINT, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hung_up)


class Attacked(NamedTuple):
    """A stage that is disturbed: its draft, and processes that work on it one after another."""

    store: Store
    recipe: Recipe
    draft: Draft

    @classmethod
    def of(cls, store: Store, recipe: Recipe, name: str) -> Attacked:
        """With its draft open and its job written."""
        node = pipeline.graph(recipe, store)[name]
        found = cls(store, recipe, store.draft(name, node.key))
        found.draft.open()
        inputs = {need: str(store.open(need).path) for need in node.inputs}
        StageJob.of(recipe, name, node, inputs, {}).write(found.draft)
        return found

    def start(self) -> BaseProcess:
        """The stage in a process of its own, as the pipeline would start it."""
        (self.draft.path / "result.json").unlink(missing_ok=True)
        child = SERVER.Process(target=_stage, args=(str(self.draft.path), str(self.draft.root / "log.txt")))
        child.start()
        return child

    def finish(self) -> str:
        """Run to the end; the digest of the payload."""
        child = self.start()
        child.join(120)
        assert child.exitcode == 0, (self.draft.root / "log.txt").read_text()
        artifact = self.store.find(self.draft.name, self.draft.key)
        assert artifact is not None
        return str(artifact.record["digest"])

    def steps(self) -> list[int]:
        """The steps in metrics.jsonl, of the draft or of what became of it."""
        done = self.store.root / f"{self.draft.name}-{self.draft.key}"
        file = (done if done.is_dir() else self.draft.path) / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        return [json.loads(line)["step"] for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def checkpoint(self) -> int:
        """The step of the newest checkpoint."""
        return max(
            (int(one.name.removeprefix("step-")) for one in self.draft.work.glob("checkpoints/step-*")), default=0
        )

    def result(self) -> dict[str, object]:
        """How the stage says that it ended."""
        return dict(json.loads((self.draft.path / "result.json").read_text(encoding="utf-8")))


def _stage(draft: str, log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.exit(stage.main(["--draft", draft]))


def until(happened: Callable[[], bool], lives: Callable[[], bool] = lambda: True, seconds: float = 60.0) -> bool:
    """Wait until it happened; False where what was watched ended before."""
    end = time.monotonic() + seconds
    while not happened():
        if not lives():
            return False
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)
    return True
