"""The pipeline's side of a stage: its process is started, watched, and ended with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import tercet
from tercet.argv import Outside, command
from tercet.journal import write_json
from tercet.launch import surroundings
from tercet.launch.beats import END, Watch
from tercet.launch.deaths import explain
from tercet.launch.ending import death
from tercet.launch.environment import believed, environment
from tercet.launch.shared_store import ATTEMPT, FOLDER, begin
from tercet.recipe import Placement, Recipe
from tercet.stop import PARENT, WITHIN
from tercet.store import Draft
from tercet.track import NOTE, forget_progress

LAST = 4.0  # seconds that ranks get which are ended because one of them is lost
GRACE = WITHIN + 2.0  # seconds a stage gets to end by itself
WAITING = f"is asked to end, and keeps what it has finished: at most {GRACE:g} s; again ends it at once"


def supervise(
    draft: Draft,
    recipe: Recipe,
    lock: int,
    tick: Callable[[], None],
    *,
    say: Callable[[str], None] = lambda text: None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Run the process of a draft to its end, calling `tick` meanwhile; returns its exit code.

    Where a process died or hung, the stage starts again, `placement.max_restarts` times. Where this process is asked to
    end, it asks the stage, and tells the user by `say` that it waits. `variables` are added to the stage's.
    """
    place, most = recipe.placement, recipe.placement.max_restarts
    ranked = place.ranks > 1 and recipe.spec(draft.name).parallel
    own = surroundings.variables(place, draft.key, os.environ) if ranked and place.launch == "env" else {}
    begun = partial(start, draft, recipe, locks=(lock,), variables={**own, **(variables or {})})
    for restarts in range(most + 1):
        code = _attempt(draft, place if ranked else None, begun, tick, say)
        if restarts == most or not (died := death(draft, code)):
            break
        text = f"stage {draft.name!r} starts again from its last checkpoint ({restarts + 1} of {most}): {died}"
        with open(draft.path / "log.txt", "a", encoding="utf-8") as log:
            log.write(f"{NOTE}{text}\n")
        say(text)
    return code


def _attempt(
    draft: Draft,
    ranked: Placement | None,
    begun: Callable[..., subprocess.Popen[bytes]],
    tick: Callable[[], None],
    say: Callable[[str], None],
) -> int:
    """One start of a stage, watched to its end; `ranked` is the placement of several ranks."""
    (draft.path / "result.json").unlink(missing_ok=True)
    forget_progress(draft.path)
    log = draft.path / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    child = begun(begin(draft.path), log=log)
    watch = Watch(draft.path, ranked) if ranked else None
    asked = False
    try:
        while child.poll() is None and not (watch and watch.over()):
            tick()
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
        if child.poll() is None:
            _end_ranks(draft, child)
    except BaseException as error:
        asked = True
        _ask(child, getattr(error, "number", signal.SIGTERM), lambda: say(f"stage {draft.name!r} {WAITING}"))
        raise
    finally:
        forced = asked and child.poll() is None  # also where a second signal cut the waiting short
        with suppress(ProcessLookupError, PermissionError):  # the group has ended; of zombies macOS says the second
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if forced:
            write_json(draft.path / "result.json", {"message": "was ended by force", "clear": False})
    if watch and child.returncode and draft.path.exists() and (why := explain(draft.path, watch, before)):
        write_json(draft.path / "result.json", why)
    return child.returncode


def _end_ranks(draft: Draft, child: subprocess.Popen[bytes]) -> None:
    """Let the ranks that live end, on all machines; what started them follows, or is asked to."""
    (draft.path / FOLDER / END).touch()
    for then in (lambda: child.send_signal(signal.SIGTERM), lambda: None):
        with suppress(subprocess.TimeoutExpired):
            child.wait(LAST / 2)
        if child.poll() is None:
            then()


def start(
    draft: Draft,
    recipe: Recipe,
    attempt: str,
    *,
    log: Path,
    locks: tuple[int, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """The stage's process, in a session of its own; it holds the lock of the draft as long as it lives.

    With a RANK among its `variables` it is a rank that the surroundings have started, and starts no others.
    """
    rank = ["--rank"] if "RANK" in (variables or {}) else []
    package = str(Path(tercet.__file__).parents[1])
    paths = [package, *(os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(":") if path)]
    with open(log, "ab") as output:
        return subprocess.Popen(
            command(sys.executable, "-m", "tercet.stage", "--draft", Outside(draft.path), *rank),
            cwd=recipe.folder,
            env=believed(os.environ)
            | environment(recipe.placement)
            | dict(variables or {})
            | {ATTEMPT: attempt, "PYTHONPATH": ":".join(dict.fromkeys(paths)), PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=locks,
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
