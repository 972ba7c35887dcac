"""How a stage ended that made no artifact, in words."""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from tercet.store import Draft, disk_full

DISK_FULL = os.EX_IOERR  # a full disk may not hold result.json; the exit code says it too


class StageError(RuntimeError):
    """A stage did not become an artifact; `code` is the exit code it ended with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def ending(draft: Draft) -> tuple[str, bool]:
    """How a stage ended that was asked to, and whether all that it had finished was kept."""
    file = draft.path / "result.json"
    if not file.is_file():
        return f"stage {draft.name!r} {'had not begun' if draft.path.is_dir() else 'is made'}", True
    result = json.loads(file.read_text(encoding="utf-8"))
    return f"stage {draft.name!r} {result['message']}", bool(result["clear"])


def failure(draft: Draft, code: int) -> StageError:
    """Why there is no artifact. Bad input removes the draft; anything else keeps it, to continue from or to read."""
    message, keep, clear = f"its process {_cause(code)}", True, False
    if (draft.path / "result.json").is_file():
        result = json.loads((draft.path / "result.json").read_text(encoding="utf-8"))
        code, message, keep, clear = int(result["code"]), str(result["message"]), bool(result["keep"]), result["clear"]
    message = f"stage {draft.name!r}: {disk_full(draft.path) if code == DISK_FULL else message}"
    if not keep:
        draft.remove()
        return StageError(message, code)
    unclear = code < 0 or (code == 1 and not clear)  # an error of ours says where and what to do; others need the log
    tail = "".join(f"\n  | {line}" for line in _tail(draft.path / "log.txt")) if unclear else ""
    kept = f"the log and what was done so far are in {draft.path}; the same command continues from there"
    return StageError(f"{message}{tail}\n{kept}", code if code in (2, 3) else 1)


def death(draft: Draft, code: int) -> str:
    """Why a stage ended, where a process of it died or hung; empty where it ended by itself, or was asked to."""
    if not (draft.path / "result.json").is_file():
        return f"its process {_cause(code)}" if code < 0 else ""
    result = json.loads((draft.path / "result.json").read_text(encoding="utf-8"))
    return str(result["message"]) if result.get("death") else ""


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"


def _tail(log: Path, most: int = 12) -> Iterator[str]:
    with open(log, encoding="utf-8", errors="replace") as stream:
        yield from (line.rstrip() for line in deque(stream, most) if line.strip())
