"""Stages of tests in forks of one process that has torch already: what they compute is theirs, the start is shared.

A test asks for it by the fixture `forked_stages`. A new interpreter takes seconds to import torch, a fork a few
milliseconds; each stage still has a process, a log and an exit code of its own. Tests of how stages are started, ended
and continued start them as a user does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WARM = (
    "data.mix",
    "evals.run",
    "models.opening",
    "models.tiny",
    "report.page",
    "train.dpo",
    "train.rl.grpo",
    "train.sft",
)


@contextmanager
def server() -> Iterator[subprocess.Popen[str]]:
    """The process that is forked, which the first stage waits for until it has torch."""
    root = Path(__file__).parents[1]
    place = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forked"], env=place, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        yield started
        assert started.stdin
        started.stdin.close()


def forks(started: subprocess.Popen[str], patch: pytest.MonkeyPatch) -> None:
    """Let `pipeline.run` start its stages as forks, until the patch ends."""
    from tercet import stage
    from tercet.launch import making

    def supervise(draft: Any, recipe: Any, *_: Any, **__: Any) -> int:
        (draft.path / "result.json").unlink(missing_ok=True)
        environment = {**os.environ, **stage.environment(recipe.placement)}
        job = {"draft": str(draft.path), "folder": str(recipe.folder.absolute()), "environment": environment}
        assert started.stdin
        assert started.stdout
        started.stdin.write(json.dumps(job) + "\n")
        started.stdin.flush()
        return int(started.stdout.readline())

    patch.setattr(making, "supervise", supervise)


def serve() -> None:
    """Fork a child for every job on standard input, and say the exit code of each."""
    import importlib

    import pyarrow

    for name in WARM:
        importlib.import_module(f"tercet.{name}")
    pyarrow.array([0])  # pyarrow imports pandas, where it is, at its first list
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            run(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def run(job: dict[str, Any]) -> None:
    """The stage of a draft, in this process, with what it prints in its log."""
    from tercet import stage

    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    log = os.open(Path(job["draft"]) / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = stage.main(["--draft", job["draft"]])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
