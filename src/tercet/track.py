"""What a run reports while it works: `metrics.jsonl` for later, and a live table on the terminal.

A stage writes through its `Tracker`; the pipeline reads the small progress file beside the draft and shows it on a
`Board`, which is a live table on a terminal and plain lines elsewhere. Other trackers (`tercet.trackers`) are told too.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tercet import journal
from tercet.outside import printable, without_userinfo

Values = dict[str, float | None]

NOTE = "note: "  # begins a line of a stage's log that the terminal shows too
SHOWN = ("loss", "reward", "accuracy", "score", "kl", "grad_norm", "tokens_per_second", "efficiency")
UNLEARNED = (
    "learned nothing: no update was made in any round, since the rewards of a prompt's completions never differed, so "
    "its weights are those it began with. Read its rollouts (`tercet rollouts`), then take easier or harder prompts, "
    "another verifier, or more completions a prompt"
)
SHORT = {"efficiency": "eff", "tokens_per_second": "tok/s", "grad_norm": "grad"}


class Sink(Protocol):
    """Another tracker that a stage's steps are shown in; `name` is what messages call it."""

    name: str

    def log(self, step: int, values: Values) -> None:
        """Add the figures of one step; None stands for NaN and infinity."""

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a table of what was seen at this step; every row has the same columns."""

    def close(self, done: bool) -> None:
        """Send what is left; `done`: the stage became an artifact."""


Opening = Callable[[int, Sequence[Mapping[str, Any]]], Sequence[Sink]]  # (first step, lines logged before it) -> sinks


class Tracker:
    """Writes a stage's metrics and progress into its draft; without a folder it writes nothing (other ranks).

    `opening` gives the other trackers, and is called at the first step: a stage that logs none leaves nothing there.
    One that fails is left out from then on, and the stage's log says so: no run ends for it.
    """

    def __init__(self, folder: Path | None, opening: Opening = lambda step, before: ()) -> None:
        self.folder, self._opening = folder, opening
        self._sinks: list[Sink] = []
        self._state: dict[str, Any] = {"done": 0, "total": 0, "note": "", "metrics": {}, "seconds": 0.0}
        self._before, self._began, self._wrote = 0.0, time.monotonic(), -math.inf
        self._step: int | None = None  # the last that was logged
        if folder is not None:
            self._before = read_progress(folder).get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Time this stage has worked, killed runs included (to the last progress they wrote)."""
        return self._before + time.monotonic() - self._began

    def log(self, step: int, **values: float) -> None:
        """Append one line; NaN and infinity become null. Steps that a continued stage takes again stand there once."""
        if self.folder is None:
            return
        file = self.folder / "metrics.jsonl"
        if self._step is None:
            _forget_lines(file, step)
            self._open(step, file)
        self._step = step
        plain = {key: _plain(value) for key, value in values.items()}
        journal.append(file, {"step": step, **plain}, sync=False)
        self._tell(lambda sink: sink.log(step, plain))
        self._state["metrics"] = plain
        self._write()

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show a table in the other trackers, e.g. completions with their rewards."""
        self._tell(lambda sink: sink.table(name, step, rows))

    @property
    def done(self) -> int:
        """How far the stage is."""
        return int(self._state["done"])

    @property
    def shown(self) -> bool:
        """Whether another tracker is told."""
        return bool(self._sinks)

    def close(self, final: Mapping[str, float] | None, within: float = 60.0) -> bool:
        """Let the other trackers send what is left; `final` are the stage's metrics, None where it made no artifact.

        False where one has not ended in time: it would hold up the end of the process too.
        """
        step, last = self._step or 0, {f"final/{key}": _plain(value) for key, value in (final or {}).items()}

        def end(sink: Sink) -> None:
            if last:
                sink.log(step, last)
            sink.close(final is not None)

        if not self._sinks:
            return True
        # A thread of its own, since a library that waits for the network cannot be told for how long.
        ending = threading.Thread(target=self._tell, args=(end,), name="trackers", daemon=True)
        ending.start()
        ending.join(within)
        if ending.is_alive():
            self.note(f"the trackers had not sent everything {within:g} s after the end; what was logged is kept here")
        return not ending.is_alive()

    def _open(self, step: int, file: Path) -> None:
        try:
            self._sinks = list(self._opening(step, read_metrics(file) if file.is_file() else []))
        except Exception as error:
            self.note(f"no other tracker is told: {said(error)}")

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                tell(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.note(f"{sink.name} failed and is told nothing more of this stage: {said(error)}")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report how far the stage is; cheap enough to call often."""
        self._state |= {"done": done, "total": total, "note": note}
        self._write(now=done >= total)

    def note(self, text: str) -> None:
        """A sentence that the user should see once the stage is done: it stands in the log."""
        if self.folder is not None:
            note(text)

    def _write(self, now: bool = False) -> None:
        if self.folder is None or (not now and time.monotonic() - self._wrote < 0.2):
            return
        text = json.dumps(self._state | {"seconds": self.seconds})
        journal.replace(self.folder / "progress.json", text, sync=False)
        self._wrote = time.monotonic()


