"""Command lines: our own words, and values from outside, none of which can begin an option.

`command(sys.executable, "-m", "pip", "download", "-d", Outside(folder))` is the only way this package builds one
(`tests/test_architecture.py` holds it to that): what is no literal of ours has to be an `Outside`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# What pip may be told about an index. Everything else of the environment and of pip's files is left out.
PIP_SETTINGS = (
    "index-url",
    "extra-index-url",
    "no-index",
    "find-links",
    "cert",
    "client-cert",
    "proxy",
    "trusted-host",
)
PIP_SECTIONS = ("global", "download", ":env:")  # later ones win


class CommandError(ValueError):
    """A value from outside cannot stand in a command line."""


@dataclass(frozen=True)
class Outside:
    """A value that somebody else chose: a path is made absolute, a text that could begin an option is refused."""

    value: str | int | Path

    def __str__(self) -> str:
        if isinstance(self.value, Path) and "\0" not in str(self.value):
            return os.path.abspath(self.value)
        text = str(self.value)
        if not text or text.startswith("-") or not text.isprintable():
            what = "no name or value begins with a dash, is empty or holds control characters"
            raise CommandError(f"{text[:80]!r} cannot be passed to another program: {what}; change it")
        return text


def command(*words: str | Outside) -> list[str]:
    """A command line of our own words and outside values, in this order."""
    return [str(word) for word in words]


def isolated_pip(*words: str | Outside) -> list[str]:
    """A pip command that obeys no setting but where the index is: none of the environment's or a file's other ones.

    A plain `--isolated` would lose a company's index with the rest.
    """
    return command(sys.executable, "-m", "pip", "--isolated", "--no-input", *words, *_index_options())


def _index_options() -> list[str | Outside]:
    """The user's own index, certificates and proxy as options, by `pip config list`."""
    asked = command(sys.executable, "-m", "pip", "config", "list")
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for section in PIP_SECTIONS:
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            key = name.removeprefix(f"{section}.").lstrip(".")
            if name.startswith(f"{section}.") and key in PIP_SETTINGS:
                found[key] = str(ast.literal_eval(value))
    options: list[str | Outside] = []
    for key, value in found.items():
        if key == "no-index":
            options += [f"--{key}"] * (value.lower() in ("1", "true", "yes", "on"))
            continue
        for part in value.split():
            options += [f"--{key}", Outside(part)]
    return options
