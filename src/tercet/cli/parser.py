"""The parser of the command line: every verb of `verbs.toml`, in groups, with a hint where one was misspelt."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import tercet
from tercet.outside import printable, without_userinfo

Verb = Callable[[argparse.Namespace], int]
_TABLE: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("verbs.toml").read_text(encoding="utf-8"))
EPILOG = (
    "tercet VERB --help says more. Exit codes: 0 done, 1 failed, 2 bad input, 3 a gate or check failed; 130, 143, 129: "
    "ended by Ctrl-C (SIGINT), SIGTERM, SIGHUP."
)


class Parser(argparse.ArgumentParser):
    """argparse's, which says of a wrong choice only what was probably meant, and nothing that a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        """Usage and what is wrong, with exit code 2."""
        super().error(printable(without_userinfo(message)))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(action.choices or ())
        if choices and value not in choices:
            close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1, cutoff=0.5)
            known = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(map(str, choices))}"
            raise argparse.ArgumentError(action, f"no {value!r}; {known}")


class TopParser(Parser):
    """The parser of all verbs, whose help shows them in groups."""

    def format_help(self) -> str:
        """Usage, the groups with a line for each verb, the options."""
        lines = [f"usage: {self.prog} [-h] [--version] VERB …", "", str(self.description)]
        for group, names in groups().items():
            lines += ["", group]
            for name in names:
                said = textwrap.wrap(_TABLE[name]["help"], 78 - 17)
                lines += [f"  {name if not i else '':14} {part}" for i, part in enumerate(said)]
        return "\n".join([*lines, "", *textwrap.wrap(str(self.epilog), 78)]) + "\n"


def groups() -> dict[str, list[str]]:
    """The verbs of each group, in the table's order."""
    found: dict[str, list[str]] = {}
    for name, about in _TABLE.items():
        if name != "shared":
            found.setdefault(about["group"], []).append(name)
    return found


def parser(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """The command line whose verbs do what `verbs` says."""
    about = "Imitate, prefer, verify: post-training from one recipe."
    top = TopParser(prog="tercet", description=about, epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"tercet {tercet.__version__}")
    made = top.add_subparsers(required=True, metavar="VERB", parser_class=Parser)
    for name, verb in verbs.items():
        settings = _TABLE[name]
        text = settings["help"]
        found = made.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        found.set_defaults(verb=verb, verb_name=name)
        shared = [_TABLE["shared"][option] for option in settings.get("uses", ())]
        for argument in (*shared, *settings.get("arguments", ())):
            _add_argument(found, **argument)
    return top


def entry(verb: str) -> dict[str, Any]:
    """What the table says of a verb."""
    return _TABLE[verb]


def complete(top: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could stand next; nothing in any other run."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ModuleNotFoundError:
        sys.exit(1)  # the shell shows nothing
    argcomplete.autocomplete(top)


def _add_argument(verb: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """An argument of the table, whose values TOML cannot say all."""
    completer = COMPLETERS.get(settings.pop("complete", ""))
    if kind := settings.get("type"):
        settings["type"] = TYPES[kind]
    if isinstance(shown := settings.get("metavar"), list):
        settings["metavar"] = tuple(shown)
    action = verb.add_argument(name, **settings)
    if completer:
        action.completer = completer  # type: ignore[attr-defined]  # argcomplete looks for it


def _names(text: str) -> list[str]:
    """`A, B` as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _recipes(prefix: str, **_: Any) -> list[str]:
    from tercet.recipe import library

    here = [str(file) for file in Path().glob(f"{prefix}*.toml")] + [
        f"{folder}/" for folder in Path().glob(f"{prefix}*/")
    ]
    return [*library.names(), *here]


def _stages(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The stages of the recipe that stands on the line already; behind a comma the next one."""
    from tercet.recipe import load

    before = prefix[: prefix.rfind(",") + 1]
    return [before + name for name in load(parsed_args.recipe).stage]


def _artifacts(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Stage names and folders of the store."""
    folders = [file.parent.name for file in Path(parsed_args.store).glob("[!.]*/artifact.json")]
    return [*folders, *dict.fromkeys(name.rpartition("-")[0] for name in folders)]


TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "path": Path, "names": _names}
COMPLETERS: dict[str, Callable[..., list[str]]] = {"recipes": _recipes, "stages": _stages, "artifacts": _artifacts}
