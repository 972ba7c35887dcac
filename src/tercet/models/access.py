"""Who may ask a server of ours: decided by the head of a request, before its body is read.

A page in a browser can send requests to this machine, also under a name of its own that leads here (DNS rebinding).
So a server answers to the names it has, and to no page but its own. Whoever is not on this machine needs a key.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import stat
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tercet.outside import printable

HEAD_BYTES = 16 << 10  # of a request: its first line and its headers
LONGEST_KEY = 4096
LOGGER = logging.getLogger("tercet.server")


class AccessError(ValueError):
    """A key that is missing or that others can read."""


@dataclass(frozen=True)
class Access:
    """The key of a server, none when it is empty, and its names beside those of loopback and the address it has.

    `origins` are those of pages elsewhere that may ask from a browser.
    """

    key: str = field(default="", repr=False)
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def refusal(
        self, headers: Iterable[tuple[str, str]], reached: str, *, free: bool = False
    ) -> tuple[int, str] | None:
        """HTTP status and reason where a request is not read; `reached`: the address that its connection came to.

        With `free` the key is not asked for.
        """
        pairs = [(name.lower(), value) for name, value in headers]
        if sum(len(name) + len(value) + 4 for name, value in pairs) > HEAD_BYTES:
            return 431, f"the headers are too long; at most {HEAD_BYTES} bytes"
        hosts = [value.strip().lower() for name, value in pairs if name == "host"]
        if len(hosts) != 1 or not self._known(_host_of(hosts[0]), reached):
            return 421, "the Host header names another server; start this one with --allow-host NAME"
        for origin in [value.strip().lower() for name, value in pairs if name == "origin"]:
            if origin in self.origins:
                continue
            if origin != f"http://{hosts[0]}" and _host_of(origin.partition("://")[2]) not in self.names:
                return 403, "pages of other servers are not answered; start this one with --allow-host NAME"
        given = [value.removeprefix("Bearer ") for name, value in pairs if name == "authorization"]
        if self.key and not free and not secrets.compare_digest("".join(given).encode(), self.key.encode()):
            return 401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
        return None

    def _known(self, host: str, reached: str) -> bool:
        return host == "localhost" or host in self.names or host == reached or (is_loopback(host) and _is_ip(host))


def access(host: str, allowed: Iterable[str], key: str, origins: Iterable[str] = ()) -> Access:
    """Who may ask a server that listens on `host`: without a key, only this machine."""
    pages = tuple(origin.strip().lower().rstrip("/") for origin in origins)
    for origin in pages:
        if not re.fullmatch(r"https?://[^/\s@]+", origin):
            raise AccessError(f"--allow-origin {origin}: expected SCHEME://NAME or SCHEME://NAME:PORT, without a path")
    if not key and not is_loopback(host):
        raise AccessError(
            f"--host {host}: whoever reaches this machine could use the server; set a key in TERCET_API_KEY or "
            "--key-file FILE, or listen on 127.0.0.1"
        )
    own = () if _is_ip(host) else (host,)
    return Access(key, tuple(name.strip().lower() for name in (*own, *allowed)), pages)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return ipaddress.ip_address(host).is_loopback if _is_ip(host) else host == "localhost"


def read_key(path: Path) -> str:
    """The key in a file that only its owner can read; AccessError says what is wrong with the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise AccessError(f"the key in {path} cannot be read ({error.strerror})") from None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in (os.geteuid(), 0):
            raise AccessError(f"the key file {path} is no plain file of yours")
        if about.st_mode & 0o077:
            mode = f"mode {about.st_mode & 0o777:o}, so others can read the key"
            raise AccessError(f"the key file {path} has {mode}; make a new key, and chmod 600 {path}")
        text = os.read(fd, LONGEST_KEY + 1)
    finally:
        os.close(fd)
    key = text.strip().decode("ascii", errors="replace")
    if not key or len(text) > LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise AccessError(f"the key file {path} holds no key: expected one line of letters and digits")
    return key


def internal_error(error: BaseException) -> str:
    """What a client is told of an error of ours: its kind and a number, under which the log has the rest."""
    number = secrets.token_hex(4)
    LOGGER.error("error %s: %s", number, printable("".join(traceback.format_exception(error))))
    return f"{type(error).__name__}; the server's log says more under error {number}"


def _host_of(address: str) -> str:
    """`[::1]:8000` without its port and brackets."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0]


def _is_ip(host: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False
