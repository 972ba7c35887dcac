"""What a program in the sandbox may read: the system, some settings, and this Python with its packages.

Everything keeps its place: an interpreter, and the libraries linked into its packages, know each other by their paths.
So what lies below a folder that each program gets empty (PRIVATE) is shown inside that empty folder, in a shield of
its own that cannot be written to or moved; the program's own folder stands beside it. Of a home folder, or of /tmp,
nothing is shown but the folders of the interpreter and of its packages.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
SETTINGS = ("alternatives", "fonts", "ld.so.cache", "localtime", "mime.types", "ssl/openssl.cnf")  # of /etc
DISK_MB = 64
PRIVATE = {"/tmp": DISK_MB, "/dev/shm": 16}  # folders that each program gets empty, and how many MB they hold
INSTALLED = ("site-packages", "dist-packages")  # what folders of installed packages are called


@cache
def view() -> list[str]:
    """The paths that a program may read, each once and none below another; links among them are shown as links."""
    base = {os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix)}
    found = [_executables(), os.path.dirname(os.path.realpath(os.__file__)), *packages()]
    found += [f"{prefix}/{name}" for prefix in base for name in ("lib", "lib64", sys.platlibdir, "share/zoneinfo")]
    found += [os.path.realpath(sysconfig.get_config_var("LIBDIR") or "/usr/lib")]  # a shared libpython
    found += [target for folder in packages() if os.path.isdir(folder) for target in _linked(folder)]
    found = [path for path in found if not _too_much(path)]
    shown: set[str] = set()
    for path in sorted({*SYSTEM, *(f"/etc/{name}" for name in SETTINGS), *found}, key=lambda path: (len(path), path)):
        if os.path.exists(path) and shown.isdisjoint(map(str, Path(path).parents)):
            shown.add(path)
    return sorted(shown, key=lambda path: (len(path), path))


@cache
def packages() -> list[str]:
    """The folders of installed packages, in the order of `sys.path`; never the working folder or anybody's source."""
    known = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    known += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    known = list(map(os.path.realpath, known))
    here = [os.path.realpath(path) for path in sys.path if path]
    known += [path for path in here if os.path.basename(path) in INSTALLED]
    below = [path for path in here if path in known or any(path.startswith(f"{folder}/") for folder in known)]
    return [path for path in dict.fromkeys([*below, *known]) if os.path.exists(path)]


@cache
def shields() -> list[str]:
    """Folders right below a private one that hold nothing but the ways to shown paths."""
    found = {
        os.path.join(private, path.removeprefix(f"{private}/").partition("/")[0])
        for path in view()
        for private in PRIVATE
        if path.startswith(f"{private}/")
    }
    return sorted(found - set(view()))


@cache
def workplace() -> str:
    """The program's own folder, where there are namespaces: in /tmp, away from what is shown there."""
    names = (f"/tmp/program{number or ''}" for number in range(len(shields()) + len(view()) + 1))
    return next(name for name in names if name not in (*shields(), *view()))


def interpreter() -> str:
    """The Python that runs programs: the one that this one's environment was made from, or this one."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def open_to_all(*, with_ways: bool) -> bool:
    """Whether every user can read Python and its packages; `with_ways`: and the folders that lead there.

    Packages that were installed under a umask of 077 are their owner's alone.
    """
    entries = [entry.path for folder in packages() if os.path.isdir(folder) for entry in os.scandir(folder)]
    paths = [path for path in (*view(), *entries) if os.path.exists(path)]
    ways = {str(way) for path in view() for way in Path(os.path.realpath(path)).parents} if with_ways else set()
    folders = {*ways, *filter(os.path.isdir, paths)}
    return all(os.stat(path).st_mode & 4 for path in paths) and all(os.stat(path).st_mode & 1 for path in folders)


def _executables() -> str:
    """The folder that Python lies in, or Python alone where the folder is not one of programs."""
    folder = os.path.dirname(interpreter())
    return folder if os.path.basename(folder) == "bin" else interpreter()


def _linked(folder: str) -> Iterator[str]:
    """Where the links at the top of a folder of packages lead, and those in packages that consist of links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield os.path.realpath(entry.path)
            elif entry.is_dir():
                yield from _mirrored(entry.path)


def _mirrored(package: str) -> Iterable[str]:
    """An installer may lay packages out as real folders of links, each into a folder of the same name elsewhere."""
    with os.scandir(package) as inside:
        entries = list(inside)
    links = [os.path.realpath(entry.path) for entry in entries if entry.is_symlink()]
    if not links and all(entry.is_dir() for entry in entries):  # packages share a name: one level further down
        return [target for entry in entries for target in _mirrored(entry.path)]
    name = os.path.basename(package)
    return {os.path.dirname(link) if os.path.basename(os.path.dirname(link)) == name else link for link in links}


def _too_much(path: str) -> bool:
    """Whether a path would show private files: a home folder, temporary files, or a folder that holds such."""
    kept = (*PRIVATE, "/home", "/root", "/run", "/proc", "/var/tmp", tempfile.gettempdir(), os.path.expanduser("~"))
    return any(f"{os.path.realpath(one)}/".startswith(f"{path.rstrip('/')}/") for one in kept)
