"""Calls in worker processes: results, time limits, crashes, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tercet.sandbox.workers import WorkerError, WorkerStartError, WorkerTimeoutError, call

PARENT = """
import sys
from tercet.sandbox.workers import call
sys.stdout.write(f"{call('os:getpid', (), 5.0)}\\n")
sys.stdout.flush()
if sys.argv[1] == "busy":
    call("operator:pow", (7, 10**9), 1.0)  # one C call that lets no other thread of the worker run
input()
"""


def test_a_result_comes_back_and_the_worker_stays():
    assert call("math:factorial", (5,), 5.0) == 120
    assert call("os:getpid", (), 5.0) == call("os:getpid", (), 5.0) != os.getpid()


def test_what_the_function_raises_is_named_and_the_worker_stays():
    before = call("os:getpid", (), 5.0)
    with pytest.raises(WorkerError, match="math:sqrt raised ValueError"):
        call("math:sqrt", (-1,), 5.0)
    with pytest.raises(WorkerError, match="raised MemoryError"):
        call("builtins:bytearray", (1 << 40,), 5.0)
    assert call("os:getpid", (), 5.0) == before


@pytest.mark.parametrize("hang", [("time:sleep", (60,)), ("operator:pow", (7, 10**9))], ids=["asleep", "in C"])
def test_a_call_that_takes_too_long_is_killed_and_the_next_one_works(hang):
    before = call("os:getpid", (), 5.0)
    with pytest.raises(WorkerTimeoutError, match=r"longer than 0.2 s"):
        call(*hang, 0.2)
    assert not runs(before)
    assert call("math:factorial", (4,), 5.0) == 24


def test_the_import_of_the_module_is_outside_the_limit():
    assert call("tercet.verify.math.symbolic:latex_equal", ("x+1", "1+x"), 2.0)


@pytest.mark.parametrize("crash", [("os:abort", ()), ("os:_exit", (1,))])
def test_a_crash_is_an_error_and_the_next_call_works(crash):
    with pytest.raises(WorkerError, match=f"died in {crash[0]}"):
        call(*crash, 5.0)
    assert call("math:factorial", (4,), 5.0) == 24


def test_a_worker_that_died_between_two_calls_is_replaced():
    pid = call("os:getpid", (), 5.0)
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert call("os:getpid", (), 5.0) != pid


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_function"])
def test_a_function_that_cannot_be_imported_is_named(name):
    with pytest.raises(WorkerStartError, match=f"{name} cannot be used in a worker process"):
        call(name, (), 5.0)


def test_threads_get_their_own_answers():
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: call("operator:add", (n, 1), 20.0), range(60))) == list(range(1, 61))


def test_a_forked_child_does_not_share_its_parents_worker():
    call("os:getpid", (), 5.0)
    script = """
import os
from tercet.sandbox.workers import call
theirs = call("os:getpid", (), 5.0)
child = os.fork()
if child == 0:
    os._exit(0 if call("os:getpid", (), 5.0) != theirs else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert call("os:getpid", (), 5.0) == theirs
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_worker_knows_nothing_of_torch():
    assert call("builtins:eval", ("'torch' in __import__('sys').modules",), 5.0) is False


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_worker_ends_when_its_parent_is_killed(state):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if state == "busy":
            time.sleep(0.3)  # until the call is on its way
        parent.kill()
    wait_until_gone(pid)


def wait_until_gone(pid: int, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while runs(pid):
        assert time.monotonic() < end, f"process {pid} still runs"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
