"""`contaminated@1`: rows that copy the benchmark, so that every run shows its decontamination at work.

The rows are the benchmark's own first word problems and instructions with other case or punctuation, as in a careless
copy in a public data set. They go into a mixture like any source, and `mix` must remove every one of them. Generators
make the same rows for the same seed, so a recipe gives this stage the seed of its benchmark stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, cycle
from typing import Literal

from tercet.data.generators import constraints, words
from tercet.rows import Message, Row

SOURCE = "contaminated@1"


def generate(num_rows: int, split: Literal["train", "test"], seed: int) -> list[Row]:
    """`num_rows` rows copied from the word problems and instructions of the benchmark with this seed, in turn."""
    if split != "train":
        raise ValueError(f'{SOURCE} makes rows for mixtures only; use split = "train", got {split!r}')
    pairs = zip(words.generate(num_rows, "test", seed), constraints.generate(num_rows, "test", seed), strict=True)
    copied = list(chain.from_iterable(pairs))[:num_rows]
    return [_edited(row, number, edit) for number, (row, edit) in enumerate(zip(copied, cycle(_EDITS), strict=False))]


def _edited(row: Row, number: int, edit: Callable[[str], str]) -> Row:
    turns = [Message(turn.role, edit(turn.content)) if turn.role == "user" else turn for turn in row.messages]
    return replace(row, id=f"contaminated-{number}", messages=tuple(turns), source=SOURCE)


def _other_marks(text: str) -> str:
    return f'"{text.replace(", ", "; ").replace(". ", " - ").replace("? ", "! ")}"'


_EDITS: tuple[Callable[[str], str], ...] = (str.upper, _other_marks, str.swapcase)