def read_progress(folder: Path) -> dict[str, Any]:
    """What the stage last reported; empty before that, and where the file is damaged."""
    try:
        return dict(json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, ValueError):
        return {}


def forget_progress(folder: Path) -> None:
    """Of a stage that continues only the time it has worked counts: it begins at its checkpoint, not where it was."""
    if isinstance(seconds := read_progress(folder).get("seconds"), float):
        journal.replace(folder / "progress.json", json.dumps({"seconds": seconds}), sync=False)


def _forget_lines(file: Path, step: int) -> None:
    """Take off the lines of `step` and of later ones, which come again, and what is no line."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    kept = [line for line in lines if line.endswith(b"\n") and _step(line) < step]
    if len(kept) < len(lines):
        journal.replace(file, b"".join(kept), sync=False)


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError):
        sys.stderr.write(f"{NOTE}a line of metrics.jsonl was damaged and is left out\n")
        return math.inf


def read_notes(folder: Path) -> list[str]:
    """What a stage noted in its log, each sentence once."""
    log = folder / "log.txt"
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.is_file() else []
    return list(dict.fromkeys(line.removeprefix(NOTE) for line in lines if line.startswith(NOTE)))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, one per step: of a repeated step the last."""
    return list({line["step"]: line for line in journal.read(file)}.values())


def note(text: str) -> None:
    """A sentence for the log of a stage, from its own process."""
    sys.stderr.write(f"{NOTE}{text}\n")


def said(error: Exception) -> str:
    """What a library says, on one line and without passwords."""
    return " ".join(f"{type(error).__name__}: {without_userinfo(str(error))}".split())[:300]


def _plain(value: float) -> float | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


@dataclass
class BoardLine:
    """One stage on the board."""

    name: str
    kind: str
    state: str = "waiting"  # waiting, exists, running, done, failed
    progress: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    first: int = 0  # steps done when this process first read them, so that a resumed stage's ETA is right
    first_at: float = 0.0
    seconds: float = 0.0
    said: float = 0.0  # when plain lines last told of it

    def left(self) -> float | None:
        """Seconds to the end at the present speed."""
        done, total = self.progress.get("done", 0), self.progress.get("total", 0)
        elapsed = time.monotonic() - self.first_at
        if done <= self.first or total <= 0 or elapsed < 1:
            return None
        return (total - done) * elapsed / (done - self.first)


