"""One program in the sandbox, from outside: write its order, start the child, listen to it, and name the outcome.

run.py says what is asked and which level holds; child.py is the half that works inside.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import platform
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from tercet.argv import Outside, command
from tercet.sandbox.child import TREES
from tercet.sandbox.folder import BYTES, DEEPEST, DEPTH, FILES, MOST_FILES, remove
from tercet.sandbox.view import DISK_MB, PRIVATE, interpreter, open_to_all, packages, shields, view, workplace

PROCESSES = 64
FLOOD = 1024  # a program that writes this many times the output we keep is stopped
GRACE = 30.0  # seconds a sandbox may take beside the program's own before it counts as broken
CLEANING = 120.0  # seconds that the removal of a program's folder may take
TOO_MUCH = {FILES: f"more than {MOST_FILES} files", DEPTH: f"folders more than {DEEPEST} deep"}

CALLS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("calls.toml").read_text(encoding="utf-8"))
LANDLOCKED = ("others", "sockets", "modes", "truncate")  # groups of calls that landlock leaves to the filter
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg",
}  # fmt: skip

# The child imports its two modules as parts of packages whose own __init__ never runs, so a start takes milliseconds.
BOOT = """
import sys, types
for name, path in (("tercet", sys.argv[1]), ("tercet.sandbox", sys.argv[2])):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [path]
from tercet.sandbox import child
child.main()
"""


@dataclass(frozen=True)
class Ran:
    """What became of a program: "passed" (it reached its end), "failed", "timeout", or "error" (it did not run).

    Example: `Ran("failed", "AssertionError (line 3): ", "last words\\n", seconds=0.02, isolation="namespaces")`.
    """

    outcome: str
    detail: str = ""
    stdout_tail: str = ""
    seconds: float = 0.0
    isolation: str = ""


def carry_out(order: dict[str, Any], level: str, output_kb: int) -> Ran:
    """Run an order: "parts", "tests", "files", "seconds", "memory_mb", as in run.py.

    Whatever breaks on this side, a full disk or a folder that cannot be removed, is an error of this program alone.
    """
    try:
        return _carried_out(order, level, output_kb)
    except Exception as error:
        return Ran("error", f"the sandbox broke: {type(error).__name__}: {error}", isolation=level)


def _carried_out(order: dict[str, Any], level: str, output_kb: int) -> Ran:
    key, nonce = secrets.token_hex(16).encode(), secrets.token_hex(16).encode()
    with ExitStack() as stack:
        uid = _spare_uid(level)
        folder = stack.enter_context(_folder(uid)) if level in TREES else workplace()
        readers: dict[str, IO[bytes]] = {}
        writers: dict[str, IO[bytes]] = {}
        for name in ("output", "report", "verdict", "nonce"):
            ends = os.pipe()
            readers[name] = stack.enter_context(os.fdopen(ends[0], "rb", buffering=0))
            writers[name] = stack.enter_context(os.fdopen(ends[1], "wb", buffering=0))
        writers["nonce"].write(nonce)  # read only behind the program's last line, so it proves that this was reached
        tests, order = order["tests"], order | _setting(level, folder, uid)
        order |= {
            "tested": tests is not None,
            "key": None if tests else key,
            "capture": "stdout" in "".join(tests or ()),
        }
        inner = {"report": writers["report"], "verdict": writers["verdict"], "nonce": readers.pop("nonce")}
        inner["tests"] = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        if tests:  # the answer's process never has their text, nor what proves their end
            inner["tests"].write(marshal.dumps({"parts": tests, "key": key}))
        order |= {name: file.fileno() for name, file in inner.items()}
        travelling = _written(order)
        process = _start(order, level, writers["output"])
        for file in (*inner.values(), *writers.values()):  # else no pipe would end when the sandbox does
            file.close()
        heard = _listen(process, travelling, readers, (order["seconds"] + GRACE, output_kb))
    return _outcome(heard, key + nonce, level, order)


def _setting(level: str, folder: str, uid: int | None) -> dict[str, Any]:
    """The part of the order that depends on the machine and the level, not on the program."""
    powerless = os.geteuid() == 0 and uid is None  # the kernel does not count root's processes: let there be one
    groups = ["denied", *(LANDLOCKED if level == "landlock" else ()), *(["processes"] if powerless else ())]
    own_count = uid is not None or (level not in TREES and _kernel() >= (5, 14))  # else all of the user's count
    return {
        "linux": sys.platform == "linux",
        "level": level, "folder": folder, "uid": uid, "parent": os.getpid(), "disk_mb": DISK_MB, "view": view(),
        "packages": packages(), "private": [*PRIVATE.items()], "shields": shields(),
        "processes": PROCESSES + (0 if own_count else _threads_of_user()),
        "refused": None if level == "none" else {group: _calls(group) for group in groups},
    }  # fmt: skip


def _calls(group: str) -> list[int]:
    """The numbers that the calls of a group have on this machine, as far as the table lists them."""
    column = 0 if platform.machine() == "x86_64" else -1  # the filter itself refuses machines that it does not know
    found = CALLS.get(group, {}).values()
    return [numbers[column] if isinstance(numbers, list) else numbers for numbers in found]


def _written(order: dict[str, Any]) -> bytes:
    """The order as it travels: paths are bytes, which mean the same to an interpreter with another locale."""
    paths = {name: list(map(os.fsencode, order[name])) for name in ("view", "packages", "shields")}
    return marshal.dumps(order | paths | {"folder": os.fsencode(order["folder"])})


def _start(order: dict[str, Any], level: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
    here = os.path.dirname(os.path.realpath(__file__))
    asked = command(Outside(Path(interpreter())), "-P", "-s", "-S", "-c", BOOT)
    if level == "bubblewrap":
        asked = command(*_bubblewrap(order, here), *asked, "/run/tercet", "/run/tercet/sandbox")
    else:
        asked += command(Outside(Path(here).parent), Outside(Path(here)))
    home = dict.fromkeys(("HOME", "TMPDIR"), order["folder"])
    return subprocess.Popen(
        asked,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        cwd="/",
        env=ENVIRONMENT | home,
        pass_fds=[order[name] for name in ("report", "verdict", "nonce", "tests")],
        start_new_session=True,
    )


def _bubblewrap(order: dict[str, Any], here: str) -> list[str | Outside]:
    words: list[str | Outside] = [Outside(Path(shutil.which("bwrap") or "bwrap")), "--die-with-parent", "--as-pid-1"]
    words += ["--uid", "1000", "--gid", "1000", "--unshare-cgroup-try"]
    words += [f"--unshare-{space}" for space in ("user", "ipc", "pid", "net", "uts")]
    words += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", Outside(Path(here)), "/run/tercet/sandbox"]
    # What is shown may lie below a folder that is the program's own: first the one, then the other.
    for folder, megabytes in (*PRIVATE.items(), *((shield, 1) for shield in order["shields"])):
        words += ["--size", str(megabytes << 20), "--tmpfs", Outside(Path(folder))]
    for path in order["view"]:
        link = os.path.islink(path)
        words += ["--symlink", Outside(os.readlink(path))] if link else ["--ro-bind", Outside(Path(path))]
        words.append(Outside(Path(path)))
    words += ["--dir", Outside(Path(order["folder"])), "--chdir", Outside(Path(order["folder"]))]
    for path in (*order["shields"], "/"):
        words += ["--remount-ro", Outside(Path(path))]
    return [*words, "--"]


@dataclass
class Heard:
    """What came out: the output's end, the program's last word, the supervisor's report, and why it was stopped."""

    output: bytearray = field(default_factory=bytearray)
    verdict: bytearray = field(default_factory=bytearray)
    report: bytearray = field(default_factory=bytearray)
    written: int = 0
    stopped: str = ""


