"""What the sandbox asks of the Linux kernel, through libc: namespaces and mounts, privileges, system calls, landlock.

Runs inside the launched child (child.py), so it imports nothing of ours and little of the library. Every
function raises OSError when the kernel says no.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LIBC = ctypes.CDLL(None, use_errno=True)

NEW_MOUNTS, NEW_CGROUP, NEW_NAMES, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
ALL_NEW = NEW_MOUNTS | NEW_CGROUP | NEW_NAMES | NEW_IPC | NEW_USER | NEW_PIDS | NEW_NETWORK
CLONE_THREAD = 0x00010000

NOSUID, NODEV, BIND, RECURSIVE, PRIVATE = 2, 4, 4096, 16384, 1 << 18
DETACH = 2
READ_ONLY = 1  # of mount_setattr, where nosuid and nodev have the numbers they have in mount
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CAPSET = {"x86_64": 126, "aarch64": 91}
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446

DEATH_SIGNAL, DUMPABLE, SECCOMP, SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 22, 36, 38

# Landlock: the rights that exist since interface 1, and those that interfaces 2, 3 and 5 added.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
BLOCK_DEVICES, SIGNALS = 1 << 11, 2  # a right, and what interface 6 can keep from outside the ruleset
REFER, TRUNCATE, IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, EACCES, ENOSYS = 1, 13, 38


def call(number: int, *arguments: object) -> int:
    """A system call by number."""
    return _checked(LIBC.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def prctl(option: int, value: int) -> None:
    """`prctl(option, value)`."""
    zero = ctypes.c_ulong(0)
    _checked(LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags`; that of processes changes for the children."""
    _checked(LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """`mount`, with paths as text."""
    names = os.fsencode(source), os.fsencode(target), kind.encode() if kind else None
    _checked(LIBC.mount(*names, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


def protect(target: str, *, everything_below: bool = True) -> None:
    """Make a mount read-only, without set-user-id files and devices (kernel 5.12)."""
    attributes = struct.pack("<4Q", READ_ONLY | NOSUID | NODEV, 0, 0, 0)
    flags = 0x8000 if everything_below else 0
    call(MOUNT_SETATTR, -100, os.fsencode(target), ctypes.c_uint(flags), attributes, ctypes.c_size_t(len(attributes)))


def pivot(root: str, old: str) -> None:
    """Make `root` the root; the old one appears under `old`, a folder inside it."""
    call(PIVOT_ROOT[os.uname().machine], os.fsencode(root), os.fsencode(old))


def detach(target: str) -> None:
    """Take a mount away, now from view and later for good."""
    _checked(LIBC.umount2(os.fsencode(target), DETACH), f"umount {target}")


def drop_capabilities() -> None:
    """Give up every privilege, for this process and what it starts."""
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    call(CAPSET[os.uname().machine], header, nothing)
    prctl(NO_NEW_PRIVILEGES, 1)


def landlock_version() -> int:
    """The landlock interface of this kernel, from 1; an OSError where there is none."""
    return call(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))


def landlock(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Let this process, for ever, see only `readable`, and change only what lies below `writable`."""
    version = landlock_version()
    extra = (REFER if version > 1 else 0) | (TRUNCATE if version > 2 else 0) | (IOCTL_DEVICE if version > 4 else 0)
    handled = (1 << 13) - 1 | extra
    fields = (handled,) if version < 4 else (handled, 3) if version < 6 else (handled, 3, 3)  # files, network, scope
    rules = struct.pack(f"<{len(fields)}Q", *fields)
    ruleset = call(LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0))
    asked = [(path, EXECUTE | READ_FILE | READ_DIR) for path in readable] + [(path, handled) for path in writable]
    for path, rights in asked:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = rights if os.path.isdir(path) else rights & ON_FILES
        call(LANDLOCK_ADD, ruleset, 1, struct.pack("<Qi", allowed & handled, place), ctypes.c_uint32(0))
        os.close(place)
    call(LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


def stand_apart() -> None:
    """Keep this process, for ever, from the memory, the descriptors and (Linux 6.12) the end of others, by landlock.

    Landlock lets nobody look from inside a ruleset to its outside; the one right that this one takes (to make block
    devices) is no program's. It holds for root too.
    """
    try:
        fields = (BLOCK_DEVICES,) if landlock_version() < 6 else (BLOCK_DEVICES, 0, SIGNALS)
    except OSError:
        return
    prctl(NO_NEW_PRIVILEGES, 1)
    rules = struct.pack(f"<{len(fields)}Q", *fields)
    ruleset = call(LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0))
    call(LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


def filter_calls(groups: dict[str, list[int]]) -> None:
    """Refuse, for ever, the calls of these groups, with their numbers where `calls.toml` lists them.

    Groups: "denied" (what no program needs), "others" (touching other processes), "sockets", "modes", "truncate"
    (landlock before interface 3 does not know it), "processes" (no child processes; threads remain).
    """
    machine, me = os.uname().machine, os.getpid()
    column = {"x86_64": 0, "aarch64": -1}[machine]

    def number(numbers: tuple[int, ...]) -> int:
        return numbers[column]

    rules = [_refuse(listed, EPERM) for listed in groups["denied"]]
    rules.append(_refuse(435, ENOSYS))  # clone3 hides its flags in memory; libc falls back to clone
    rules.append(_refuse_unless(number((302, 261)), 0, [0, me]))  # prlimit64: not the supervisor's limits
    clone = number((56, 220))
    if "processes" in groups:
        rules += [_refuse(number(numbers), EPERM) for numbers in ((57, -1), (58, -1))]
        rules.append(_refuse_unless(clone, 0, [], bits=CLONE_THREAD))
    else:
        rules.append(_refuse_if(clone, 0, [], bits=ALL_NEW))
    if "others" in groups:
        rules += [_refuse(listed, EPERM) for listed in groups["others"]]
        own = [(62, 129), (234, 131), (203, 122)]  # kill, tgkill, sched_setaffinity
        rules += [_refuse_unless(number(numbers), 0, [0, me]) for numbers in own]
        # fcntl and ioctl: signals on behalf of a file, and a file's flags
        rules.append(_refuse_if(number((72, 25)), 1, [8, 15]))
        rules.append(_refuse_if(number((16, 29)), 1, [0x8901, 0x8902, 0x40086602, 0x401C5820]))
    if "sockets" in groups:
        rules.append(_refuse(number((41, 198)), EACCES))
    if "modes" in groups:
        rules += [_refuse(listed, 0) for listed in groups["modes"]]
    if "truncate" in groups:
        rules.append(_refuse(number((76, 45)), EPERM))
    _install(ARCHITECTURE[machine], rules)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


# A filter is a list of instructions (code, jump if true, jump if false, operand): BPF, as in `man 2 seccomp`.
Instruction = tuple[int, int, int, int]
LOAD, EQUALS, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _refuse(number: int, errno: int) -> list[Instruction]:
    return [(EQUALS, 0, 1, number), (RETURN, 0, 0, ERRNO | errno)] if number >= 0 else []


def _refuse_if(number: int, argument: int, values: list[int], bits: int = 0) -> list[Instruction]:
    return _decide(number, argument, values, bits, (ALLOW, ERRNO | EPERM))


def _refuse_unless(number: int, argument: int, values: list[int], bits: int = 0) -> list[Instruction]:
    return _decide(number, argument, values, bits, (ERRNO | EPERM, ALLOW))


def _decide(number: int, argument: int, values: list[int], bits: int, ends: tuple[int, int]) -> list[Instruction]:
    """One call: `ends[1]` when the low word of its argument is a value or has a bit, else `ends[0]`."""
    kinds = [(EQUALS, value) for value in values] + ([(ANY_BIT, bits)] if bits else [])
    tests = [(code, len(kinds) - place, 0, operand) for place, (code, operand) in enumerate(kinds)]
    body = [(LOAD, 0, 0, 16 + 8 * argument), *tests, (RETURN, 0, 0, ends[0]), (RETURN, 0, 0, ends[1])]
    return [(EQUALS, 0, len(body), number), *body]


def _install(architecture: int, rules: list[list[Instruction]]) -> None:
    program: list[Instruction] = [
        (LOAD, 0, 0, 4),
        (EQUALS, 1, 0, architecture),
        (RETURN, 0, 0, KILL),  # the 32-bit interface has other numbers
        (LOAD, 0, 0, 0),
    ]
    if architecture == ARCHITECTURE["x86_64"]:
        program += [(AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, ERRNO | ENOSYS)]
    program += [instruction for rule in rules for instruction in rule] + [(RETURN, 0, 0, ALLOW)]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(code, len(code))
    head = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(program), ctypes.addressof(held)))
    prctl(NO_NEW_PRIVILEGES, 1)
    _checked(LIBC.prctl(SECCOMP, ctypes.c_ulong(2), head, ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp")