class Board:
    """Plain lines: one when a stage starts, one when it ends, and one every ten seconds in between."""

    every = 10.0

    def __init__(self, console: Console, stages: Mapping[str, str]) -> None:
        self.console = console
        self.lines = {name: BoardLine(name, kind) for name, kind in stages.items()}

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def exists(self, name: str, metrics: Values) -> None:
        """The stage need not run."""
        self.lines[name].state, self.lines[name].progress = "exists", {"metrics": metrics}

    def start(self, name: str, note: str = "") -> None:
        """The stage begins, or continues."""
        line = self.lines[name]
        line.state, line.progress = "running", {"note": note or "starting"}
        line.began = line.said = time.monotonic()
        self._say(f"{name} ({line.kind}) starts{note and ': '}{note}")

    def update(self, name: str, progress: dict[str, Any]) -> None:
        """The stage has reported how far it is."""
        if "done" not in progress:
            return
        line = self.lines[name]
        done = progress.get("done", 0)
        if not line.progress.get("total") or done < line.first:  # the first that this process says of its work
            line.first, line.first_at = done, time.monotonic()
        line.progress = progress
        if time.monotonic() - line.said > self.every:
            line.said = time.monotonic()
            self._say(f"{name} {_count(line)}  {_about(line)}".rstrip())

    def done(self, name: str, metrics: Values, seconds: float) -> None:
        """The stage is an artifact now."""
        line = self.lines[name]
        line.state, line.seconds, line.progress = "done", seconds, {"metrics": metrics}
        self._say(f"{name} done in {_clock(seconds)}  {_metrics(line)}".rstrip())

    def failed(self, name: str) -> None:
        """The stage ended without an artifact."""
        self.lines[name].state = "failed"

    def note(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def _say(self, text: str) -> None:
        self.note(text)


class LiveBoard(Board):
    """The same as one table that keeps itself up to date."""

    def __enter__(self) -> Board:
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=8)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._live.stop()

    def _say(self, text: str) -> None:
        """Print nothing: the table shows every state."""

    def _render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        lines = self.lines.values()
        for width in (1, max(len(line.name) for line in lines), max(len(line.kind) for line in lines)):
            grid.add_column(no_wrap=True, min_width=width)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for line in self.lines.values():
            grid.add_row(*self._row(line))
        return Group(grid, "")  # the cursor waits on an empty line, so that an echoed ^C does not wrap

    def _row(self, line: BoardLine) -> tuple[RenderableType, ...]:
        symbols = {"exists": Text("✓", "green dim"), "done": Text("✓", "green"), "failed": Text("✗", "red")}
        symbol: RenderableType = self._spinner if line.state == "running" else symbols.get(line.state, Text("·", "dim"))
        style = {"waiting": "dim", "exists": "dim", "running": "bold", "failed": "red"}.get(line.state, "")
        about: RenderableType = Text(_metrics(line), "dim")
        if line.state == "exists":
            about = Text(f"exists  {_metrics(line)}", "dim")
        elif line.state == "done":
            about = Text.assemble(_clock(line.seconds), "  ", (_metrics(line), "dim"))
        elif line.state == "running":
            about = _bar(line)
        return symbol, Text(line.name, style), Text(line.kind, "dim"), about


def board(console: Console, stages: Mapping[str, str]) -> Board:
    """The live table on a terminal, plain lines elsewhere."""
    return (LiveBoard if console.is_terminal else Board)(console, stages)


def _bar(line: BoardLine) -> RenderableType:
    total, done = line.progress.get("total", 0), line.progress.get("done", 0)
    row = Table.grid(padding=(0, 1))
    parts: list[RenderableType] = [ProgressBar(total=total, completed=done, width=20)] if total else []
    for _ in parts:
        row.add_column(min_width=20)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(*parts, Text.assemble(_count(line), "  ", (_about(line), "cyan")))
    return row


def _count(line: BoardLine) -> str:
    """`120/400  0:31  1:12 left`."""
    done, total, left = line.progress.get("done", 0), line.progress.get("total", 0), line.left()
    parts = (f"{done}/{total}" if total else "", _clock(time.monotonic() - line.began))
    return "  ".join([*filter(None, parts), *([f"{_clock(left)} left"] if left is not None else [])])


def _about(line: BoardLine) -> str:
    """The note of the stage, or its last metrics."""
    return printable(str(line.progress.get("note") or "")) or _metrics(line)


def learned_nothing(metrics: Mapping[str, float | None]) -> bool:
    """Whether a stage that trains ended without one update: its weights are those it began with."""
    return metrics.get("updates") == 0


def _metrics(line: BoardLine) -> str:
    values = line.progress.get("metrics") or {}
    names = [name for name in SHOWN if name in values] or list(values)
    text = "  ".join(f"{printable(SHORT.get(name, name))} {_number(values[name])}" for name in names[:3])
    return f"learned nothing: 0 updates  {text}" if learned_nothing(values) else text


def _number(value: float | None) -> str:
    if value is None:
        return "nan"
    return f"{value:.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
