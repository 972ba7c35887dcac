"""What users say in a raw row of any layout, for the decontamination of files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from tercet.data.layouts import PROMPTS, keys_of
from tercet.data.raw_turns import EDGES, SPEAKERS, Raw, is_turns, listed, shared_start
from tercet.rows import RowError

_ANY_TURN = re.compile(r"(?:(?:^|\n)\s*|### )(Human|Assistant):[ \t]*")
_CONVERSATIONS = ("messages", "conversations", "conversation", "prompt", "question", "input", "chosen", "rejected")
_QUESTIONS = (*PROMPTS, "problem", "query", "inputs", "persona", "input persona")
_ANSWERERS = frozenset(name for name, role in SPEAKERS.items() if role != "user")


def user_texts(raw: Raw, where: str) -> list[str]:
    """The user turns of a raw row of any layout, also where an adapter leaves the row out; RowError where it has none.

    Decontamination of files compares these texts, so every row must have some. Both sides of a pair are read (a turn
    that both share counts once), tool calls are not. A message of an OASST tree is a row of its own.
    """
    if raw.get("message_id") and isinstance(raw.get("role"), str) and isinstance(raw.get("text"), str):
        return [raw["text"]] if raw["role"] == "prompter" else []
    found: list[str] = []
    for key in _CONVERSATIONS:
        value = raw.get(key)
        if isinstance(value, list | tuple) or is_turns(value):
            found += _user_turns(listed(value, where), f"{where}, {key}")
        elif isinstance(value, str) and key in ("chosen", "rejected"):
            found += _human_turns(value)
    if found and isinstance(raw.get("prompt"), str) and not is_turns(raw["prompt"]):
        found.append(raw["prompt"])
    found = [*_before(raw), *(found or _questions(raw))] or _shared(raw)
    if not found:
        raise RowError(
            f"{where}: no user turn in {', '.join(dict.fromkeys((*_CONVERSATIONS, *_QUESTIONS)))}: {keys_of(raw)}"
        )
    return list(dict.fromkeys(found))


def _user_turns(turns: Iterable[Any], where: str) -> list[str]:
    """Contents of the user turns, `{role, content}` or `{from, value}`: of all roles that are not `_ANSWERERS`."""
    with suppress(TypeError, KeyError):  # the common layout is tried first without checks, for speed
        found = [turn["content"] for turn in turns if turn["role"] not in _ANSWERERS]
        if all(type(text) is str for text in found):
            return found
    found = []
    for turn in turns:
        if not isinstance(turn, dict) or not {"role", "from"} & turn.keys():
            raise RowError(f"{where}: expected turns of role and content, or of from and value, got {turn!r:.80}")
        role = turn.get("role") if turn.get("role") is not None else turn.get("from")
        text = turn.get("content") if "content" in turn else turn.get("value")
        if isinstance(text, list | tuple):  # content in parts
            text = "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in text if part)
        if role not in _ANSWERERS and text is not None:
            if not isinstance(text, str):
                raise RowError(f"{where}: a turn holds {type(text).__name__}, expected text")
            found.append(text)
    return found


def _before(raw: Raw) -> list[str]:
    """The questions of a `history` of pairs, and the context among axolotl's `segments`."""
    pairs, parts = ([one for one in raw.get(key) or () if one] for key in ("history", "segments"))
    asked = [pair[0] for pair in pairs if isinstance(pair, list | tuple) and isinstance(pair[0], str)]
    told = [part.get("text") for part in parts if isinstance(part, dict) and not part.get("label")]
    return asked + [EDGES.sub("", text) for text in told if isinstance(text, str)]


def _questions(raw: Raw) -> list[str]:
    """The questions of a row without turns, each with its context; Self-Instruct has one for each of its instances."""
    text = next((raw[name] for name in _QUESTIONS if isinstance(raw.get(name), str)), None)
    if text is not None:
        cases = [case for case in raw.get("instances") or () if isinstance(case, dict)]
        contexts = [case.get("input") for case in cases or [raw]]
        return [f"{text}\n\n{more}" if isinstance(more, str) and more.strip() else text for more in contexts]
    asked = [raw[name] for name in ("vanilla", "adversarial") if isinstance(raw.get(name), str)]  # WildJailbreak
    if asked:
        return asked
    spoken = _human_turns("".join(str(raw.get(name) or "") for name in ("text", "input", "output")))
    return spoken or ([raw["input"]] if isinstance(raw.get("input"), str) and "output" in raw else [])


def _shared(raw: Raw) -> list[str]:
    """What two texts without a prompt begin with."""
    good, bad = raw.get("chosen"), raw.get("rejected")
    start = shared_start(good, bad).strip() if isinstance(good, str) and isinstance(bad, str) else ""
    return [start] if start else []


def _human_turns(dialogue: str) -> list[str]:
    """The human's turns in a text of `Human:` and `Assistant:`; none in other text."""
    parts = _ANY_TURN.split(dialogue)
    return [text.strip() for who, text in zip(parts[1::2], parts[2::2], strict=True) if who == "Human"]
