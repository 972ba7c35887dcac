"""The prompts of authors and solvers of synthetic rows (data/synthesis/personas.py): the texts of `personas.toml`."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from tercet.data import tables


@dataclass(frozen=True, config=tables.STRICT)
class Category:
    """What a request is like that should not simply be fulfilled, and how it is answered well."""

    what: str
    how: str


@dataclass(frozen=True, config=tables.STRICT)
class Texts:
    """The texts by what they are for; `ask` has one for each kind of rows that an author writes."""

    common: str
    examples: tuple[str, ...]
    calls: str
    guides: dict[str, str]
    ask: dict[str, str]
    categories: dict[str, Category]


def prompt_texts() -> Texts:
    """The texts of the table."""
    return tables.document("personas.toml", Texts)
