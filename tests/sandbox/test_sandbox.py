"""Hostile programs, at every level of isolation that holds on this machine; each must leave the host as it was."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tercet.sandbox import program as program_module
from tercet.sandbox import run as run_module
from tercet.sandbox import view
from tercet.sandbox.run import SandboxError, isolation, run_program

CHILD = "tercet.sandbox import child"  # in the command of every process of a sandbox

PRELUDE = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading, time
def attempt(what):
    try:
        what()
    except (OSError, ValueError, MemoryError):
        return
    print("ESC" + "APED")
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def append(path):
    with open(path, "a") as file:
        file.write("harm")
"""

# name: (program, how it may end). Loops and bombs are bounded here, should a limit be missing.
HOSTILE: dict[str, tuple[str, str]] = {
    "connect": ("attempt(lambda: socket.create_connection(('127.0.0.1', PORT), 1))", "passed"),
    "connect out": ("attempt(lambda: socket.create_connection(('192.0.2.1', 80), 1))", "passed"),
    "send a datagram": (
        "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53)))",
        "passed",
    ),
    "look up a name": ("attempt(lambda: socket.getaddrinfo('example.org', 80))", "passed"),
    "unix socket": ("attempt(lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + ABSTRACT))", "passed"),
    "fork bomb": ("for _ in range(9): os.fork()\ntime.sleep(3)", "failed timeout"),
    "thread bomb": ("for _ in range(500): threading.Thread(target=time.sleep, args=(3,)).start()", "failed"),
    "memory": ("hoard = [bytearray(b'x') * (20 << 20) for _ in range(50)]", "failed"),
    "memory of many": (
        "for _ in range(6):\n    if not os.fork(): break\nhoard = bytearray(b'x') * (100 << 20)\ntime.sleep(3)",
        "failed",
    ),
    "one large file": ("f = open('big', 'wb')\nfor _ in range(300): f.write(bytes(1 << 20))", "failed"),
    "many files": ("for i in range(60): open(str(i), 'wb').write(bytes(5 << 20)); time.sleep(0.01)", "failed"),
    "many inodes": ("for i in range(20000): open(str(i), 'w').close()", "passed failed timeout"),
    "write outside": ("attempt(lambda: append(MARKER) if os.path.exists(MARKER) else open('/'))", "passed failed"),
    "write to etc": ("for p in ('/etc/passwd', '/etc/new', '/usr/new', '/new'): attempt(lambda: append(p))", "passed"),
    "write to temporary folder": ("try: append(OUTSIDE)\nexcept OSError: pass", "passed"),
    "write to the project": ("attempt(lambda: open(PROJECT, 'r+'))", "passed"),
    "write to the libraries": ("attempt(lambda: append(os.path.dirname(os.__file__) + '/harm.py'))", "passed"),
    "read a file": ("attempt(lambda: open(MARKER))", "passed"),
    "read the home folder": ("for n in AT_HOME: attempt(lambda: open(os.path.join(HOME, n)).read(1))", "passed"),
    "read the environment": ("assert SECRET[::-1] not in str(os.environ)", "passed"),
    "read environments": (
        "for pid in (PARENT, WITNESS, os.getppid()): attempt(lambda: open(f'/proc/{pid}/environ').read())",
        "passed",
    ),
    "read memory": ("for p in (PARENT, os.getppid()): attempt(lambda: open(f'/proc/{p}/mem', 'rb+'))", "passed"),
    "ptrace": ("for p in (PARENT, WITNESS, os.getppid()): attempt(lambda: call('ptrace', 16, p, 0, 0))", "passed"),
    "kill the witness": ("attempt(lambda: os.kill(WITNESS, 9) if WITNESS > 99 else open('/'))", "passed failed"),
    "kill the supervisor": ("try: os.kill(os.getppid() or 1, 9)\nexcept OSError: pass\ntime.sleep(0.1)", "passed"),
    "signal everybody": ("attempt(lambda: os.kill(-1, signal.SIGCONT))", "passed"),
    "ignore the end": (
        "for s in range(1, 32):\n    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\nwhile True: time.sleep(60)",
        "timeout",
    ),
    "daemon": (
        "if not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(60)\n    os._exit(0)",
        "passed failed",
    ),
    "orphans": ("subprocess.Popen(['sleep', '60'], start_new_session=True)", "passed failed"),
    "endless output": ("while True: print('x' * 10000)", "failed"),
    "endless loop": ("while True: pass", "timeout"),
    "sleep": ("time.sleep(60)", "timeout"),
    "symbolic link": ("os.symlink(MARKER, 'link'); attempt(lambda: append('link'))", "passed"),
    "hard link": ("attempt(lambda: os.link(MARKER, 'hard'))", "passed"),
    "change modes": ("try: os.chmod(MARKER, 0o777); os.utime(MARKER, (0, 0))\nexcept OSError: pass", "passed"),
    "become another user": ("attempt(lambda: os.setuid(0 if os.getuid() else 1))", "passed"),
    "close everything": ("os.closerange(0, 4096)", "failed"),
    "raise limits": (
        "for n in ('AS', 'CPU', 'NPROC', 'FSIZE'):\n"
        "    attempt(lambda: resource.setrlimit(getattr(resource, 'RLIMIT_' + n), (1 << 40, 1 << 40)))",
        "passed",
    ),
    "limits of others": ("attempt(lambda: resource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (1, 1)))", "passed"),
    "unlink the runner": ("for p in (sys.executable, RUNNER): attempt(lambda: os.unlink(p))", "passed"),
    "mount": ("attempt(lambda: call('mount', b'none', b'.', b'tmpfs', 0, None))", "passed"),
    "new namespaces": ("for f in (0x10000000, 0x20000): attempt(lambda: call('unshare', f))", "passed"),
    "change root": ("attempt(lambda: os.chroot('.'))", "passed"),
    "unlimited memory": (
        "attempt(lambda: os.memfd_create('x')); attempt(lambda: call('shmget', 0, 4096, 512))",
        "passed",
    ),
    "leave early": ("sys.exit(0)", "failed"),
    "leave at once": ("os._exit(0)", "failed"),
    "become another": ("os.execv('/bin/true', ['true'])", "failed"),
    "leave the rest to a child": ("if os.fork(): time.sleep(0.1); os._exit(0)", "failed"),
    "forge the word": (
        "for fd in range(1, 20):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
        "failed",
    ),
    "steal the number": (
        "found = b''\n"
        "for fd in range(3, 60):\n"
        "    try: os.set_blocking(fd, False); found = os.read(fd, 64) or found\n"
        "    except OSError: pass\n"
        "for fd in range(3, 60):\n"
        "    try: os.write(fd, found)\n"
        "    except OSError: pass\n"
        "os._exit(0)",
        "failed",
    ),
    "long last words": ("raise ValueError('x' * 10_000_000)", "failed"),
    "no last words": ("class E(Exception):\n    def __str__(self): sys.exit()\nraise E", "failed"),
    "recursion": ("def f(): return f()\nf()", "failed"),
    "crash": ("ctypes.string_at(0)", "failed"),
}


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces", "landlock"])
def level(request: pytest.FixtureRequest) -> str:
    try:
        return isolation(request.param)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def orphans_come_to_us() -> Iterator[None]:
    """Whatever survives a sandbox becomes a child of this process, and can be seen."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    yield
    libc.prctl(36, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def witness() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_leaves_the_host_as_it_was(
    name: str, level: str, witness: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, endings = HOSTILE[name]
    marker, outside = tmp_path / "marker", Path(tempfile.gettempdir(), f"tercet-outside-{os.getpid()}")
    marker.write_text("untouched")
    marker.chmod(0o600)
    before = marker.stat()
    monkeypatch.setenv("TERCET_TOKEN", "a-secret")
    abstract = f"tercet-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as plug:
        plug.bind(f"\0{abstract}")
        plug.listen()
        home = Path.home()
        facts = {
            "PORT": server.getsockname()[1], "ABSTRACT": abstract, "MARKER": str(marker), "OUTSIDE": str(outside),
            "PROJECT": __file__, "RUNNER": run_module.__file__, "HOME": str(home), "PARENT": os.getpid(),
            "AT_HOME": [path.name for path in home.iterdir() if path.is_file()], "SECRET": "a-secret"[::-1],
            "WITNESS": witness.pid,
        }  # fmt: skip
        program = "\n".join([*(f"{key} = {value!r}" for key, value in facts.items()), PRELUDE, source])
        ran = run_program(program, seconds=1.0, memory_mb=256, output_kb=4, sandbox=level)
    assert ran.outcome in endings.split(), ran
    assert "ESCAPED" not in ran.stdout_tail, ran
    assert len(ran.detail) < 1000
    assert len(ran.stdout_tail) <= 4096
    assert ran.isolation == level
    after = marker.stat()
    assert (marker.read_text(), after.st_mode, after.st_mtime) == ("untouched", before.st_mode, before.st_mtime)
    assert not outside.exists()
    assert witness.poll() is None
    assert survivors({witness.pid}) == []


def test_what_a_program_needs_is_there(level: str) -> None:
    source = """
