"""The inner half of the sandbox: isolate the program, start it, watch it, and leave no process alive.

Two processes share this module. The launcher is started by program.py with a clean environment. The supervisor (the
first process of the new namespaces, or the launcher itself where there are none) watches time and memory, and when it
ends everything below it has ended. It forks the untrusted program's process, or an answer's and its tests' (inside.py),
which saves starts. program.py talks to them over standard input (the order, marshalled), three pipes and a file: the
supervisor writes `report`, the process of the program or of the tests reads `nonce` and `tests` and writes `verdict`.
Every program pays for each import, so there are few. Elsewhere than on Linux there is only the level "none", and the
supervisor knows only the process groups that it has started.
"""

from __future__ import annotations

import marshal
import os
import resource
import signal
import sys
import time

from tercet.sandbox import folder, inside, kernel
from tercet.sandbox.inside import DEVICES
from tercet.sandbox.tester import GONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Order = dict[str, Any]

BEAT, SLOW_BEAT = 0.05, 0.25  # seconds between two looks at the memory; the second where a command must be run for it
ROOT = "/tmp"  # where the new root is built; every Linux has it
LOST = 1.0  # seconds to wait for the end of an answer's process that has closed its line to the tests
PRIVATE = ("nonce", "verdict", "tests")  # descriptors of the program's or the tests' process alone
TREES = ("landlock", "none")  # without a namespace of processes: the supervisor ends them, the folder lies on disk


def main() -> None:
    """Carry out the order that comes on standard input."""
    order: Order = marshal.loads(sys.stdin.buffer.read())
    order |= {name: list(map(os.fsdecode, order[name])) for name in ("view", "packages", "shields")}
    order["folder"] = os.fsdecode(order["folder"])
    try:  # around all three processes, until the program itself begins
        if order["linux"]:
            with open("/proc/self/oom_score_adj", "w") as score:
                score.write("1000")  # when the machine runs out of memory, this goes first
        (_launch if order["level"] == "namespaces" else _supervise)(order)
    except Exception as error:
        _report(order, f"error {type(error).__name__}: {error}")
        if all(order.get("programs", [0])):  # they run
            _end_all(order)
        os._exit(1)


def _launch(order: Order) -> NoReturn:
    """Enter new namespaces, start the supervisor there, and wait for it."""
    _die_with_parent(signal.SIGKILL, order["parent"])
    user, group = os.geteuid(), os.getegid()
    flags = kernel.ALL_NEW & ~kernel.NEW_CGROUP
    if order["uid"] is not None:
        flags &= ~kernel.NEW_USER  # true root sets up the namespaces as root, and the program runs as a spare user
    kernel.unshare(flags)
    if order["uid"] is None:
        for file, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
            with open(f"/proc/self/{file}", "w") as mapping:
                mapping.write(text)
    supervisor = os.fork()
    if not supervisor:
        _die_with_parent(signal.SIGKILL, 0)
        _build_view(order)
        _raise_loopback()
        _supervise(order)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(supervisor, signal.SIGKILL))
    for name in PRIVATE:
        os.close(order[name])
    os.close(order["report"])
    os.waitpid(supervisor, 0)  # returns when every process of the namespace is gone
    os._exit(0)


