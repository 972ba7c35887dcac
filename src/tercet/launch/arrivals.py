"""Who has joined a run, and a line on its terminal while some are missing.

Whoever joins changes a file of its own in the store once a second. No clock of one machine is compared with another's:
what changes is here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tercet import journal
from tercet.recipe import Placement

EVERY = 1.0  # seconds between two signs
GONE = 20.0  # seconds without one after which somebody is no longer here
FIRST, AGAIN = 5.0, 300.0  # seconds until the first hint, and between two that say the same


class Sign:
    """The file of one who joins; `close` takes it away."""

    def __init__(self, folder: Path, found: Mapping[str, str]) -> None:
        rank = f" rank {found['RANK']}" if found.get("RANK") else ""
        self._file = folder / f"{socket.gethostname()}{rank} {os.getpid()}"
        self._count, self._last = 0, -EVERY

    def live(self) -> None:
        """Change the file, at most once a second."""
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._count, self._last = self._count + 1, now
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                journal.replace(self._file, str(self._count), sync=False)

    def close(self) -> None:
        """Whoever leaves takes its file along."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


class Arrivals:
    """The run's eye on who joins; `look` says on the terminal who is here while others are missing."""

    def __init__(self, folder: Path, placement: Placement, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        ranks = placement.launch == "env"
        self._what = "processes" if ranks else "machines"
        self._how = "start the same command for the other ranks" if ranks else "run the same command there with --join"
        self._wanted = (placement.ranks if ranks else placement.nodes) - 1
        # Of each file its text, and when that changed; what an earlier run left there has not.
        self._seen: dict[str, tuple[str, float | None]] = {file.name: (_text(file), None) for file in self._files()}
        self._began = time.monotonic()
        self._told: tuple[frozenset[str], float] | None = None

    def look(self) -> None:
        """Read the files; a line where something is missing and has not just been said, and one when all are here."""
        now = time.monotonic()
        for file in self._files():
            text = _text(file)
            if text and text != self._seen.get(file.name, ("", None))[0]:
                self._seen[file.name] = (text, now)
        here = frozenset(name for name, (_, when) in self._seen.items() if when is not None and now - when < GONE)
        missing, waited = self._wanted - len(here), now - self._began
        if missing <= 0:
            if self._told is not None:
                self._say(f"all {self._wanted} other {self._what} have joined, after {waited:.0f} s")
            self._told, self._began = None, now
        elif waited >= FIRST and (self._told is None or self._told[0] != here or now - self._told[1] >= AGAIN):
            names = ", ".join(sorted(name.rpartition(" ")[0] for name in here)) or "none"
            said = f"{missing} of {self._wanted} other {self._what} have not joined for {waited:.0f} s"
            self._say(f"{said} (here: {names}); {self._how}")
            self._told = (here, now)

    def _files(self) -> list[Path]:
        with suppress(OSError):
            return [file for file in self._folder.iterdir() if not file.name.startswith(".")]
        return []


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8")
    return ""
