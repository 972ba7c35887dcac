"""How processes on other machines take part in a run: they read in the store which training stage is at work.

The run says in one file that it lives and which stages it may need others for; a draft holds a token for each start of
its stage. Whoever joins starts its part of a stage when it sees a new token, and ends it when the run ends or is gone.
No clock of one machine is compared with another's: what changes is alive.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tercet import journal
from tercet.launch import surroundings
from tercet.launch.arrivals import Arrivals, Sign
from tercet.launch.ending import StageError
from tercet.launch.environment import JOINED
from tercet.launch.shared_store import FOLDER, token_of
from tercet.launch.supervise import GRACE, LAST, start
from tercet.recipe import Placement, Recipe
from tercet.stop import Interrupted, interruptible
from tercet.store import Draft, Identity, Store, StoreError

EVERY = 1.0  # seconds between two signs of the run
LOST = 60.0  # seconds without one after which it is gone


def others_join(placement: Placement) -> bool:
    """Whether the processes on other machines are started by somebody else, and join."""
    return placement.ranks > 1 and (
        placement.launch == "env" or (placement.launch == "torchrun" and placement.nodes > 1)
    )


@contextmanager
def calling(
    recipe: Recipe, store: Store, nodes: Mapping[str, Identity], say: Callable[[str], None] = print
) -> Iterator[None]:
    """Say in the store, while this run lives, which stages others may be needed for, and how it ended.

    `say` is told on the terminal who is missing. A second run that would say it in the same file is refused.
    """
    if not others_join(recipe.placement):
        yield
        return
    with store.lock("run", recipe.name, partial(_refuse, recipe.name)):
        yield from _calling(recipe, store, nodes, say)


def _refuse(name: str, who: str) -> None:
    raise StoreError(
        f"another run of a recipe named {name!r} (process {who} of its machine) calls for machines in this store, and "
        "whoever joins could not tell the two apart: wait for it, end it, or give this recipe another name"
    )


def _calling(recipe: Recipe, store: Store, nodes: Mapping[str, Identity], say: Callable[[str], None]) -> Iterator[None]:
    file, over = _file(store, recipe), threading.Event()
    file.parent.mkdir(parents=True, exist_ok=True)
    stages = [[name, node.key] for name, node in nodes.items() if recipe.spec(name).parallel]
    told = {"run": token_of(), "stages": stages, "ended": None}
    arrivals = Arrivals(_signs(store, recipe), recipe.placement, say)

    def go_on() -> None:
        count = 0
        while not over.wait(EVERY if count else 0.0):
            count += 1
            if stages:
                arrivals.look()
            with suppress(OSError):
                journal.replace(file, json.dumps(told | {"count": count}), sync=False)

    thread = threading.Thread(target=go_on, name="calling", daemon=True)
    thread.start()
    ended = False
    try:
        yield
        ended = True
    finally:
        over.set()
        thread.join()
        journal.replace(file, json.dumps(told | {"count": -1, "ended": ended}), sync=False)


def join(
    recipe: Recipe, store: Store, found: Mapping[str, str] | None = None, say: Callable[[str], None] = print
) -> bool:
    """Take part in the training stages of this recipe's run until it ends; whether it made everything.

    `found` is what the surroundings say of ranks; the environment when absent.
    """
    found = os.environ if found is None else found
    part, run = JoinedPart(recipe, store, found, say), JoinedRun(store, recipe)
    sign = Sign(_signs(store, recipe), found)
    try:
        with interruptible():
            while (ended := run.look()) is None:
                sign.live()
                part.follow(run.told)
                time.sleep(0.2)
        part.end(within=GRACE if ended else LAST)
        return ended
    except BaseException as error:
        part.end(error.number if isinstance(error, Interrupted) else signal.SIGTERM, within=GRACE)
        raise
    finally:
        sign.close()


class JoinedRun:
    """What the run says of itself, seen from another machine."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._file, self._place = _file(store, recipe), recipe.placement
        self._last, self._since = self._read(), time.monotonic()
        self.told: dict[str, Any] = {}  # its last words, once it was seen alive

    def look(self) -> bool | None:
        """How the run ended; None while it lives, or has not begun. StageError where it is gone."""
        now = self._read()
        if now and now != self._last:
            self._last, self._since, self.told = now, time.monotonic(), json.loads(now)
        silent = time.monotonic() - self._since
        if self.told:
            if silent > LOST:
                raise StageError(f"the run has shown no sign of life for {silent:.0f} s in {self._file}; it is gone", 1)
            return self.told["ended"]
        if silent > self._place.rank_timeout:
            where = f"no run shows itself in {self._file} within {self._place.rank_timeout:g} s"
            raise StageError(f"{where}: start it on the first machine, with this recipe and this store", 1)
        return None

    def _read(self) -> str:
        try:
            return self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""


class JoinedPart:
    """This machine's part (or this rank) of the stage that is at work."""

    def __init__(self, recipe: Recipe, store: Store, found: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._recipe, self._store, self._found, self._say = recipe, store, found, say
        self._child: subprocess.Popen[bytes] | None = None
        self._draft, self._token = Path(), ""

    def follow(self, told: Mapping[str, Any]) -> None:
        """Start this part of a stage that was started anew, and note when a signal ended it."""
        if self._child is not None and (code := self._child.poll()) is not None:
            self._ended(self._child.pid, code)
        for name, key in told.get("stages", ()):
            draft = self._store.draft(name, key)
            token = _token(draft)
            if token and token != self._token and token.startswith(told["run"]):
                self.end()
                self._begin(draft, token)

    def _begin(self, draft: Draft, token: str) -> None:
        place, self._token, self._draft = self._recipe.placement, token, draft.path
        told = surroundings.variables(place, draft.key, self._found) if place.launch == "env" else {JOINED: "1"}
        log = draft.path / FOLDER / f"{socket.gethostname()}-{os.getpid()}-{told.get('RANK', '')}.log"
        self._say(f"joins stage {draft.name!r} (its output: {log})")
        self._child = start(draft, self._recipe, token, log=log, variables=told)

    def end(self, number: int = 0, within: float = LAST) -> None:
        """Let what was started end by itself, asked by a signal or by the other ranks; after a while end it."""
        if (child := self._child) is None:
            return
        if number:
            child.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(within)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        self._ended(child.pid, child.wait())

    def _ended(self, process: int, code: int) -> None:
        """What ended a rank is told to the run in the words of torchrun, which has no part in it here."""
        self._child = None
        if code < 0 and self._draft.is_dir():
            with suppress(OSError), open(self._draft / FOLDER / f"{process}.log", "a", encoding="utf-8") as log:
                log.write(f"Signal {-code} ({signal.Signals(-code).name}) received by PID {process}\n")


def _token(draft: Draft) -> str:
    try:
        return (draft.path / FOLDER / "attempt").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _signs(store: Store, recipe: Recipe) -> Path:
    return store.root / ".runs" / recipe.name


def _file(store: Store, recipe: Recipe) -> Path:
    return store.root / ".runs" / f"{recipe.name}.json"
