"""How large a TOML text from outside may be, and what its values may hold: told with the place, before it costs.

Whoever reads a recipe may not have written it. Depth is counted before the text is parsed, as parsers recurse; values
are looked at before anything is made of them.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tercet.recipe.specs import Loc, RecipeError

FILE_BYTES = 4 << 20  # of a recipe or mirror file; 10,000 stages take about one
MARKS = 200_000  # brackets, commas, dots and equals signs outside texts: about as many as keys and values
DEPTH = 32  # tables and lists inside each other, and parts of a dotted key
STAGES = 10_000
EXTENDED = 16  # files that extend each other
NAME = 128  # characters of a stage's name: with key and prefix it is a folder's name, of at most 255 bytes
LISTED = 20  # names that a message lists

# Possessive, so that no text takes more than one pass.
STRING = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}|\'\'\'(?:[^\']++|\'{1,2}(?!\'))*+\'{3,5}'
    r'|"(?!"")(?:[^"\\\n]++|\\.)*+"|\'(?!\'\')[^\'\n]*+\'',
    re.DOTALL,
)
_PART = r"(?:[A-Za-z0-9_-]++|\"(?:[^\"\\\n]++|\\.)*+\"|'[^'\n]*+')"
_SHAPE = re.compile(
    rf"(?P<dotted>{_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{DEPTH},}}+)|(?P<string>{STRING.pattern})|(?P<unclosed>[\"'])"
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<mark>[,=.])|#[^\n]*+|[A-Za-z0-9_-]++",
    re.DOTALL,
)
_ODD = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # no text that a recipe means has these


def read_text(path: Path) -> str:
    """The text of a TOML file, no longer than `FILE_BYTES`."""
    with open(path, "rb") as stream:
        data = stream.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise RecipeError(
            f"{path}: is larger than {FILE_BYTES >> 20} MiB, the most that a TOML file may have; split it"
        )
    return data.decode("utf-8")


def parse(text: str, where: str) -> dict[str, Any]:
    """The document of a TOML text; what nests too deep or has too many values is refused before it is parsed."""
    _check_shape(text, where)
    try:
        return tomllib.loads(text)
    except ValueError as error:  # not TOML, or a number with more digits than Python reads
        raise RecipeError(f"{where}: not valid TOML: {error}") from None


def check_values(document: Any, place: Callable[[Loc], str]) -> None:
    """Refuse depth, whole numbers beyond 64 bits, numbers that are not finite, and texts with control characters."""
    waiting: list[tuple[Loc, Any]] = [((), document)]
    while waiting:
        loc, value = waiting.pop()
        what = ""
        if isinstance(value, dict | list) and len(loc) >= DEPTH:
            what = f"nests more than {DEPTH} tables and lists; write it flatter"
        elif isinstance(value, dict):
            waiting += [((*loc, key), below) for key, below in value.items()]
            what = next((what for key in value if (what := _odd(key))), "")
        elif isinstance(value, list):
            waiting += [((*loc, number), below) for number, below in enumerate(value)]
        elif isinstance(value, str):
            what = _odd(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            what = f"a whole number of {value.bit_length()} bits; TOML has 64"
        elif isinstance(value, float) and not math.isfinite(value):
            what = f"expected a finite number, got {value}"
        if what:
            raise RecipeError(f"{place(loc)}: {'.'.join(map(str, loc)) or 'the text'}: {what}", loc)


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """Names for a message, the first of many."""
    known = list(names)
    more = f"{separator}and {len(known) - LISTED:,} more" if len(known) > LISTED else ""
    return separator.join(known[:LISTED]) + more


def _check_shape(text: str, where: str) -> None:
    depth, marks, what = 0, 0, ""
    for found in _SHAPE.finditer(text):
        kind = found.lastgroup
        if kind == "unclosed":
            return  # the parser stops here too, and says what is wrong
        depth += (kind == "open") - (kind == "close" and depth > 0)
        marks += kind in ("open", "mark")
        if kind == "dotted":
            what = f"a key of more than {DEPTH} parts; write it flatter"
        elif depth > DEPTH:
            what = f"more than {DEPTH} brackets nest; write it flatter"
        elif marks > MARKS:
            what = f"more than {MARKS:,} keys, values and brackets up to here; split the file"
        if what:
            raise RecipeError(f"{where}, line {text.count(chr(10), 0, found.start()) + 1}: {what}")


def _odd(text: str) -> str:
    found = _ODD.search(text)
    return f"holds the character U+{ord(found[0]):04X}, which no text of a recipe has; take it out" if found else ""