import json, os, random, tempfile
import numpy
assert os.environ["HOME"] == os.getcwd()
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, "x"), "w").write("hello")
assert open("data/in.txt").read() == "given"
assert numpy.arange(3).sum() == 3
print(hash("the same everywhere"), "done")
"""
    first, second = (run_program(source, files={"data/in.txt": "given"}, sandbox=level) for _ in range(2))
    assert first.outcome == "passed", first
    assert first.stdout_tail.endswith("done\n")
    assert first.stdout_tail == second.stdout_tail


def test_parts_share_one_namespace_and_the_reason_of_a_failure_is_given(level: str) -> None:
    assert run_program(["def f(x): return x + 1", "assert f(1) == 2"], sandbox=level).outcome == "passed"
    ran = run_program(["def f(x): return x", "\n\nassert f(1) == 2, 'not two'"], sandbox=level)
    assert (ran.outcome, ran.detail) == ("failed", "AssertionError (line 3): not two")
    assert run_program("this is no Python", sandbox=level).detail.startswith("SyntaxError")
    assert run_program(["x = '''", "pass"], sandbox=level).outcome == "failed"  # one part cannot swallow the next


def test_many_programs_may_run_at_once() -> None:
    programs = [f"assert {number} % 3\nprint({number})" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(partial(run_program, seconds=10.0), programs))
    assert [one.outcome for one in ran] == ["passed" if number % 3 else "failed" for number in range(12)]
    assert [one.stdout_tail.strip() for one in ran if one.outcome == "passed"] == [str(n) for n in range(12) if n % 3]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own may not be."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_no_private_folder_stays_behind(level: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    ran = run_program("import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.mkdir('closed', 0)", sandbox=level)
    assert ran.outcome == "passed", ran
    assert list(open_folder.iterdir()) == []


def test_a_killed_caller_leaves_no_program_running(level: str, open_folder: Path) -> None:
    text = "from tercet.sandbox.run import run_program; "
    text += f"run_program('import time; time.sleep(60)', seconds=60, sandbox={level!r})"
    with subprocess.Popen([sys.executable, "-c", text], env=os.environ | {"TMPDIR": str(open_folder)}) as caller:
        deadline = time.monotonic() + 30
        while not any(CHILD in command(pid) for pid in children(caller.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        caller.send_signal(signal.SIGKILL)
    assert survivors(set()) == []


def test_without_isolation_only_the_caller_may_decide_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_why_not", lambda level: "not here")
    with pytest.raises(SandboxError, match=r'no isolation.*landlock: not here.*sandbox = "none"'):
        run_program("pass")
    assert isolation("none") == "none"
    assert run_program("pass", sandbox="none").outcome == "passed"
    assert run_program("while True: pass", seconds=0.3, sandbox="none").outcome == "timeout"
    with pytest.raises(SandboxError, match="expects 'auto'"):
        isolation("jail")


def test_a_machine_whose_calls_nobody_listed_is_left_to_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert set(program_module._setting("landlock", "/", None)["refused"]) >= {"denied", "others", "modes"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that is no Linux, as far as the sandbox asks."""
    view.view(), view.shields()  # Python's own configuration is read once, and depends on the system
    monkeypatch.setattr(sys, "platform", "darwin")


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_than_on_linux_no_isolation_is_claimed() -> None:
    for level in ("auto", *run_module.LEVELS):
        with pytest.raises(SandboxError, match=r'no isolation.* on darwin: .*on Linux alone.*sandbox = "none"'):
            run_program("pass", sandbox=level)
    assert isolation("none") == "none"


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_the_limits_hold_without_isolation() -> None:
    def run(source: str, **limits: Any) -> run_module.Ran:
        return run_program(source, sandbox="none", **limits)

    assert run("import os\nopen('a', 'w').write(os.getcwd())", files={"b": "x"}).outcome == "passed"
    assert run("raise ValueError('no')").detail == "ValueError (line 1): no"
    assert run("import os; os._exit(0)").detail == "left with code 0 before its last line"
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").detail == "ended by signal 11"
    assert run("while True: pass", seconds=0.5).outcome == "timeout"
    hoard = "import subprocess, sys, time\nhoard = 'x = bytearray(b\"x\") * (90 << 20); import time; time.sleep(20)'\n"
    hoard += "for _ in range(3): subprocess.Popen([sys.executable, '-c', hoard])\ntime.sleep(20)"
    assert run(hoard, seconds=15.0, memory_mb=200).detail == "more than 200 MB of memory"
    grow = "for n in range(9): open(str(n), 'wb').write(bytes(20 << 20))\nimport time; time.sleep(20)"
    assert run(grow, seconds=15.0).detail == "more than 64 MB of disk"
    assert survivors(set()) == []


