"""Facts of the machine: what Linux tells, what stands in for it elsewhere, and that nobody asks the system directly."""

from __future__ import annotations

import ast
import ctypes
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tercet import machine

SOURCE = Path(__file__).parents[1] / "src" / "tercet"
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) CPU\ncpu MHz\t: 2000\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine whose /proc and control groups are folders of the test's own."""
    for name in ("PROC", "CGROUPS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(machine, name, tmp_path / name)
    for function in (machine.processor, machine._libc_function):
        function.cache_clear()
    yield tmp_path
    for function in (machine.processor, machine._libc_function):
        function.cache_clear()


def test_cores_are_those_the_process_is_bound_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 3, 5}, raising=False)
    assert machine.cores() == 3


def test_cores_without_affinity_are_those_of_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


@pytest.mark.parametrize(
    ("own", "above", "cores"),
    [("max 100000", "max 100000", 8), ("150000 100000", "max 100000", 2), ("max 100000", "300000 100000", 3)],
)
def test_a_quota_of_the_container_or_of_what_holds_it_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, own: str, above: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    group = folder / "CGROUPS" / "job" / "step"
    group.mkdir(parents=True)
    (folder / "PROC" / "self").mkdir()
    (folder / "PROC" / "self" / "cgroup").write_text("1:cpu:/old\n0::/job/step\n")
    (group / "cpu.max").write_text(own + "\n")
    (group.parent / "cpu.max").write_text(above + "\n")
    assert machine.cores() == cores


MEMORY_2 = {"memory.max": "max", "memory.current": "900", "memory.stat": "anon 1\ninactive_file 100\n"}
MEMORY_1 = {
    "memory.limit_in_bytes": "9223372036854771712",
    "memory.usage_in_bytes": "900",
    "memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
}


@pytest.mark.parametrize(
    ("group", "own", "above", "most", "free"),
    [
        ("0::/job/step", MEMORY_2, {}, None, 5000 * 1024),
        ("0::/job/step", MEMORY_2 | {"memory.max": "2000"}, {}, 2000, 1200),
        ("0::/job/step", MEMORY_2, MEMORY_2 | {"memory.max": "3000", "memory.current": "2500"}, 3000, 600),
        ("5:cpu,memory:/job/step", MEMORY_1, {}, None, 5000 * 1024),
        ("5:cpu,memory:/job/step", MEMORY_1 | {"memory.limit_in_bytes": "2000"}, {}, 2000, 1200),
        ("5:cpu,memory:/as/its/host/sees/it", {}, MEMORY_1 | {"memory.limit_in_bytes": "2000"}, 2000, 1200),
    ],
)
def test_a_containers_limit_is_the_memory_that_counts(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    own: dict[str, str],
    above: dict[str, str],
    most: int | None,
    free: int,
) -> None:
    root = folder / "CGROUPS" / ("memory" if "memory" in group else "")
    (root / "job" / "step").mkdir(parents=True)
    (folder / "PROC" / "self").mkdir()
    (folder / "PROC" / "self" / "cgroup").write_text(f"3:pids:/old\n{group}\n")
    (folder / "PROC" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10_000}.__getitem__)
    for place, files in ((root / "job" / "step", own), (root, above)):
        for name, text in files.items():
            (place / name).write_text(text)
    assert machine.memory_bytes() == (most or 4096 * 10_000)
    assert machine.available_memory() == free


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (X86, "Intel(R) Xeon(R) CPU"),
        (ARM.format(part="0xd0c"), "Arm Neoverse N1"),
        (ARM.format(part="0xfff"), "Arm core 0x41/0xfff"),
        (ARM.format(part="0xd0b") + "\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_linux_names_the_processor_also_an_arm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    (folder / "PROC" / "cpuinfo").write_text(text)
    assert machine.processor() == name


def test_macos_is_asked_for_its_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...], **_options: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout="Apple M4 Pro\n")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.processor() == "Apple M4 Pro"
    assert asked == [("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")]


@pytest.mark.parametrize("system", ["linux", "darwin", "freebsd15"])
def test_a_system_that_names_no_processor_leaves_what_python_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(machine, "_output", lambda *_command: "")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert machine.processor() == "riscv64"


def test_a_command_that_is_missing_or_fails_says_nothing() -> None:
    assert machine._output("/no/such/command") == ""
    assert machine._output(sys.executable, "-c", "print('x'); raise SystemExit(1)") == ""
    assert machine._output(sys.executable, "-c", "print(' x ')") == "x"


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (machine.memory_bytes() or 0) > 1 << 28

    def unknown(name: str) -> int:
        raise ValueError(f"unrecognized configuration name {name}")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert machine.memory_bytes() is None


