"""Commits written into a recipe's text, beside the hub ids that they belong to; nothing else of the text changes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tercet.recipe.file import key_lines
from tercet.recipe.specs import Loc


def with_commits(text: str, commits: Mapping[Loc, tuple[str, str]]) -> tuple[str, list[Loc]]:
    """The text with `revision = "<commit>"` in the tables at these places, and the places that it does not have.

    `commits` maps the place of a table to the hub id that it names and the commit.
    """
    lines, places, absent = text.split("\n"), key_lines(text), []
    for loc, (name, commit) in sorted(commits.items(), key=lambda one: places.get((*one[0], "path"), 0), reverse=True):
        key = next((key for key in ("model", "path") if (*loc, key) in places), "")
        if not key:
            absent.append(loc)
            continue
        if (given := places.get((*loc, "revision"))) is not None:  # an empty one
            lines[given - 1] = re.sub(r'(\brevision\s*=\s*)(""|\'\')', rf'\1"{commit}"', lines[given - 1], count=1)
            continue
        number = places[*loc, key] - 1
        named = re.compile(rf"""\b{key}\s*=\s*(["'])[^"']*{re.escape(name)}[^"']*\1""")
        found = named.search(lines[number])
        if found is None:  # written in a way that this does not read, such as an escape
            absent.append(loc)
        elif lines[number][: found.start()].strip():  # in braces: behind the value
            lines[number] = f'{lines[number][: found.end()]}, revision = "{commit}"{lines[number][found.end() :]}'
        else:
            indent = lines[number][: found.start()]
            lines[number] += f'\n{indent}revision = "{commit}"'
    return "\n".join(lines), absent
