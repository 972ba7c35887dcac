"""Under which licence a model or a data set may be published: derived from its base and its data, conflicts in words.

A table says what is known; what is not known is said, and nothing here is legal advice.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tercet.data.catalogue import conflicts

UNKNOWN, OTHER, MIXED = "unknown", "other", "mixed-terms"
_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("licences.toml").read_text(encoding="utf-8"))
_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Base(NamedTuple):
    """What is known of a base model: its licence, and its id and languages on the hub."""

    licence: str = UNKNOWN
    link: str = ""
    hub: str = ""
    language: tuple[str, ...] = ()
    note: str = ""


class Terms(NamedTuple):
    """A licence by the Hub's name, of other terms also a name and link, and the sentences that say why."""

    licence: str | list[str]
    name: str
    link: str
    said: list[str]


def base_of(model: str) -> Base:
    """What the table knows of a model that a recipe names; a hub id is one even where it knows nothing."""
    found: dict[str, Any] = next((one for one in _TABLE["base"] if model.startswith(one["begins"])), {})
    hub = found.get("hub") or (model if _HUB.fullmatch(model) and not Path(model).exists() else "")
    known = {name: found[name] for name in ("licence", "link", "note") if name in found}
    return Base(**known, hub=hub, language=tuple(found.get("language", ())))


def of_model(model: str, parts: Mapping[str, str]) -> Terms:
    """The licence of what was trained from `model` on `parts`, each with its licence as its data card says it."""
    base = base_of(model)
    said = [
        f"The base model `{model}` is under `{base.licence}`."
        if base.licence != UNKNOWN
        else f"The licence of the base model `{model}` is not known here: look it up before you publish."
    ]
    said += [base.note] * bool(base.note) + _about(parts)
    strict = sorted({hub for words in parts.values() if (hub := _TABLE["ids"].get(words)) in _TABLE["strict"]})
    if base.licence == UNKNOWN or not strict:
        return Terms(base.licence, "", "", said)
    named = " and ".join(f"`{one}`" for one in strict)
    if base.link or len(strict) > 1:
        said.append(f"Data under {named} and a base under `{base.licence}`: the terms of all hold, and may conflict.")
        return Terms(OTHER, MIXED, base.link or _TABLE["strict"][strict[0]], said)
    said.append(f"Data under {named} asks more than the base does, so the model is under {named}.")
    return Terms(strict[0], "", "", said)


def of_data(parts: Mapping[str, str]) -> Terms:
    """The licences of a data set's parts."""
    found = sorted({str(_TABLE["ids"].get(words, UNKNOWN)) for words in parts.values()}) or [UNKNOWN]
    return Terms(found if len(found) > 1 else found[0], "", "", _about(parts))


def _about(parts: Mapping[str, str]) -> list[str]:
    """A line for each part's licence, and the reasons against commercial use."""
    licences = dict.fromkeys(parts.values())
    lines = [f"{', '.join(f'`{part}`' for part in parts if parts[part] == words)}: {words}." for words in licences]
    return lines + [f"Commercial use: {sentence}." for sentence in conflicts(parts)]
