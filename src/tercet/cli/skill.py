"""The skill file for coding agents: commands, the skeleton of a recipe, and mistakes with the errors that they give.

Commands are `verbs.toml`'s, kinds the specs', the skeleton is what `tercet new` writes, names from elsewhere are
`hints.toml`'s; `skill.toml` chooses among them and has the mistakes, each of which a test makes.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import tercet
from tercet.cli.output import say
from tercet.cli.parser import EPILOG, entry
from tercet.journal import replace
from tercet.recipe import BASE, KINDS
from tercet.recipe.file import HINTS
from tercet.recipe.start import Start

HERE = Path(__file__).parent


def skill(args: argparse.Namespace) -> int:
    """Print the file, or write it where an agent looks for skills."""
    if args.install is None:
        say(text().rstrip())
        return 0
    file = args.install.expanduser() / "tercet" / "SKILL.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, text())
    say(str(file))
    return 0


def text() -> str:
    """The skill file."""
    chosen = table()
    source = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, autoescape=False)
    return source.get_template("skill.md.j2").render(
        version=tercet.__version__,
        commands=[(line, entry(line.split()[1])["help"]) for line in chosen["commands"]],
        exit_codes=EPILOG.partition("Exit codes: ")[2],
        skeleton=skeleton(),
        kinds=list(_kinds()),
        names=[(name, HINTS[name]) for name in chosen["names"]],
        mistakes=chosen["mistake"],
    )


def table() -> dict[str, Any]:
    """What is chosen: command lines, names from elsewhere, mistakes."""
    return tomllib.loads((HERE / "skill.toml").read_text(encoding="utf-8"))


def skeleton() -> str:
    """A recipe of three files, as `tercet new` writes it, without its comments."""
    start = Start(
        "mine",
        {"model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        chats="chats.jsonl",
        preferences="pairs.jsonl",
        problems="sums.jsonl",
        grading={"verifier": "gsm8k@2"},
        tasks=["ifeval@1"],
        context=2048,
    )
    title, *lines = start.text("mine.toml").splitlines()
    return "\n".join([title, *(line for line in lines if line and not line.startswith("#"))])


def _kinds() -> Iterator[tuple[str, str, str]]:
    """Every kind of stage: its name, the keys that it needs, and what it does."""
    for kind, spec in KINDS.items():
        if kind != BASE:
            needed = [f"`{name}`" for name, field in spec.model_fields.items() if field.is_required()]
            yield kind, ", ".join(needed), " ".join((spec.__doc__ or "").split())
