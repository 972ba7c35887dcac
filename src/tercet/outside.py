"""Texts and addresses from outside: what can be stored, what a terminal may have, how deep JSON is, which URL is taken.

A text may hold half of a surrogate pair, which no file takes, or control characters, which a terminal obeys. A URL may
hold a password, which would be stored with a recipe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

# What a terminal obeys: C0 without tab and line feed, C1, marks of direction and separators of lines; and half a
# surrogate pair, which cannot be written at all.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
DEEPEST = 64  # lists and objects of JSON inside each other: whoever walks them may recurse
_DEEP = f"more than {DEEPEST} lists and objects inside each other"


def printable(text: str) -> str:
    """A text as a terminal may have it: a character that it would obey is written as its escape, `\\x1b`."""
    return _OBEYED.sub(_escape, text)


def printable_json(text: str) -> str:
    """The same for JSON, which stays the same value."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return "\\r" if code == 13 else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def unicode_only(text: str) -> str:
    """A text that can be stored: half of a surrogate pair is written as its escape, `\\ud800`."""
    return _HALF.sub(_escape, text)


def mended(value: Any) -> Any:
    """A value of JSON whose texts can all be stored."""
    if isinstance(value, dict):
        return {unicode_only(name): mended(part) for name, part in value.items()}
    if isinstance(value, list):
        return [mended(part) for part in value]
    return unicode_only(value) if isinstance(value, str) else value


def unicode_error(text: str, value: Any) -> str:
    """What is wrong with a text in `value`, which was read from the JSON `text`; nothing where all can be stored."""
    if not _HALF_ESCAPED.search(text):
        return ""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair, {unicode_only(error.object[error.start])}, is no character"
    return ""


def read_json(text: str, loads: Callable[[str], Any] = json.loads) -> Any:
    """The value of a JSON text from outside; a ValueError also where it is too deep for whoever walks it."""
    try:
        value = loads(text)
    except RecursionError:
        raise ValueError(_DEEP) from None
    if text.count("[") + text.count("{") > DEEPEST:
        level = [value]
        for _ in range(DEEPEST):
            inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
            level = [part for values in inner for part in values if isinstance(part, dict | list)]
        if level:
            raise ValueError(_DEEP)
    return value


USERINFO = (
    "the URL holds a user name or a password, which would be stored with the recipe; take it out, and give a server's "
    "key in TERCET_API_KEY"
)


def has_userinfo(text: str) -> bool:
    """Whether a text is a URL with a user in it: `https://me:secret@host/v1`."""
    return bool(_USERINFO.match(text))


def without_userinfo(text: str) -> str:
    """A text for a message, with `[hidden]` in the place of every user and password in a URL."""
    return _USERINFO_ANYWHERE.sub(r"\1[hidden]@", text)


_USERINFO_ANYWHERE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}:[\\/]{2})[^\s/?#'\"]*@")
_USERINFO = re.compile(r"\s*" + _USERINFO_ANYWHERE.pattern)
