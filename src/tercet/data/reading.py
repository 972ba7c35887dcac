"""The account of a source that is read: its rows are kept, left out by policy, or bad; and what they leave behind.

A bad row is one that cannot be read. It is left out and counted by reason, with the first places and sentences, up to
the share of the source that the recipe allows; above it the reading stops. What a row carries and its adapter does not
read is left behind: the columns and fields of turns named in `tables/meaning.toml`, counted in rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic.dataclasses import dataclass as checked

from tercet.data import tables
from tercet.data.layouts import TURN_FIELDS, columns_read
from tercet.data.raw_turns import MEDIA, SYSTEM, Raw
from tercet.recipe import SourceSpec
from tercet.rows import Pair, Row, RowError, SourceError

FIRST, LEAST = 1000, 20  # of the first rows, so many may be bad whatever share is allowed: bad rows come in clusters
EXAMPLES, REASONS = 3, 20  # most examples of a reason, most reasons
OTHER = "another reason"
MOST_SHAPES = 1000  # sets of keys that are kept; rows with ever new ones need no memory

_BESIDE_PROMPTS = frozenset((*SYSTEM, *MEDIA, "tools", "functions"))  # what is read with a prompt column
_CONVERSATIONS = {"messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected"}


@dataclass
class Reading:
    """The counts of a source: kept + skipped + bad = read, save where rows join objects (OASST's paths)."""

    read: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    bad: Counter[str] = field(default_factory=Counter)  # reason -> rows
    examples: dict[str, list[str]] = field(default_factory=dict)  # reason of bad rows -> sentences with file and row
    left: Counter[str] = field(default_factory=Counter)  # column, or column.field of turns -> rows
    said: list[str] = field(default_factory=list)  # layouts that were recognised, and why

    def refuse(self, error: RowError, where: str, most: float) -> None:
        """Count a bad row of a source that may have the share `most` of them; raise where it cannot go on."""
        reason = reason_of(str(error), where)
        reason = reason if reason in self.bad or len(self.bad) < REASONS else OTHER
        self.bad[reason] += 1
        shown = self.examples.setdefault(reason, [])
        folder = where.rpartition(", row ")[0].rpartition("/")[0]  # a summary is the same wherever the file lies
        shown += [str(error).replace(f"{folder}/", "") if folder else str(error)] * (len(shown) < EXAMPLES)
        if isinstance(error, SourceError) or not most:
            raise error
        if self.read <= FIRST and self.bad.total() > max(LEAST, most * FIRST):
            raise self._too_many(most)

    def finish(self, most: float) -> None:
        """At the end of a source: RowError where too many rows are bad, or all. One row is always allowed."""
        if self.bad and (self.bad.total() > max(1, most * self.read) or not self.kept + self.skipped.total()):
            raise self._too_many(most)

    def _too_many(self, most: float) -> RowError:
        first = next(iter(self.examples.values()))[0]
        counted = f"{self.bad.total():,} of {self.read:,} rows cannot be read ({tally(self.bad)})"
        return RowError(f"{first}. {counted}; `max_bad = {most:g}` allows {max(1, int(most * self.read)):,}")

    def plain(self) -> dict[str, Any]:
        """What `summary.json` says beside the numbers: reasons with examples, and columns left behind."""
        bad = [{"reason": name, "rows": rows, "examples": self.examples[name]} for name, rows in self.bad.most_common()]
        found = {"bad": bad, "left": dict(self.left.most_common())}
        return {"skipped": dict(sorted(self.skipped.items()))} | {key: value for key, value in found.items() if value}

    def sentences(self, name: str) -> Iterator[str]:
        """What a run says on the terminal of a source that lost something."""
        if self.bad:
            yield f"{name}: {self.bad.total():,} of {self.read:,} rows cannot be read: {tally(self.bad)}"
        if self.left:
            yield f"{name}: left behind, because nothing reads it: {tally(self.left, 'rows of ')}"


def tally(counts: Counter[str], of: str = "") -> str:
    """`2 has no user turn, 1 not valid JSON`, the largest first."""
    return ", ".join(f"{number:,} {of}{name}" for name, number in counts.most_common())


def reason_of(message: str, where: str) -> str:
    """The part of a message that other rows share: without the place, what the row held, and what to do."""
    text = message.removeprefix(where).lstrip(":,. ")
    text = _PLACE.sub("", text)
    text = _ENDS.split(text, maxsplit=1)[0]
    return _NUMBER.sub("N", _QUOTED.sub(_unless_known, text)).strip() or OTHER


_PLACE = re.compile(r"^.*?, (?:row|line) \d+[^:]*: ")
_ENDS = re.compile(r"[;\n]|,? (?:but )?got ")
_NUMBER = re.compile(r"(?<![\w-])\d+\b")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


def _unless_known(quoted: re.Match[str]) -> str:
    return quoted[0] if quoted[0][1:-1] in _words() else "'…'"


@checked(frozen=True, config=tables.STRICT)
class Meaning:
    """The names of `tables/meaning.toml`: what is left behind unless read, and texts, which may stand elsewhere."""

    marks: frozenset[str]
    texts: frozenset[str]


@cache
def meaning() -> Meaning:
    """The table of names."""
    return tables.document("meaning.toml", Meaning)


@cache
def _words() -> frozenset[str]:
    """Quoted words that are names, not something a row holds."""
    return meaning().marks | meaning().texts | TURN_FIELDS | {"from", "value"}


class Leftovers:
    """Finds what the rows of one source carry beside what their adapter reads."""

    def __init__(self, adapter: str, source: SourceSpec) -> None:
        self._reader = f"the adapter {adapter!r}" if adapter else "the source"
        named = (source.prompt, source.answer, *source.info)
        read = columns_read(adapter) if adapter else _BESIDE_PROMPTS
        self._used = read | {name.partition(".")[0] for name in named}
        self._names = (meaning().marks | meaning().texts) - self._used
        self._known: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
        self._fields = (meaning().marks | meaning().texts) - TURN_FIELDS

    def of(self, raw: Raw, carried: Iterable[str]) -> list[str]:
        """Columns, and fields of turns as `messages.images`, that say something and are in no text of the row read."""
        columns, conversations = self._columns(tuple(raw))
        unread = [(name, name, raw[name]) for name in columns]
        for column in conversations:
            turns = raw[column] if isinstance(raw[column], list | tuple) else [raw[column]]
            odd = [turn for turn in turns if isinstance(turn, dict) and not turn.keys() <= TURN_FIELDS]
            unread += [
                (f"{column}.{name}", name, turn[name]) for turn in odd for name in sorted(turn.keys() & self._fields)
            ]
        if not unread:
            return []
        texts = "\n".join(carried)
        return list(dict.fromkeys(label for label, name, value in unread if _lost(name.lower(), value, texts)))

    def _columns(self, keys: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Of a row with these keys, the columns that nobody reads, and those of turns; kept, as most rows are alike."""
        if keys not in self._known:
            if len(self._known) > MOST_SHAPES:
                self._known.clear()
            unread = [name for name in keys if name.lower() in self._names and name not in self._used]
            self._known[keys] = unread, [name for name in keys if name in _CONVERSATIONS and name in self._used]
        return self._known[keys]

    def complaint(self, names: list[str], where: str) -> SourceError:
        """Why a strict source stops."""
        return SourceError(
            f"{where}: {' and '.join(names)} would be left behind: {self._reader} does not read it; take it out of the "
            "file, choose an adapter that reads it, or leave out `strict`, so that it is only counted"
        )


def carried_by(entry: Row | Pair) -> Iterator[str]:
    """All texts of a row or a pair that was read."""
    turns = entry.messages if isinstance(entry, Row) else (*entry.chosen, entry.rejected[-1])
    for turn in turns:
        yield from (value for value in vars(turn).values() if isinstance(value, str))
    if isinstance(entry, Row):
        yield from (entry.reference, entry.template)


def _lost(name: str, value: Any, carried: str) -> bool:
    """Whether a value says something: a mark that is set, or a text that the row read does not hold."""
    if name in meaning().texts:
        return any(text.strip() not in carried for text in _texts(value))
    return not (value is None or (isinstance(value, str | list | tuple | dict) and not value))


def _texts(value: Any) -> Iterator[str]:
    """The texts within a value that are not blank."""
    if isinstance(value, str):
        yield from [value] if value.strip() else ()
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
