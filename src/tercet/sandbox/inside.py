"""The innermost processes of the sandbox: give up every right, then run a program, an answer, or its tests.

child.py starts them. A program that is run alone proves its end by a key and a number that is read only behind its last
line. Where an answer is tested there are two processes: the answer's (answer.py) has no descriptor but its end of the
line to the tests, and neither their text nor the key was ever in its memory; the tests' (tester.py) gets both from a
file without a name, and no other process may look into it.
"""

from __future__ import annotations

import builtins
import marshal
import os
import resource
import signal
import sys

from tercet.sandbox import kernel
from tercet.sandbox.answer import AnswerProcess
from tercet.sandbox.tester import AnswerFailedError, Questions, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any, NoReturn

    Order = dict[str, Any]

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def run_alone(order: Order) -> NoReturn:
    """The program of an order whose parts run one after another."""
    _give_up(order, (order["nonce"], order["verdict"]), hidden=False)
    space = _main()
    _prove(order["key"], order["nonce"], order["verdict"], lambda: _execute(_compiled(order["parts"]), space))


def run_answer(order: Order, ends: tuple[int, int]) -> NoReturn:
    """The answer's half: its own code, then what the tests ask."""
    _give_up(order, ends, hidden=False)
    space, failure = _main(), ""
    answer = AnswerProcess(space, ends, capture=order["capture"])
    describe = _describe
    try:
        _execute(_compiled(order["parts"]), space)
    except BaseException as error:
        failure = describe(error)
    answer.serve(failure)


def run_tests(order: Order, ends: tuple[int, int]) -> NoReturn:
    """The tests' half: their text comes from the file, the answer's names from the line."""
    os.lseek(order["tests"], 0, os.SEEK_SET)
    with open(order["tests"], "rb") as file:
        tests = marshal.load(file)  # program.py has written it
    _give_up(order | {"files": {}}, (*ends, order["nonce"], order["verdict"]), hidden=True)
    space, verdict = _main(), order["verdict"]

    def broken(why: str) -> NoReturn:
        os.write(verdict, f"!{why}".encode(errors="replace"))
        os._exit(1)

    def run() -> None:
        codes = _compiled(tests["parts"])
        connect(Questions(ends, broken), codes, space)
        _execute(codes, space)

    _prove(tests["key"], order["nonce"], verdict, run)


def _give_up(order: Order, kept: tuple[int, ...], *, hidden: bool) -> None:
    """Every right and every file is given up but the three standard ones and those `kept`."""
    _limit(order)
    for name, text in order["files"].items():
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    _confine(order, hidden=hidden)
    below = 3
    for fd in sorted(kept):
        os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, 4096)
    sys.path += order["packages"]
    for name in [name for name in sys.modules if name.split(".")[0] == "tercet"]:
        del sys.modules[name]


def _limit(order: Order) -> None:
    os.setsid()
    if order["linux"]:
        kernel.prctl(kernel.DEATH_SIGNAL, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGALRM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["folder"])
    limits = {
        "AS": order["memory_mb"] << 20, "CPU": int(order["seconds"]) + 2, "FSIZE": order["disk_mb"] << 20, "CORE": 0,
        "NPROC": order["processes"], "NOFILE": 256, "STACK": 8 << 20, "MEMLOCK": 1 << 20, "MSGQUEUE": 0,
    }  # fmt: skip
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:  # message queues are Linux's own
            continue
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (OSError, ValueError):  # macOS takes no limit of the address space
            if order["linux"]:
                raise
    if order["uid"] is not None:
        os.setgroups([])
        os.setresgid(order["uid"], order["uid"], order["uid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])


def _confine(order: Order, *, hidden: bool) -> None:
    """`hidden`: no other process of the sandbox may read this one, nor its descriptors, not even with the same user."""
    if order["level"] != "none":
        kernel.drop_capabilities()
    if order["linux"]:
        # Taken away by the change of user; /proc/self would be closed without it.
        kernel.prctl(kernel.DUMPABLE, 0 if hidden else 1)
    if order["level"] == "landlock":
        kernel.landlock(order["view"], [order["folder"], *DEVICES])
    elif order["level"] == "none" and order["linux"]:
        kernel.stand_apart()
    if order["refused"] is not None:
        kernel.filter_calls(order["refused"])


def _main() -> dict[str, Any]:
    """A fresh `__main__`."""
    sys.modules["__main__"] = main = type(sys)("__main__")
    sys.argv[:] = ["program.py"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    return main.__dict__


def _compiled(parts: list[str]) -> list[CodeType]:
    return [compile(part, "<program>", "exec", dont_inherit=True) for part in parts]


def _execute(codes: list[CodeType], space: dict[str, Any]) -> None:
    execute = exec  # the first part may replace it for the second
    for code in codes:
        execute(code, space)


def _prove(key: bytes, nonce: int, verdict: int, run: Callable[[], None]) -> NoReturn:
    """Run; key and nonce are passed on only where that came to its end.

    The functions needed at the end are bound before: a program that replaces `os.write` changes nothing here.
    """
    read, write, leave, pid, flush, describe = os.read, os.write, os._exit, os.getpid, sys.stdout.flush, _describe
    me, word, status = pid(), b"", 0
    try:
        run()
    except AnswerFailedError as error:
        word, status = f"!{error}".encode(errors="replace"), 1
    except BaseException as error:
        word, status = f"!{describe(error)}".encode(errors="replace"), 1
    try:
        if pid() == me:  # not the child of a fork
            write(verdict, word or key + read(nonce, 64))
        flush()
    finally:
        leave(status)


def _describe(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = str(error).strip()[:500]
    except BaseException:
        text = "(its text cannot be read)"
    line, trace = 0, error.__traceback__
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<program>" else line
        trace = trace.tb_next
    place = f" (line {line})" if line else ""
    if isinstance(error, SystemExit):
        place += ", before the last line was reached"
    return f"{name}{place}: {text}"
