"""What `serve`, `play` and `watch` share: the packages they need, the socket they listen on, and where that is."""

from __future__ import annotations

import argparse
import os
import socket
from importlib.util import find_spec

from tercet.recipe import RecipeError


def check_packages(verb: str, *names: str, more: str = "") -> None:
    """Refuse a verb whose packages are not installed; `more` says what can be done without."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise RecipeError(f"`tercet {verb}` needs {' and '.join(missing)}: pip install 'tercet[play]'{more}")


def own_key(args: argparse.Namespace) -> str:
    """The key that clients need: of the file that is named, else of the environment, else none."""
    from tercet.models.access import read_key

    return read_key(args.key_file) if args.key_file else os.environ.get("TERCET_API_KEY", "").strip()


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address; a RecipeError where it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise RecipeError(f"cannot listen on {host}, port {port}: {error}; choose another port") from None
    return listener


def address(host: str, listener: socket.socket) -> str:
    """The URL of a bound socket, `http://127.0.0.1:8000/`."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
