"""Run untrusted programs: no network, no files but their own, and limits on everything else.

There are three levels of isolation, taken in this order, each only after a test run has shown that it holds here:
bubblewrap (the `bwrap` command), our own namespaces, and landlock with a filter of system calls. In all three a program
sees the system and the Python libraries read-only (view.py), an empty private folder, a clean environment, and none of
our processes; it may have 64 MB in 4,096 files and folders; and it ends, with everything it has started, at the latest
when its time is over. Where no level holds, running is refused, unless the caller says `sandbox="none"`: then only the
limits remain. Before the first program a probe imports what programs may need, so that a library that is out of sight
is never taken for a wrong program.

Landlock is the weakest: names and sizes of files outside can be asked for, modes and times cannot be changed anywhere,
no sockets can be made, a program cannot signal its own children, and a caller who is killed leaves the program's
folder `tercet-*` among the temporary files. It lies on disk and is measured again and again (folder.py): a program may
pass a limit for some hundredths of a second before it is stopped, and its folders may be 64 deep.

Elsewhere than on Linux there is no isolation: "auto" and the three levels are refused. `sandbox="none"` works, with
fewer limits: what leaves the program's process group is neither counted nor ended.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from tercet.sandbox.program import Ran, carry_out

LEVELS = ("bubblewrap", "namespaces", "landlock")
PROGRAMS: dict[str, str] = tomllib.loads(Path(__file__).with_name("trials.toml").read_text(encoding="utf-8"))


class SandboxError(ValueError):
    """No isolation holds on this machine, or one that does not exist was asked for."""


def run_program(
    source: str | Sequence[str],
    *,
    seconds: float = 3.0,
    memory_mb: int = 1024,
    output_kb: int = 64,
    files: Mapping[str, str] | None = None,
    sandbox: str = "auto",
) -> Ran:
    """Run a Python program, or parts that run one after another in one namespace; passed = the last line was reached.

    `seconds` bounds wall time and, rounded up, CPU time; `memory_mb` each address space, and what all processes hold;
    `output_kb` is how much of the end of the output is kept; `files` (relative path → text) are put into the working
    folder; `sandbox` is "auto", one of LEVELS, or "none".
    Reaching the end is proved by a key in the runner's frame and a number in a pipe, read only for the proof: leaving
    early, with whatever exit code, is a failure. A program written against this very runner, which walks the frames
    for the one and searches the pipes for the other, can still lie about itself; it cannot get out. Where a program
    must not be able to say that it has passed, `run_tests` asks it from another process.
    """
    for name in files or {}:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"files expects paths inside the program's folder, e.g. 'data/a.csv'; got {name!r}")
    order = {"parts": [source] if isinstance(source, str) else list(source), "tests": None, "files": dict(files or {})}
    return _run(order | {"seconds": seconds, "memory_mb": memory_mb}, output_kb, sandbox)


def run_tests(
    source: Sequence[str],
    tests: Sequence[str],
    *,
    seconds: float = 3.0,
    memory_mb: int = 1024,
    sandbox: str = "auto",
) -> Ran:
    """Run a Python program, and its tests in another process of the same sandbox; passed = the tests reached their end.

    The tests' names that neither they nor Python define are the program's; only plain values come over (tester.py
    says what becomes of others). The program never has the tests' text, their frames or their descriptors, and cannot
    look into their process, so it passes by returning what they expect, and by nothing else. With "none" that holds
    where the kernel has landlock, which keeps it from the memory and the descriptors of all other processes.
    """
    order = {"parts": list(source), "tests": list(tests), "files": {}}
    return _run(order | {"seconds": seconds, "memory_mb": memory_mb}, 64, sandbox)


def _run(order: dict[str, Any], output_kb: int, sandbox: str) -> Ran:
    level = isolation(sandbox)
    if cause := lacking(_needed(), level):
        return Ran("error", cause, isolation=level)
    return carry_out(order, level, output_kb)


def isolation(sandbox: str = "auto") -> str:
    """The level that programs run under here: one of LEVELS, or "none" when that was asked for (for the task card).

    A level is tried out once in a process, when first needed. SandboxError says why none holds and what to do.
    """
    if sandbox == "none":
        return sandbox
    if sandbox not in ("auto", *LEVELS):
        raise SandboxError(f"sandbox expects 'auto', 'none' or one of {', '.join(LEVELS)}; got {sandbox!r}")
    if sys.platform != "linux":
        raise SandboxError(
            f"no isolation for untrusted programs on {sys.platform}: {', '.join(LEVELS)} are there on Linux alone. Run "
            'this on Linux (a container will do), or without isolation at your own risk: sandbox = "none"'
        )
    # Only our own namespaces give each of root's programs a user of its own.
    order = sorted(LEVELS, key=lambda level: level != "namespaces") if os.geteuid() == 0 else LEVELS
    wanted = order if sandbox == "auto" else [sandbox]
    reasons = []
    for level in wanted:
        with TRYING:
            reason = _why_not(level)
        if not reason:
            return level
        reasons.append(f"{level}: {reason}")
    raise SandboxError(
        f"no isolation for untrusted programs on this machine ({'; '.join(reasons)}). Install bubblewrap, or allow "
        'user namespaces or landlock, or run without isolation at your own risk: sandbox = "none"'
    )


def ready(sandbox: str = "auto") -> str:
    """`isolation`, asked before long work: SandboxError also where a module that all programs may need is missing."""
    level = isolation(sandbox)
    if cause := lacking(_needed(), level):
        raise SandboxError(cause)
    return level


def lacking(modules: Iterable[str], sandbox: str = "auto", memory_mb: int = 1024) -> str:
    """Why programs cannot import some of these modules, and what to do; empty where they can import all.

    Each is imported once in a process, by a program at the same level and with the same memory.
    """
    level = isolation(sandbox)
    names = list(dict.fromkeys(modules))
    with PROBING:
        known = PROBED.setdefault((level, memory_mb), {})
        try:
            known |= _probe([name for name in names if name not in known], level, memory_mb)
        except _ProbeError as error:  # it may work the next time
            return f"the sandbox ({level}) could not be tried: {error}"
        return "; ".join(known[name] for name in names if known[name])


class _ProbeError(RuntimeError):
    """The probe itself did not run."""


TRYING, PROBING = threading.Lock(), threading.Lock()
PROBED: dict[tuple[str, int], dict[str, str]] = {}  # by level and memory: why a module cannot be imported, or ""
PROBE_SECONDS = 120.0  # for the first import of large libraries from a slow disk
# Parts of the standard library that need shared libraries, which may lie where a program cannot see them.
LINKED = ("bz2", "ctypes", "decimal", "hashlib", "lzma", "sqlite3", "ssl", "uuid", "zlib")


@cache
def _needed() -> list[str]:
    """What every program may import: numpy, and of the standard library what this Python was built with."""
    built = []
    for name in LINKED:
        with suppress(ImportError):
            built.append(importlib.import_module(name).__name__)
    return [*built, "numpy"]


def _probe(names: list[str], level: str, memory_mb: int) -> dict[str, str]:
    """For each module "", or why it cannot be imported; one program for all, and where that breaks one for each."""
    if not names:
        return {}
    order: dict[str, Any] = {
        "parts": [PROGRAMS["probe"].format(names=names)],
        "tests": None,
        "files": {},
        "seconds": PROBE_SECONDS,
        "memory_mb": memory_mb,
    }
    ran = carry_out(order, level, 64)
    if ran.outcome == "error":
        raise _ProbeError(ran.detail)
    if ran.outcome == "passed":
        found = json.loads(ran.stdout_tail.rstrip("\n").rpartition("\n")[2])
    elif len(names) == 1:
        found = {names[0]: ran.detail}
    else:
        return {name: cause for alone in names for name, cause in _probe([alone], level, memory_mb).items()}
    return dict.fromkeys(names, "") | {name: _explain(name, why, level, memory_mb) for name, why in found.items()}


def _explain(name: str, cause: str, level: str, memory_mb: int) -> str:
    """A module that programs cannot import, in words, with what to do."""
    spec = None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
    install = f"{shlex.quote(sys.executable)} -m pip install"
    if name in sys.stdlib_module_names:
        hint = "it belongs to Python: was this Python built without it, or does a library of it lie elsewhere?"
    elif spec:
        hint = (
            f"here it is found ({spec.origin}), but programs see only the system, this Python and its folders of "
            f"packages, and have {memory_mb} MB. Install it into one of these: {install}"
        )
    else:
        hint = f"install what provides it: {install}"
    return f"programs in the sandbox ({level}) cannot import {name} ({cause}); {hint}"


@cache
def _why_not(level: str) -> str:
    """Why a level does not hold here; empty when it does."""
    if level == "bubblewrap" and not shutil.which("bwrap"):
        return "the command bwrap is not installed"
    with tempfile.NamedTemporaryFile("w+") as canary, socket.create_server(("127.0.0.1", 0)) as server:
        canary.write("secret")
        canary.flush()
        port, parent = server.getsockname()[1], os.getpid() if level == "landlock" else 2**22
        text = PROGRAMS["trial"].format(port=port, canary=canary.name, parent=parent)
        ran = carry_out({"parts": [text], "tests": None, "files": {}, "seconds": 10.0, "memory_mb": 1024}, level, 4)
        if Path(canary.name).read_text() != "secret":
            return "a file outside was written"
    return "" if ran.outcome == "passed" else ran.detail
