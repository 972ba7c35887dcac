"""Facts of the machine and its system, and the calls that only some systems have, each with its fallback.

Linux and macOS run everything here; what one of them lacks has its fallback beside it, so that nothing else in the
package asks which system it is on (but for the sandbox, whose namespaces only Linux has).
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells the ranks of a stage. Clusters set it for whatever they start, where it is not about stages."""
PR_SET_PDEATHSIG = 1
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
MONITOR_SECONDS = 0.5  # between two checks that the parent lives, where the kernel sends no signal

# Arm's kernels name a core by numbers: (implementer, part) of the cores that servers are rented with.
ARM_CORES = {
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse N1",
    ("0x41", "0xd40"): "Arm Neoverse V1",
    ("0x41", "0xd49"): "Arm Neoverse N2",
    ("0x41", "0xd4f"): "Arm Neoverse V2",
    ("0x41", "0xd84"): "Arm Neoverse V3",
    ("0x41", "0xd8e"): "Arm Neoverse N3",
}


def cores() -> int:
    """How many cores this process may use: those it is bound to, fewer where its container has a smaller quota."""
    bound = getattr(os, "sched_getaffinity", None)  # Linux alone
    own = len(bound(0)) if bound is not None else os.cpu_count() or 1
    return max(1, min(own, _quota() or own))


def _quota() -> int | None:
    """The whole cores that control groups (version 2) leave this process and its neighbours, rounded up."""
    return min((share for place in _groups() if (share := _share(place / "cpu.max"))), default=None)


def _groups(version: str = "0::", root: str = "") -> list[Path]:
    """The folders of this process's control group and of those that hold it; `memory:` is version 1's for memory.

    Inside a container the kernel may name the group as its host sees it; there only the root is to be found.
    """
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line.partition(version)[2].lstrip("/") for line in lines if version in line), None)
    if own is None:
        return []
    top = CGROUPS / root
    return [place for place in (top / own, *(top / own).parents) if place.is_relative_to(top)]


def _share(file: Path) -> int | None:
    """What `cpu.max` says, `150000 100000` for one and a half cores, as whole cores: 2; None for "max"."""
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return None
    return -(-int(quota) // int(period)) if quota != "max" else None


@cache
def processor() -> str:
    """The name of the CPU."""
    if sys.platform == "darwin":
        found = _output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
    else:
        found = _linux_processor()
    return found or platform.processor() or platform.machine() or "unknown"


def cpu_flags() -> set[str]:
    """What the CPU can do, as Linux lists it, `{"avx2", "amx_bf16"}`; nothing elsewhere."""
    flags = next((line for line in _cpuinfo() if line.lower().startswith(("flags", "features"))), "")
    return set(flags.partition(":")[2].split())


def _cpuinfo() -> list[str]:
    try:
        return (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def available_memory() -> float:
    """Bytes of memory that are free here, or could be at once, as Linux says; infinity elsewhere."""
    return min([_free_memory(), *(limit - used for limit, used in _memory_limits())])


def _free_memory() -> float:
    try:
        lines = (PROC / "meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024.0 * int(facts["MemAvailable"].split()[0]) if "MemAvailable" in facts else math.inf


def _memory_limits() -> Iterator[tuple[float, float]]:
    """Of each control group with a limit: its bytes, and how many are used and could not be dropped at once."""
    for place in _groups():
        yield from _limit(place / "memory.max", place / "memory.current", place / "memory.stat")
    for place in _groups("memory:", "memory"):
        yield from _limit(place / "memory.limit_in_bytes", place / "memory.usage_in_bytes", place / "memory.stat")


def _limit(most: Path, used: Path, stat: Path) -> Iterator[tuple[float, float]]:
    with suppress(OSError, ValueError):
        limit = float(most.read_text())  # "max": none
        facts = dict(line.split() for line in stat.read_text().splitlines())
        files = int(facts.get("total_inactive_file", facts.get("inactive_file", "0")))  # of version 1 and 2
        yield limit, max(0, int(used.read_text()) - files)


def _linux_processor() -> str:
    facts: dict[str, str] = {}
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    if name := facts.get("model name") or facts.get("Model"):
        return name
    core = facts.get("CPU implementer", ""), facts.get("CPU part", "")
    return ARM_CORES.get(core, f"Arm core {'/'.join(core)}" if all(core) else "")


def _output(*command: str) -> str:
    """What a command of the system prints; nothing where it is missing or fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def thread_seconds(task: int) -> float:
    """Seconds of the processor that a thread of this process has used; of the clock where the system does not say."""
    if not os.path.exists("/proc/self/stat"):
        return time.monotonic()
    with open(f"/proc/self/task/{task}/stat", encoding="utf-8") as stream:
        user, system = stream.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def memory_bytes() -> int | None:
    """The memory of the machine, or of the container where that has less; where the system reports it."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return int(min([found, *(limit for limit, _ in _memory_limits())]))


def peak_rss_bytes(peak: int | None = None) -> int:
    """Peak of resident memory: of this process, or of another whose `ru_maxrss` is given."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else peak
    return found * (1 if sys.platform == "darwin" else 1024)  # Linux and the BSDs count KiB


def keep_heap() -> None:
    """Let this process keep the memory that it frees, for its next allocation of any size (glibc only).

    A training step frees and allocates gigabytes; handed back to the system they come as fresh pages, each a fault and
    a pass of zeros: a fifth of a step in bf16. The peak does not grow.
    """
    if (mallopt := _libc_function("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 << 20)


def trim_heap() -> None:
    """Give freed pieces of the heap back to the system; only glibc has to be asked."""
    if (trim := _libc_function("malloc_trim")) is not None:
        trim(0)


@cache
def _libc_function(name: str) -> ctypes._NamedFuncPointer | None:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # a system without one library of all symbols
        return None


def die_with_parent(number: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Let this process get signal `number` when the one that started it ends, even by SIGKILL.

    Linux does so by itself. Elsewhere a thread looks at the parent: it lives as long as this program, not past `exec`.
    `parent` is the process that started this one, where that is known: it may have ended before this call.
    """
    if sys.platform == "linux" and (prctl := _libc_function("prctl")) is not None:
        prctl(PR_SET_PDEATHSIG, number)
        if parent not in (None, os.getppid()):
            os.kill(os.getpid(), number)
        return
    monitor = threading.Thread(target=_monitor, args=(parent or os.getppid(), number), name="parent", daemon=True)
    monitor.start()


def _monitor(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(MONITOR_SECONDS)
    os.kill(os.getpid(), number)
