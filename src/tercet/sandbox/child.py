"""The inner half of the sandbox: isolate the program, start it, watch it, and leave no process alive.

Three processes share this module. The launcher is started by program.py with a clean environment. The supervisor (the
first process of the new namespaces, or the launcher itself where there are none) watches time and memory, and when it
ends everything below it has ended. The third runs the untrusted program in its own interpreter, which saves a second
start. program.py talks to them over standard input (the order, marshalled) and three pipes: the supervisor writes
`report`, the program's process reads `nonce` and writes `verdict`. Every program pays for each import, so there are
few. Elsewhere than on Linux there is only the level "none", and the supervisor knows only the program's process group.
"""

from __future__ import annotations

import builtins
import marshal
import os
import resource
import signal
import sys
import time

from tercet.sandbox import folder, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Order = dict[str, Any]

BEAT, SLOW_BEAT = 0.05, 0.25  # seconds between two looks at the memory; the second where a command must be run for it
ROOT = "/tmp"  # where the new root is built; every Linux has it
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
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
        if order.get("program"):  # it runs
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
    for name in ("report", "nonce", "verdict"):
        os.close(order[name])
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
    program = order["program"] = os.fork()
    if not program:
        _become_program(order)
    for name in ("nonce", "verdict"):
        os.close(order[name])
    end, code = _watch(order, program, started + order["seconds"])
    _report(order, f"{end} {code} {time.monotonic() - started:.3f}")
    _end_all(order)


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
            code = os.waitstatus_to_exitcode(status)
            return ("exit", code) if code >= 0 else ("signal", -code)
        if pid:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout", 0
        if (_memory(most) if order["linux"] else _group_memory(program)) > most:
            return "memory", 0
        if excess := _overfull(order):
            return excess, 0
        if not order["linux"] and os.getppid() != order["parent"]:  # on Linux the kernel sends a signal
            _end_all(order)
        _rest(min(left, beat))


def _rest(seconds: float) -> None:
    """Until a child ends or the time is over; both signals are blocked."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))  # 0 would mean: no timer
    signal.sigwait({signal.SIGCHLD, signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, 0)


def _group_memory(group: int) -> int:
    """Bytes in use by a process group, where there is no /proc; pages that are shared count for each process."""
    import subprocess

    command = ("ps", "-A", "-o", "pgid=", "-o", "rss=")
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(int(rss) << 10 for own, rss in map(str.split, lines) if own == str(group))


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
        _end_group(order.get("program", 0))
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


def _end_group(program: int) -> NoReturn:
    """End with the program's process group: all that can be found where there is no /proc."""
    for end in (os.killpg, os.kill) if program else ():  # it may not lead its group yet
        try:
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


def _become_program(order: Order) -> NoReturn:
    """Give up every right, then run the program."""
    _limit(order)
    for name, text in order["files"].items():
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    _confine(order)
    below = 3  # every file but the three standard ones and the program's two pipes is closed
    for fd in sorted((order["nonce"], order["verdict"])):
        os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, 4096)
    sys.path += order["packages"]
    for name in [name for name in sys.modules if name.split(".")[0] == "tercet"]:
        del sys.modules[name]
    _run(order["parts"], order["key"], order["nonce"], order["verdict"])


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


def _confine(order: Order) -> None:
    if order["level"] != "none":
        kernel.drop_capabilities()
    if order["linux"]:
        kernel.prctl(kernel.DUMPABLE, 1)  # taken away by the change of user; /proc/self would be closed without it
    if order["level"] == "landlock":
        kernel.landlock(order["view"], [order["folder"], *DEVICES])
    if order["refused"] is not None:
        kernel.filter_calls(order["refused"])


def _run(parts: list[str], key: bytes, nonce: int, verdict: int) -> NoReturn:
    """Run the parts one after another in one `__main__`; key and nonce are passed on only behind the last one.

    The functions needed at the end are bound before: a program that replaces `exec` or `os.write` changes nothing here.
    """
    read, write, leave, pid, flush, execute = os.read, os.write, os._exit, os.getpid, sys.stdout.flush, exec
    me, describe = pid(), _describe
    sys.modules["__main__"] = main = type(sys)("__main__")
    sys.argv[:] = ["program.py"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    word, status = b"", 0
    try:
        for code in [compile(part, "<program>", "exec", dont_inherit=True) for part in parts]:
            execute(code, main.__dict__)
    except BaseException as error:
        word, status = describe(error), 1
    try:
        if pid() == me:  # not the child of a fork
            write(verdict, word or key + read(nonce, 64))
        flush()
    finally:
        leave(status)


def _describe(error: BaseException) -> bytes:
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
    return f"!{name}{place}: {text}".encode(errors="replace")