def _build_view(order: Order) -> None:
    """A new root in memory: the named paths read-only, an empty private folder, bare devices; the old root is gone."""
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    kernel.mount("root", ROOT, "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=0755,size=1m")
    os.mkdir(f"{ROOT}/.old", 0o700)
    kernel.pivot(ROOT, f"{ROOT}/.old")
    os.chdir("/")
    for place, megabytes in order["private"]:
        options = f"mode=1777,size={megabytes}m,nr_inodes={folder.MOST_FILES}"
        kernel.mount("private", _folder(place), "tmpfs", kernel.NOSUID | kernel.NODEV, options)
    for shield in order["shields"]:
        kernel.mount("shield", _folder(shield), "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=0755,size=1m")
    for path in order["view"]:  # behind the private folders, which may hold some of it
        _show(path)
    os.mkdir(order["folder"])
    os.chmod(order["folder"], 0o777)  # the program's user is not yet
    kernel.mount("proc", _folder("/proc"), "proc", kernel.NOSUID | kernel.NODEV)
    for device in DEVICES:
        _show(device, protect=False)
    os.symlink("/proc/self/fd", "/dev/fd")
    uid = order["uid"] or 1000
    for name, text in (
        ("passwd", f"user:x:{uid}:{uid}::{order['folder']}:/bin/sh\n"),
        ("group", f"user:x:{uid}:\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ):
        with open(f"{_folder('/etc')}/{name}", "w") as file:
            file.write(text)
    kernel.detach("/.old")
    os.rmdir("/.old")
    for place in (*order["shields"], "/"):
        kernel.protect(place, everything_below=False)


def _show(path: str, *, protect: bool = True) -> None:
    source = f"/.old{path}"
    if os.path.islink(source):
        _folder(os.path.dirname(path))
        os.symlink(os.readlink(source), path)
        return
    if os.path.isdir(source):
        _folder(path)
    else:
        _folder(os.path.dirname(path))
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, path, None, kernel.BIND | kernel.RECURSIVE)
    if protect:
        kernel.protect(path)


def _folder(path: str) -> str:
    os.makedirs(path, mode=0o755, exist_ok=True)
    return path


def _raise_loopback() -> None:
    """Switch the namespace's own loopback on: a program may connect to itself alone."""
    import _socket
    import fcntl

    plug = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(plug.fileno(), 0x8914, b"lo".ljust(16, b"\0") + (1).to_bytes(2, "little") + bytes(22))
    plug.close()


def _supervise(order: Order) -> NoReturn:
    """Start the program's process, wait for its end or its limits, report, and end everything below."""
    if order["level"] in TREES:
        signal.signal(signal.SIGTERM, lambda *_: _end_all(order))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if order["linux"]:
        _own_all_below(order)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGALRM})
    started = time.monotonic()
    watched = _begin(order)
    for name in PRIVATE:
        os.close(order[name])
    end, code = _watch(order, watched, started + order["seconds"])
    if (end, code) == ("exit", GONE) and order["tested"]:
        end, code = _end_of_answer(order)
    _report(order, f"{end} {code} {time.monotonic() - started:.3f}")
    _end_all(order)


def _begin(order: Order) -> int:
    """Start the program, or an answer and its tests in two processes; the id of the one that is waited for.

    Both have only what this process has, which never reads the tests; `order["programs"]` has their ids.
    """
    if not order["tested"]:
        order["programs"] = [os.fork()]
        return order["programs"][0] or inside.run_alone(order)
    questions, answers = os.pipe(), os.pipe()
    order["programs"] = [os.fork()]
    if not order["programs"][0]:
        inside.run_answer(order, (questions[0], answers[1]))
    order["programs"].append(os.fork())
    if not order["programs"][1]:
        inside.run_tests(order, (answers[0], questions[1]))
    for end in (*questions, *answers):
        os.close(end)
    return order["programs"][1]


def _own_all_below(order: Order) -> None:
    """Have every process below come back to this one when its own parent ends, and end with the caller."""
    if order["level"] in TREES:
        _die_with_parent(signal.SIGTERM, order["parent"])
    kernel.prctl(kernel.SUBREAPER, 1)
    if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
        raise OSError("the kernel does not list the children of a process in /proc (CONFIG_PROC_CHILDREN)")
    kernel.prctl(kernel.DUMPABLE, 0)  # no other process may read this one, not even with the same user


