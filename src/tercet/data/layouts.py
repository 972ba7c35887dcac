"""The layouts that any file may have: which keys make which, and which one a file's rows have for what a stage needs.

`layouts.toml` lists them, each with the adapter that reads it (`common_adapters`, `pairs`, `problems`, `adapters`).
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tercet.data.raw_turns import MEDIA, SYSTEM, Raw, is_turns
from tercet.rows import THOUGHTS, Row, RowError
from tercet.rows_details import WEIGHTS

Adapter = Callable[[Raw, str], Row]
Unfold = Callable[[Iterable[tuple[Raw, str]]], Iterator[tuple[Raw, str]]]


class Skip(Exception):  # noqa: N818 (the row is no error)
    """A row that fits its layout and is left out by policy; the message is the reason that is counted."""


class RowLayout(NamedTuple):
    """One layout: rows have these keys, with values of these kinds, and the adapter reads them.

    It gives rows, prompts (rows without an answer), pairs, unpaired (answers marked good or bad), or nothing. A `whole`
    layout joins or parts the objects of a file, so all of them must have it.
    """

    adapter: str
    keys: tuple[str, ...]
    meaning: str
    gives: str
    kinds: tuple[str, ...] = ()
    whole: bool = False


def _layout(keys: Mapping[str, str], **rest: Any) -> RowLayout:
    return RowLayout(keys=tuple(keys), kinds=tuple(keys.values()), **rest)


_TABLE = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))
LAYOUTS = tuple(_layout(**one) for one in _TABLE["layout"])  # the first that fits is taken
DATASETS: dict[str, str] = {name: graded for graded, names in _TABLE["datasets"].items() for name in names}
GIVES = {  # what a stage needs -> what a layout may give for it
    "rows": ("rows", "prompts", "pairs", "unpaired", "nothing"),
    "pairs": ("pairs",),
    "unpaired": ("unpaired", "pairs"),
}
PROMPTS = ("prompt", "instruction", "Instruction", "question")
TURN_FIELDS = frozenset(("role", "content", "from", "value", "tool_calls", "function_call", "tool_call_id", "name"))
TURN_FIELDS |= {*THOUGHTS, *WEIGHTS, "tools", "details"}  # the fields of a turn that are read
_COLUMNS: dict[str, list[str]] = _TABLE["columns"]
_ZERO_ONE = (0, 1, "0", "1")
_GOOD = frozenset(("true", "good", "desirable", "chosen", "yes"))
_BAD = frozenset(("false", "bad", "undesirable", "rejected", "no"))
_KINDS: dict[str, Callable[[Any], bool]] = {  # of one value
    "any": lambda value: True,
    "null": lambda value: True,
    "text": lambda value: isinstance(value, str) and not is_turns(value),
    "turns": is_turns,
    "turn": lambda value: isinstance(value, dict) and not is_turns(value),
    "side": lambda value: isinstance(value, str) or is_turns(value),
    "object": lambda value: isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{")),
    "list": lambda value: isinstance(value, list | tuple),
    "dataset": lambda value: isinstance(value, str) and value.lower() in DATASETS,
}
_COLUMN_KINDS: dict[str, Callable[[list[Any]], bool]] = {  # of all values of a column
    "mark": lambda values: any(_is_mark(value) for value in values) or all(value in _ZERO_ONE for value in values),
    "human": lambda values: any(str(value).lstrip().startswith("Human:") for value in values),
    "spoken": lambda values: any(str(value).lstrip().startswith("### Human:") for value in values),
    "number": lambda values: all("####" in str(value) for value in values),
}


def recognise(rows: Sequence[Raw], need: str = "rows") -> RowLayout:
    """The layout of a file that opens with these rows, for a stage that needs rows, pairs or unpaired answers."""
    return Choice(rows, need).counts.most_common(1)[0][0]


class Choice:
    """Which layout each row of a file has, decided by the file's first rows.

    A row has the first layout that fits it and gives what the stage needs. `main` is that of all first rows; it is None
    where they have several, and the file is then read row by row.
    """

    def __init__(self, head: Sequence[Raw], need: str = "rows") -> None:
        if not head:
            raise RowError("no rows to recognise a layout by; the file is empty")
        self._layouts = [layout for layout in LAYOUTS if layout.gives in GIVES[need]]
        self._columns = {(key, kind): _COLUMN_KINDS[kind](values) for key, kind, values in _columns(head)}
        self._by_shape: dict[tuple[Any, ...], list[RowLayout]] = {}
        self._head = [(self.of(raw), filled(raw)) for raw in head]
        self.counts = Counter(layout for layout, _ in self._head if layout)
        if not self.counts:
            raise _stranger(head, need)
        if all(layout.gives == "nothing" for layout in self.counts):  # single rows of such a layout are bad rows
            raise RowError(refusal(next(iter(self.counts))))
        self.main = next(iter(self.counts)) if len(self.counts) == 1 else None
        if not self.main and any(layout.whole for layout in self.counts):
            raise RowError(f"all rows of a file must have one layout here, {self._first_other()}")

    def of(self, raw: Raw) -> RowLayout | None:
        """The layout of a row; None where no layout fits."""
        shape = (*raw, *(value is None for value in raw.values()))
        if shape not in self._by_shape:
            if len(self._by_shape) > 1000:  # rows with ever new keys
                self._by_shape.clear()
            self._by_shape[shape] = [layout for layout in self._layouts if _has_keys(raw, layout)]
        return next((layout for layout in self._by_shape[shape] if self._fits(raw, layout)), None)

    def why(self) -> str:
        """How the file is read, in a sentence."""
        if self.main:
            return (
                f"is read as {self.main.adapter!r}: every row has {' and '.join(self.main.keys)}: {self.main.meaning}"
            )
        shares = [f"{number} as {_named(layout)}" for layout, number in self.counts.most_common()]
        return f"is read row by row, of its first {len(self._head)} rows {', '.join(shares)}; {self._first_other()}"

    def _first_other(self) -> str:
        opening = next(layout for layout, _ in self._head if layout)
        number, keys = next((n, keys) for n, (one, keys) in enumerate(self._head, 1) if one not in (None, opening))
        return f"the first that differs is row {number} with the keys {keys}"

    def _fits(self, raw: Raw, layout: RowLayout) -> bool:
        return all(self._is(key, kind, raw[key]) for key, kind in zip(layout.keys, layout.kinds, strict=True))

    def _is(self, key: str, kind: str, value: Any) -> bool:
        if kind in _KINDS:
            return _KINDS[kind](value)
        known = self._columns.get((key, kind))
        return _COLUMN_KINDS[kind]([value]) if known is None else known


def _columns(head: Sequence[Raw]) -> Iterator[tuple[str, str, list[Any]]]:
    """The columns by whose values layouts are told apart, as far as the first rows have some."""
    named = {pair for layout in LAYOUTS for pair in zip(layout.keys, layout.kinds, strict=True)}
    for key, kind in sorted(pair for pair in named if pair[1] in _COLUMN_KINDS):
        if values := [raw[key] for raw in head if raw.get(key) is not None]:
            yield key, kind, values


def _has_keys(raw: Raw, layout: RowLayout) -> bool:
    pairs = zip(layout.keys, layout.kinds, strict=True)
    return all(key in raw and (raw[key] is not None or kind == "null") for key, kind in pairs)


def _named(layout: RowLayout) -> str:
    return f"{layout.adapter!r} ({' and '.join(layout.keys)})"


def _stranger(head: Sequence[Raw], need: str) -> RowError:
    """Why no row of the file can be read: it gives something else, or is unknown."""
    if need != "rows":
        with suppress(RowError):
            return RowError(f"a file that {Choice(head).why()}; that gives no {need}, as this stage needs them")
    seen = sorted({keys_of(row) for row in head})
    return RowError(
        f"no known layout fits rows with the keys {' / '.join(seen)[:200]}; name an `adapter` in the recipe"
    )


def refusal(layout: RowLayout) -> str:
    """Why rows of a layout that gives nothing are not read."""
    return f"rows with {' and '.join(layout.keys)} are not read: {layout.meaning}"


def filled(raw: Raw) -> str:
    """The names of the columns that hold something, for a message."""
    return keys_of({key: value for key, value in raw.items() if value is not None})


def columns_read(adapter: str) -> frozenset[str]:
    """The columns that an adapter uses; a row's other columns are left behind."""
    named = {key for layout in LAYOUTS if layout.adapter == adapter for key in layout.keys}
    common = (*SYSTEM, *MEDIA, "tools", "functions") if adapter in _COLUMNS["conversational"] else ()
    return frozenset(("id", *named, *common, *_COLUMNS.get(adapter, ())))


def mark_of(raw: Raw) -> bool | None:
    """Whether the answer of a row is marked as good or as bad (KTO); None without a mark that can be read."""
    for key in ("kto_tag", "label"):
        value = raw.get(key)
        word = value.strip().lower() if isinstance(value, str) else None
        if word in _GOOD or (word is None and value == 1) or word == "1":
            return True
        if word in _BAD or (value is not None and word is None and value == 0) or word == "0":
            return False
    return None


def _is_mark(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _GOOD | _BAD)


def texts(raw: Raw, where: str, *names: str) -> list[str]:
    """The columns of these names, which must all be texts."""
    if missing := [name for name in names if not isinstance(raw.get(name), str)]:
        raise RowError(f"{where}: expected text under {' and '.join(missing)}, got the keys {keys_of(raw)}")
    return [raw[name] for name in names]


def keys_of(raw: Raw) -> str:
    """The names of the columns, for a message."""
    return ", ".join(sorted(str(key) for key in raw if key != "id")) or "none"