def test_the_peak_of_memory_is_in_kib_on_linux_and_in_bytes_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.peak_rss_bytes(3 << 20) == 3 << 30
    assert machine.peak_rss_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.peak_rss_bytes(3 << 20) == 3 << 20


def test_a_heap_that_cannot_be_trimmed_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=trimmed.append))
    machine.trim_heap()
    assert trimmed == [0]
    for missing in (lambda _name: SimpleNamespace(), lambda _name: ctypes.PyDLL("/no/such/library")):
        machine._libc_function.cache_clear()
        monkeypatch.setattr(ctypes, "CDLL", missing)
        machine.trim_heap()
    assert trimmed == [0]


CHILD = """
import os, signal, sys, time
from tercet import machine
sys.platform = {system!r}
machine.die_with_parent(signal.{number})
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_a_process_ends_with_a_killed_parent_on_every_system(system: str, number: str) -> None:
    if system == "linux" and sys.platform != "linux":
        pytest.skip("the kernel's own way is Linux's")
    command = [sys.executable, "-c", PARENT, CHILD.format(system=system, number=number)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert running(child)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def running(pid: int) -> bool:
    """Whether a process lives; one that waits to be reaped does not."""
    state = subprocess.run(("ps", "-o", "stat=", "-p", str(pid)), capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def test_a_process_whose_parent_lives_goes_on_where_a_thread_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    script = CHILD.format(system="darwin", number="SIGKILL").replace("time.sleep(60)", "time.sleep(1.2)")
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# ---- nobody asks the system directly ----

ONLY_LINUX = {
    "sched_getaffinity", "sched_setaffinity", "prctl", "malloc_trim", "ru_maxrss", "CDLL", "sigtimedwait",
    "sigwaitinfo", "unshare", "setns", "memfd_create", "posix_fadvise", "posix_fallocate", "O_TMPFILE", "O_PATH",
    "O_DIRECT", "eventfd", "pidfd_open", "splice", "copy_file_range", "setresuid", "setresgid", "getrandom", "epoll",
    "prlimit", "waitid", "fdatasync", "accept4", "preadv2", "CLOCK_BOOTTIME", "RLIMIT_AS", "sched_yield",
}  # fmt: skip
FOLDERS = ("/proc", "/sys", "/dev/shm")
GUARDED = {
    "machine": "the one place",
    "kernels/native": "loads a library of our own",
    "sandbox/program": "refuses elsewhere, but for sandbox = none",
    "sandbox/run": "the same",
    "sandbox/view": "shows what is there",
    "sandbox/child": "asks the order whether this is Linux",
    "sandbox/inside": "the same",
    "sandbox/folder": "asks whether there is O_PATH",
    "sandbox/kernel": "called on Linux alone",
    "sandbox/workers": "RLIMIT_AS, where the system takes it",
}


def only_linux(tree: ast.Module) -> list[str]:
    """Names and paths in a module that not every Unix has."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ONLY_LINUX:
            found.append(f"line {node.lineno} uses {node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found += [f"line {node.lineno} imports {a.name}" for a in node.names if a.name in ONLY_LINUX]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(FOLDERS):
            found.append(f"line {node.lineno} reads {node.value}")
    return found


def test_only_the_machine_and_the_sandbox_use_what_linux_alone_has() -> None:
    found = {}
    for file in SOURCE.rglob("*.py"):
        name = file.relative_to(SOURCE).with_suffix("").as_posix()
        if name not in GUARDED and (lines := only_linux(ast.parse(file.read_text(encoding="utf-8")))):
            found[name] = lines
    assert not found, found


@pytest.mark.parametrize(
    "text",
    ["os.sched_getaffinity(0)", "from signal import sigtimedwait", "Path('/proc/cpuinfo')", "usage.ru_maxrss / 1024"],
)
def test_a_forbidden_call_is_found(text: str) -> None:
    assert len(only_linux(ast.parse(text))) == 1


# ---- Windows ----


@pytest.mark.parametrize(
    "text", ["import tercet", "import tercet.cli.main", "import runpy; runpy.run_module('tercet')"]
)
def test_windows_gets_one_sentence(text: str) -> None:
    script = f"import sys; sys.platform = 'win32'; sys.modules['fcntl'] = sys.modules['resource'] = None; {text}"
    environment = os.environ | {"PYTHONPATH": str(SOURCE.parent)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "WSL" in run.stderr