def _watch(order: Order, program: int, deadline: float) -> tuple[str, int]:
    """How the process ended: ("exit", code), ("signal", number), ("timeout", 0), ("memory", 0), (`_overfull`, 0)."""
    beat, most = (BEAT if order["linux"] else SLOW_BEAT), order["memory_mb"] << 20
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == program:
            return _ended(status)
        if pid:
            order["answer_ended"] = _ended(status) if pid == order["programs"][0] else order.get("answer_ended")
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout", 0
        if (_memory(most) if order["linux"] else _group_memory(order["programs"])) > most:
            return "memory", 0
        if excess := _overfull(order):
            return excess, 0
        if not order["linux"] and os.getppid() != order["parent"]:  # on Linux the kernel sends a signal
            _end_all(order)
        _rest(min(left, beat))


def _ended(status: int) -> tuple[str, int]:
    code = os.waitstatus_to_exitcode(status)
    return ("exit", code) if code >= 0 else ("signal", -code)


def _end_of_answer(order: Order) -> tuple[str, int]:
    """How the answer's process ended, which the tests have lost; ("closed", 0) where it lives on without its line."""
    deadline = time.monotonic() + LOST
    while not order.get("answer_ended") and time.monotonic() < deadline:
        pid, status = os.waitpid(order["programs"][0], os.WNOHANG)
        order["answer_ended"] = _ended(status) if pid else None
        time.sleep(0 if pid else 0.001)
    return order["answer_ended"] or ("closed", 0)


def _rest(seconds: float) -> None:
    """Until a child ends or the time is over; both signals are blocked."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))  # 0 would mean: no timer
    signal.sigwait({signal.SIGCHLD, signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 0)


def _group_memory(groups: list[int]) -> int:
    """Bytes in use by process groups, where there is no /proc; pages that are shared count for each process."""
    import subprocess

    command = ("ps", "-A", "-o", "pgid=", "-o", "rss=")
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(int(rss) << 10 for own, rss in map(str.split, lines) if int(own) in groups)


def _memory(limit: int) -> int:
    """Bytes in use below this process; what is shared counts once, and is looked up only if the simple sum is over."""
    pids = _descendants()
    pages = sum(int(fields[1]) for pid in pids if (fields := _read(f"/proc/{pid}/statm").split()))
    if pages * resource.getpagesize() <= limit:
        return 0
    lines = [line for pid in pids for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _descendants() -> list[int]:
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:  # it has just ended
            continue
        children = [int(child) for at in threads for child in _read(f"/proc/{pid}/task/{at}/children").split()]
        found += children
        waiting += children
    return found


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:  # the process has just ended
        return ""


def _overfull(order: Order) -> str:
    """What the program has too much of on its disk, in a word of folder.py; of namespaces the kernel takes care."""
    if order["level"] in TREES:
        return folder.excess(order["folder"], order["disk_mb"] << 20)
    if order["level"] == "bubblewrap":  # its file systems in memory are bounded in bytes alone
        found = [os.statvfs(place) for place, _ in order["private"]]
        return folder.FILES if any(one.f_files - one.f_ffree > folder.MOST_FILES for one in found) else ""
    return ""


def _end_all(order: Order) -> NoReturn:
    """End with everything that descends from this process; where there is a namespace, the kernel does the rest."""
    if not order["linux"]:
        _end_groups(order.get("programs", []))
    while order["level"] in TREES:
        try:
            for pid in _descendants():
                os.kill(pid, signal.SIGKILL)
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)
        except ProcessLookupError:  # it has just ended
            continue
        except ChildProcessError:
            break
    os._exit(0)


def _end_groups(programs: list[int]) -> NoReturn:
    """End with the programs' process groups: all that can be found where there is no /proc."""
    for end, program in [(end, program) for program in programs for end in (os.killpg, os.kill)]:
        try:  # it may not lead its group yet
            end(program, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the second of a group of the dead
            continue
    os._exit(0)


def _die_with_parent(number: int, parent: int) -> None:
    kernel.prctl(kernel.DEATH_SIGNAL, number)
    if os.getppid() not in (parent, 0):  # 0: the parent lives outside this namespace
        os._exit(1)


def _report(order: Order, line: str) -> None:
    try:
        os.write(order["report"], f"{line}\n".encode())
    except OSError:  # the caller has ended
        return
