"""How work ends when it is asked to: by Ctrl-C, by a scheduler's SIGTERM, or by SIGHUP as its terminal closes.

A run asks its stage, and waits; the stage writes down what would be lost, for at most `WITHIN` seconds. Who is asked
again ends at once. A signal that was ignored when the process began, as under nohup, stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WITHIN, ORPHANED = 18.0, 4.0  # seconds a stage takes for it; where the run that would wait is gone
ECHO = 1.0  # within so many seconds the same signal is one: shells, `timeout` and wrappers send it twice
PARENT = "TERCET_PARENT"  # the variable that tells a process which one started it


class Stopped(SystemExit):
    """A stage's process was asked to end; `code` is 128 and the signal's number."""


class Interrupted(KeyboardInterrupt):
    """A run was asked to end, by signal `number`; `whole`: all that its stage had finished was kept."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.whole = number, True


@dataclass
class Stop:
    """Whether a stage's process was asked to end, and how its work wants to: it is cut short only when `ready`.

    `keep` writes down what would be lost. Work that does nothing about it is cut short anywhere, and keeps nothing.
    """

    ready: Callable[[], bool] = lambda: True
    keep: Callable[[], None] = lambda: None
    number: int = 0  # of the first signal
    _since: float = 0.0
    _parent: int = field(default_factory=os.getppid)
    _event: threading.Event = field(default_factory=threading.Event)

    def listen(self, late: Callable[[], None]) -> None:
        """Be asked by signals; where the time for the end runs out, call `late` and end by force."""
        # Started now and not by the handler, which may find the locks of `threading` held by what it interrupts.
        threading.Thread(target=self._limit, args=(late,), name="stop", daemon=True).start()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.asked)

    def asked(self, number: int, _frame: object = None) -> None:
        """What a signal does."""
        if self.number:
            if time.monotonic() - self._since >= ECHO:
                os._exit(128 + number)
            return
        self.number, self._since = number, time.monotonic()
        with suppress(OSError):
            os.write(2, f"tercet: {named(number)}: this stage ends\n".encode())  # into the log
        self._event.set()
        if self.ready():
            raise Stopped(128 + number)

    def _limit(self, late: Callable[[], None]) -> None:
        self._event.wait()
        time.sleep(WITHIN if os.getppid() == self._parent else ORPHANED)
        with suppress(Exception):
            late()
        os._exit(128 + self.number)


def named(number: int) -> str:
    """A signal in words: `SIGHUP (the terminal was closed)`."""
    why = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "asked to end", signal.SIGHUP: "the terminal was closed"}
    return f"{signal.Signals(number).name} ({why[signal.Signals(number)]})"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise `Interrupted` in here. Only the main thread may say so; in others signals do what they did."""
    since = -ECHO

    def interrupt(number: int, _frame: object) -> None:
        nonlocal since
        before, since = since, time.monotonic()
        if since - before >= ECHO:
            raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in heard:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
