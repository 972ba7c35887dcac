"""The pipeline's side of a stage: its process is started, watched, and ended with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import tercet
from tercet.argv import Outside, command
from tercet.journal import write_json
from tercet.launch.environment import believed, environment
from tercet.launch.shared_store import ATTEMPT, begin
from tercet.recipe import Recipe
from tercet.stop import PARENT, WITHIN
from tercet.store import Draft
from tercet.track import forget_progress

GRACE = WITHIN + 2.0  # seconds a stage gets to end by itself
WAITING = f"is asked to end, and keeps what it has finished: at most {GRACE:g} s; again ends it at once"


def supervise(
    draft: Draft, recipe: Recipe, lock: int, tick: Callable[[], None], say: Callable[[str], None] = lambda text: None
) -> int:
    """Run the process of a draft to its end, calling `tick` meanwhile; returns its exit code.

    Where this process is asked to end, it asks the stage, and tells the user by `say` that it waits.
    """
    (draft.path / "result.json").unlink(missing_ok=True)
    forget_progress(draft.path)
    child = _start(draft, recipe, lock)
    try:
        while child.poll() is None:
            tick()
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
    except BaseException as error:
        _ask(child, getattr(error, "number", signal.SIGTERM), lambda: say(f"stage {draft.name!r} {WAITING}"))
        raise
    finally:
        forced = child.poll() is None
        with suppress(ProcessLookupError, PermissionError):  # the group has ended; of zombies macOS says the second
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if forced:
            write_json(draft.path / "result.json", {"message": "was ended by force", "clear": False})
    return child.returncode


def _start(draft: Draft, recipe: Recipe, lock: int) -> subprocess.Popen[bytes]:
    """The stage's process, in a session of its own; it holds the lock of the draft as long as it lives."""
    package = str(Path(tercet.__file__).parents[1])
    paths = [package, *(os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(":") if path)]
    with open(draft.path / "log.txt", "ab") as log:
        return subprocess.Popen(
            command(sys.executable, "-m", "tercet.stage", "--draft", Outside(draft.path)),
            cwd=recipe.folder,
            env=believed(os.environ)
            | environment(recipe.placement)
            | {ATTEMPT: begin(draft.path), "PYTHONPATH": ":".join(dict.fromkeys(paths)), PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )


def _ask(child: subprocess.Popen[bytes], number: int, say: Callable[[], None]) -> None:
    """Let the stage end by itself; its helpers end with it."""
    child.send_signal(number)
    for seconds, then in ((1.0, say), (GRACE - 1.0, lambda: None)):
        try:
            child.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            then()