@pytest.mark.usefixtures("elsewhere")
def test_elsewhere_what_a_program_leaves_running_in_its_group_ends_with_it() -> None:
    ran = run_program("import os, time\nif not os.fork(): time.sleep(60)", sandbox="none")
    assert ran.outcome == "passed", ran
    assert survivors(set()) == []


def test_elsewhere_a_killed_caller_leaves_no_program_running(open_folder: Path) -> None:
    text = "import sys; from tercet.sandbox import view; from tercet.sandbox.run import run_program; "
    text += "view.view(); sys.platform = 'darwin'; "
    text += "run_program('import time; time.sleep(60)', seconds=60, sandbox='none')"
    with subprocess.Popen([sys.executable, "-c", text], env=os.environ | {"TMPDIR": str(open_folder)}) as caller:
        deadline = time.monotonic() + 30
        while not any(CHILD in command(pid) for pid in children(caller.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert children(caller.pid)
        caller.send_signal(signal.SIGKILL)
    assert survivors(set()) == []


def test_a_broken_sandbox_is_an_error_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "BOOT", "raise SystemExit('no child today')")
    ran = run_program("pass", sandbox="none")
    assert ran.outcome == "error"
    assert "no child today" in ran.detail


def test_files_stay_in_the_folder() -> None:
    with pytest.raises(ValueError, match="inside the program's folder"):
        run_program("pass", files={"../x": ""}, sandbox="none")


def children(pid: int) -> set[int]:
    found: set[int] = set()
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in listing.read_text().split()}
        except OSError:  # a thread has just ended
            continue
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


def survivors(known: set[int]) -> list[str]:
    """Commands of sandboxed processes that still live as children of this one; the dead are buried."""
    alive: set[int] = set()
    for _ in range(100):
        alive = {pid for pid in children(os.getpid()) - known if CHILD in command(pid) or not command(pid)}
        for pid in alive:
            os.waitpid(pid, os.WNOHANG)
        if not alive:
            break
        time.sleep(0.02)
    return [f"{pid} {command(pid)}" for pid in alive]
