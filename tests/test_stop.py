"""What a signal does: the first lets work end in order, an echo nothing, the second ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tercet
from tercet import stop
from tercet.stop import Interrupted, Stop, Stopped, interruptible

CHILD = """
import sys, time
from tercet import stop
stop.WITHIN, stop.ORPHANED, stop.ECHO = {within}, {within}, {echo}
asked = stop.Stop({ready})
asked.listen(lambda: print("late", flush=True))
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
except stop.Stopped as stopped:
    print("stopped", stopped.code, flush=True)
"""


@pytest.fixture
def child():
    """A process that waits for signals, `child(ready="lambda: True", within=20, echo=1.0)`."""
    started = []

    def start(ready: str = "lambda: True", within: float = 20.0, echo: float = 1.0, **more) -> subprocess.Popen[str]:
        script = CHILD.format(ready=ready, within=within, echo=echo)
        path = {"PYTHONPATH": str(Path(tercet.__file__).parents[1])}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, env=os.environ | path, **more
            )
        )
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one
    yield start
    for number, handler in before.items():
        signal.signal(number, handler)
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_work_that_is_ready_is_cut_short_and_the_log_has_a_line(child, number):
    process = child()
    process.send_signal(number)
    out, log = process.communicate(timeout=10)
    assert out == f"stopped {128 + number}\n"
    assert log == f"tercet: {stop.named(number)}: this stage ends\n"


def test_work_that_is_not_ready_goes_on_until_its_time_is_over(child):
    process = child(ready="lambda: False", within=0.3)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "late\n"
    assert process.returncode == 143


def test_a_second_request_ends_it_at_once_but_an_echo_is_no_request(child):
    process = child(ready="lambda: False", echo=0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.poll() is None
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def test_a_signal_that_was_ignored_stays_ignored(child):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = child()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None


def interrupted(number: int) -> None:
    with interruptible():
        os.kill(os.getpid(), number)
        time.sleep(1)


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_run_is_interrupted_and_the_handlers_are_what_they_were(number):
    before = [signal.getsignal(one) for one in stop.SIGNALS]
    signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    during = [signal.getsignal(one) for one in stop.SIGNALS]
    with pytest.raises(Interrupted) as caught:
        interrupted(number)
    assert caught.value.number == number
    assert isinstance(caught.value, KeyboardInterrupt)
    assert [signal.getsignal(one) for one in stop.SIGNALS] == during
    for one, handler in zip(stop.SIGNALS, before, strict=True):
        signal.signal(one, handler)


def test_in_a_thread_signals_do_what_they_did():
    before, seen = [signal.getsignal(one) for one in stop.SIGNALS], []

    def work() -> None:
        with interruptible():
            seen.extend(signal.getsignal(one) for one in stop.SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


def test_a_stop_that_nobody_asked_for_has_no_number():
    asked = Stop()
    assert not asked.number
    with pytest.raises(Stopped) as stopped:
        asked.asked(signal.SIGTERM)
    assert (asked.number, stopped.value.code) == (15, 143)
