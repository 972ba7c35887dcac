"""Rows from the columns that a recipe names: `prompt`, `answer`, `info`, and the verifier that grades them.

With `verifier` a row is a prompt that can be rewarded or evaluated, and the answer is its reference. Without one the
answer is the assistant's turn. A name such as `extra_info.answer` leads into an object where no column is called so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tercet.data.layouts import Adapter, keys_of
from tercet.data.problems import SKILLS
from tercet.data.raw_turns import Raw, conversation_of, is_turns, turns_in
from tercet.recipe import SourceSpec
from tercet.rows import Message, Messages, Row, RowError, SourceError
from tercet.verify import VerifierError, check_reference, verifier


def by_columns(source: SourceSpec, adapter: Adapter | None = None) -> Adapter:
    """The adapter that reads the columns which the source names, with `adapter` where it names no prompt."""
    column = _reader()
    check = _reference_check(source.verifier) if source.verifier else None

    def adapt(raw: Raw, where: str) -> Row:
        if adapter is None:
            row = Row(raw["id"], _asked(raw, column(raw, "prompt", source.prompt, where), where))
        else:
            row = adapter(raw | {"verifier": source.verifier} if check else raw, where)
        told = as_text(column(raw, "answer", source.answer, where), source.answer, where) if source.answer else ""
        if not check:
            return replace(row, messages=(*row.messages, Message("assistant", told))) if told else row
        reference = told or row.reference or row.answer or ""
        if source.info:
            info = {name: column(raw, "info", name, where) for name in source.info}
            reference = json.dumps({"answer": reference, "info": info}, ensure_ascii=False, default=str)
        check(reference, where)
        skill = SKILLS.get(source.verifier.partition("@")[0], row.skill)
        return replace(row, verifier=source.verifier, reference=reference, skill=skill)

    return adapt


def as_text(value: Any, name: str, where: str) -> str:
    """An answer as text: a number, a list or an object as JSON writes it; RowError where there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(f"{where}: has no answer under {name!r}; fill or remove the row")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _reader() -> Callable[[Raw, str, str, str], Any]:
    """Reads a named column. A name that has never been there is an error of the recipe, else one of the row."""
    there: set[str] = set()

    def column(raw: Raw, key: str, name: str, where: str) -> Any:
        value: Any = raw
        for part in (name,) if name in raw else name.split("."):
            if not isinstance(value, dict) or part not in value:
                kind = RowError if name in there else SourceError
                raise kind(f"{where}: no column {name!r}, which the source names as `{key}`; there are: {keys_of(raw)}")
            value = value[part]
        there.add(name)
        return value

    return column


def _asked(raw: Raw, value: Any, where: str) -> Messages:
    """A prompt as turns, a text or a list of messages, behind the row's system text and with its tools."""
    if is_turns(value):
        return conversation_of(raw, turns_in(value, where), where)
    if not isinstance(value, str):
        raise RowError(f"{where}: expected a text or a list of messages as prompt, got {value!r:.60}")
    return conversation_of(raw, [Message("user", value)], where)


def _reference_check(name: str) -> Callable[[str, str], None]:
    """Refuses a reference answer that the verifier cannot read. Slow ones, and users' own, do so where they grade."""
    try:
        found = verifier(name)
    except VerifierError as error:
        raise SourceError(str(error)) from None

    def check(reference: str, where: str) -> None:
        if found.needs_reference and not reference.strip():
            raise RowError(f"{where}: has no reference answer for {name}; name the column that holds it with `answer`")
        try:
            if not (found.slow or found.package):
                check_reference(name, reference)
        except VerifierError as error:
            raise RowError(f"{where}: {error}") from None

    return check
