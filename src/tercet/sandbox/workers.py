"""Functions that may hang, called in processes that may be killed.

`call` runs a function by name in a persistent worker process and kills that process when the time is up. A signal
alert in the caller would work only in its main thread, and not at all while one C call runs. A worker is a fresh
interpreter, so the caller may have threads of any kind. It ends with its caller, even one that was killed: the closed
connection ends it, and a kernel timer ends what no longer listens. (The kernel's parent-death signal would not do: it
follows the thread that started the worker.)
"""

from __future__ import annotations

import atexit
import importlib
import io
import logging
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import Any

from tercet import machine
from tercet.argv import Outside, command

START_SECONDS = 120.0  # to start an interpreter and import the function's module, on a busy machine
GRACE_SECONDS = 2.0  # after the caller's limit, when the caller is gone, the kernel ends the worker
ANSWER_BYTES = 64 << 20  # of one answer
MEMORY_BYTES = 4 << 30  # address space of a worker: 9**9**9 must not exhaust the machine's memory
BOOT = "import sys; from tercet.sandbox.workers import serve; serve(int(sys.argv[1]))"


class WorkerTimeoutError(TimeoutError):
    """The function did not return in time; its process was killed."""


class WorkerError(RuntimeError):
    """The function raised, or its process died while it ran."""


class WorkerRaisedError(WorkerError):
    """The function raised; its process goes on."""


class WorkerStartError(RuntimeError):
    """No worker could be started, or it could not import the function."""


def call(function: str, args: tuple[Any, ...], seconds: float) -> Any:
    """The result of `function`, "module:name", on `args` in a worker: `call("math:factorial", (5,), 2.0)` is 120.

    The limit covers the function alone, not the import of its module. Arguments are pickled, the result is of numbers,
    texts, lists, tuples and dicts. Safe from any thread: each call has a worker to itself, and there are as many as
    there are cores.
    Raises WorkerTimeoutError, WorkerError or WorkerStartError; after each of them the next call works again.
    """
    pool = _POOLS.get(os.getpid()) or _POOLS.setdefault(os.getpid(), _Pool())  # a forked child gets its own
    with pool.seats:
        answer = None
        while answer is None:
            worker = pool.take()
            try:
                answer = worker.ask(function, args, seconds)
            except BaseException:
                worker.stop()
                raise
            if answer is None:
                worker.stop()
        pool.idle.append(worker)
    return returned(answer, function)


def returned(answer: tuple[str, Any] | None, function: str) -> Any:
    """The result in what a worker answered, of a function that returned."""
    if answer is None:
        raise WorkerError(f"the worker process died before {function} began")
    status, value = answer
    if status == "unavailable":
        raise WorkerStartError(f"{function} cannot be used in a worker process: {value}")
    if status == "raised":
        raise WorkerRaisedError(f"{function} raised {value}")
    return value


class _Pool:
    """Idle workers; the one used last is taken first, so one thread uses one worker."""

    def __init__(self) -> None:
        self.seats = threading.BoundedSemaphore(machine.cores())
        self.idle: list[Worker] = []
        self.owner = os.getpid()
        atexit.register(self.close)

    def take(self) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            if worker.process.poll() is None:
                return worker
            worker.stop()
        return Worker()

    def close(self) -> None:
        while self.idle and self.owner == os.getpid():
            self.idle.pop().stop()


_POOLS: dict[int, _Pool] = {}  # by process id


class _Plain(pickle.Unpickler):
    """Reads numbers, texts and what holds them: code of a user ran in the worker, and names nothing here."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


class Worker:
    """One process and the connection to it; who holds it asks, and stops it in the end."""

    def __init__(self) -> None:
        self.started = False
        self.connection, theirs = Pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
            "PYTHONHASHSEED": "0",  # simplification may depend on the order of sets
            "OMP_NUM_THREADS": "1",
        }
        env.pop("PYTHONWARNINGS", None)
        self.process = subprocess.Popen(
            command(sys.executable, "-c", BOOT, Outside(theirs.fileno())),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=env,
            start_new_session=True,  # Ctrl-C is the caller's business
        )
        theirs.close()

    def ask(self, function: str, args: tuple[Any, ...], seconds: float) -> tuple[str, Any] | None:
        """("done", result), or ("raised" or "unavailable", message); None when it had died since its last call."""
        rested = self.started
        try:
            self.connection.send((function, args, seconds))
            status, value = self._answer(START_SECONDS, f"importing {function}")
            rested = False
            return self._answer(seconds, function) if status == "ready" else (status, value)
        except (EOFError, ConnectionError) as error:
            if rested:  # the function did not begin
                return None
            raise self._lost(function, error) from None

    def _answer(self, seconds: float, what: str) -> tuple[str, Any]:
        if not self.connection.poll(seconds):
            raise WorkerTimeoutError(f"{what} took longer than {seconds:g} s")
        try:
            status, value = _Plain(io.BytesIO(self.connection.recv_bytes(ANSWER_BYTES))).load()
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # too long, or no plain value: the process is not trusted with more
            raise ConnectionError(f"what it answered cannot be read: {error}") from error
        self.started = True
        return str(status), value

    def _lost(self, function: str, error: Exception) -> Exception:
        self.process.kill()
        code = self.process.wait()
        self.log.seek(0)
        tail = self.log.read()[-500:].decode(errors="replace").strip().splitlines()[-1:]
        said = f": {tail[0]}" if tail else ""
        why = f"{type(error).__name__}: {error}".removesuffix(": ")
        if not self.started:
            return WorkerStartError(f"the worker process for {function} could not start{said}")
        return WorkerError(f"the worker process died in {function} (exit status {code}, {why}){said}")

    def stop(self) -> None:
        """Kill the process and reap it."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self.log.close()


def serve(fileno: int) -> None:
    """The worker's main function: answer requests on the connection until the other side closes it."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # macOS takes no limit of the address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES if most < 0 else min(MEMORY_BYTES, most), most))
    logging.disable()  # libraries log about single answers, and the log is read only when the process dies
    connection = Connection(fileno)
    requests: queue.SimpleQueue[tuple[str, tuple[Any, ...], float]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    while True:
        name, args, seconds = requests.get()
        try:
            module, _, attribute = name.partition(":")
            function = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            connection.send(("unavailable", f"{type(error).__name__}: {error}"))
            continue
        connection.send(("ready", None))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not handled: the kernel ends the process
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
        try:
            answer = ("done", function(*args))
        except Exception as error:
            answer = ("raised", f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _listen(connection: Connection, requests: queue.SimpleQueue[tuple[str, tuple[Any, ...], float]]) -> None:
    while True:
        try:
            requests.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)