def _listen(
    process: subprocess.Popen[bytes], order: bytes, readers: dict[str, IO[bytes]], bounds: tuple[float, int]
) -> Heard:
    """Everything the sandbox says until its last process has ended; `bounds`: seconds, and KB of output to keep."""
    heard, deadline = Heard(), time.monotonic() + bounds[0]
    keep = max(bounds[1], 1) << 10
    with _ended(process), selectors.DefaultSelector() as selector:
        for name, reader in readers.items():
            os.set_blocking(reader.fileno(), False)
            selector.register(reader, selectors.EVENT_READ, name)
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has died: the report says why
            pipe.write(order)
        while "report" in {key.data for key in selector.get_map().values()}:
            if not heard.stopped and (heard.written > keep * FLOOD or time.monotonic() > deadline):
                heard.stopped = "flood" if heard.written > keep * FLOOD else "late"
                process.terminate()
                deadline += GRACE
            elif heard.stopped and time.monotonic() > deadline:
                process.kill()
            for key, _ in selector.select(1.0):
                _take(heard, key, selector, keep)
        process.wait()
        heard.output += readers["output"].read(keep) or b""
        del heard.output[:-keep]
    return heard


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Wait for the sandbox's end; one that nobody listens to any more ends at once."""
    with process:
        try:
            yield
        except BaseException:
            process.terminate()
            raise


def _take(heard: Heard, key: selectors.SelectorKey, selector: selectors.BaseSelector, keep: int) -> None:
    data = os.read(key.fd, 1 << 16)
    if not data:
        selector.unregister(key.fileobj)
    elif key.data == "output":
        heard.output += data
        heard.written += len(data)
        del heard.output[:-keep]
    elif key.data == "report":
        heard.report += data
    elif len(heard.verdict) < 4096:  # only a forged verdict is longer
        heard.verdict += data


def _outcome(heard: Heard, proof: bytes, level: str, order: dict[str, Any]) -> Ran:
    tail = heard.output.decode(errors="replace")
    lines = heard.report.decode(errors="replace").splitlines()
    broken = next((line.removeprefix("error ") for line in lines if line.startswith("error ")), "")
    end, code, seconds = lines[-1].split() if lines and not broken else ("", "0", "0")
    word, outcome, detail = bytes(heard.verdict), "failed", ""
    if heard.stopped == "flood":
        detail = "stopped for its endless output"
    elif heard.stopped or not end:
        outcome = "error"
        detail = broken or ("the sandbox did not answer" if heard.stopped else f"no report; {tail[-300:]}")
    elif secrets.compare_digest(word, proof):
        outcome = "passed"
    elif end == "timeout" or (end == "signal" and int(code) == signal.SIGXCPU):
        outcome, detail = "timeout", f"not done after {order['seconds']:g} s"
    elif end in ("memory", BYTES):
        detail = f"more than {order[f'{end}_mb']} MB of {end}"
    elif end in TOO_MUCH:
        detail = TOO_MUCH[end]
    elif word.startswith(b"!"):
        detail = word[1:].decode(errors="replace")
    elif end == "closed":
        detail = "closed its connection to the tests"
    else:
        detail = f"ended by signal {code}" if end == "signal" else f"left with code {code} before its last line"
    return Ran(outcome, detail, tail, float(seconds), level)


@contextmanager
def _folder(uid: int | None) -> Iterator[str]:
    """A private folder on disk, removed afterwards whatever the program made of it."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="tercet-"))
    try:
        if uid is not None:
            os.chown(folder, uid, uid)
        yield folder
    except BaseException:
        remove(folder, CLEANING)
        raise
    if problem := remove(folder, CLEANING):
        raise OSError(problem)


def _spare_uid(level: str) -> int | None:
    """An unused user id for one program, where the caller is root and such a user can read Python; else None.

    The kernel counts processes by user, so each program has its own count.
    """
    needed = 1 << 7 | 1 << 6 | (1 << 21 if level == "namespaces" else 1)  # setuid, setgid; mounts, or chown
    if os.geteuid() or level in ("bubblewrap", "none") or _status("CapEff", 16) & needed != needed:
        return None
    if not open_to_all(with_ways=level == "landlock"):
        return None
    with open("/proc/self/uid_map") as file:
        ends = [(int(line.split()[0]) + int(line.split()[2]), int(line.split()[2])) for line in file]
    end, count = max(ends)
    return min(end, 1 << 31) - 2 - secrets.randbelow(min(count // 2, 1 << 24)) if count > 1000 else None


def _threads_of_user() -> int:
    """How many threads the current user has: where its limit counts them all, the program's share comes on top.

    Other systems than Linux count processes.
    """
    if sys.platform != "linux":
        asked = command("ps", "-U", Outside(os.getuid()), "-o", "pid=")
        listing = subprocess.run(asked, capture_output=True, check=True)
        return len(listing.stdout.split())
    total = 0
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(OSError):  # it has just ended
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                total += _status("Threads", 10, pid)
    return total


def _status(name: str, base: int, pid: int | str = "self") -> int:
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1], base) for line in file if line.startswith(f"{name}:")), 0)


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int("".join(takewhile(str.isdecimal, minor)))
