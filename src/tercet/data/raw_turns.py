"""The turns of a raw row, in whatever way a file holds them, as `tercet.rows.messages_from` takes them.

A column of turns is a list, the JSON of one, or a table's struct of lists. A turn says who speaks under `role` or
`from` and what under `content` or `value`. What else a turn has (a thought, calls, a weight) stays with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tercet.outside import read_json
from tercet.rows import Message, Messages, RowError, messages_from, with_tools
from tercet.rows_details import ONLY_TEXT, ROLE_NAMES, ROLES, is_plain

Raw = dict[str, Any]
Turn = Message | Raw

EDGES = re.compile(r"^<s>|(?:</s>|<\|endoftext\|>)$")  # marks of a whole text, which templates write themselves
SYSTEM = ("system", "system_prompt", "system_message")  # columns with the text of a first turn
MEDIA = {"image": "image", "images": "image", "audio": "audio", "audios": "audio", "video": "video", "videos": "video"}
SPEAKERS: dict[str, str] = {role: role for role in ROLES} | ROLE_NAMES
SPEAKERS |= {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
SPEAKERS |= {"function_call": "assistant", "tool_call": "assistant"}
SPEAKERS |= dict.fromkeys(("observation", "tool_response", "function_response", "ipython"), "tool")
_BESIDE = frozenset((*SYSTEM, *MEDIA, "tools", "functions"))  # columns that are read with any turns
_CALLERS = ("function_call", "tool_call")  # their text is a call


def is_turns(value: Any) -> bool:
    """Whether a column holds turns rather than a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value)
    if isinstance(value, dict):
        return any(isinstance(value.get(key), list | tuple) for key in ("role", "from"))
    opening = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(opening, dict) and bool(opening.keys() & {"role", "from"})


def turns_in(value: Any, where: str) -> list[Turn]:
    """The turns of a column, each with a role of ours and its text under `content`."""
    return [turn_of(turn, f"{where}: turn {number}") for number, turn in enumerate(listed(value, where))]


def listed(value: Any, where: str) -> list[Any]:
    """The turns of a column as they stand."""
    found = _parsed(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        found = _zipped(found, where)
    if not isinstance(found, list | tuple):
        raise RowError(f"{where}: expected a list of turns, its JSON or a struct of lists, got {value!r:.60}")
    return list(found)


def turn_of(turn: Any, where: str) -> Turn:
    """One turn, `{role, content}` or `{from, value}`; null content is an empty text."""
    if isinstance(turn, Message) or is_plain(turn):
        return turn
    if not isinstance(turn, dict) or not turn.keys() & {"role", "from"}:
        raise RowError(
            f"{where} must be an object with 'role' and 'content', or with 'from' and 'value', got {turn!r:.80}"
        )
    named, said = "role" if turn.get("role") is not None else "from", "content" if "content" in turn else "value"
    speaker, content = turn.get(named), turn.get(said)
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise RowError(f"{where} has {named} {speaker!r:.40}; expected one of {', '.join(SPEAKERS)}")
    if said not in turn and not turn.keys() & {"tool_calls", "function_call"}:
        raise RowError(f"{where} must be an object with 'role' and 'content', got {turn!r:.80}")
    rest = {key: more for key, more in turn.items() if key not in ("role", "content", "from", "value")}
    calls = {"tool_calls": content} if speaker in _CALLERS else {}
    return {"role": SPEAKERS[speaker], "content": "" if calls or content is None else content, **rest, **calls}


def side_in(value: Any, where: str, role: str = "assistant") -> list[Turn]:
    """One side of an exchange: a text, a turn, or turns."""
    if isinstance(value, dict) and not is_turns(value):
        return [turn_of(value, where)]
    if isinstance(value, str) and not is_turns(value):
        return [Message(role, value)]
    return turns_in(value, where)


def shared_start(one: str, other: str) -> str:
    """What two texts begin with, to the last white space in it: no word is cut."""
    same = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if same is None:  # one is the beginning of the other
        same = min(len(one), len(other))
    start = one[:same]
    return start if not start or start[-1].isspace() else start.removesuffix(start.split()[-1])


def conversation_of(raw: Raw, turns: Iterable[Turn], where: str) -> Messages:
    """The turns behind the row's system text, with its tools; of images and the like nothing can be read."""
    if raw.keys().isdisjoint(_BESIDE):
        return messages_from(turns, where)
    if media := next((key for key in MEDIA if raw.get(key) not in (None, "", [], {})), ""):
        raise RowError(f"{where}: has {media} beside its text; {ONLY_TEXT.format(MEDIA[media])}")
    messages = messages_from(turns, where)
    text = next((raw[key] for key in SYSTEM if isinstance(raw.get(key), str) and raw[key].strip()), "")
    own = messages[0].content if messages[0].role == "system" else ""
    if text and own and text.strip() != own.strip():
        raise RowError(f"{where}: has a system text in its column and another in its first turn; remove one of them")
    start = (Message("system", text),) if text and not own else ()
    return with_tools((*start, *messages), raw.get("tools") or raw.get("functions"), where)


def _parsed(text: str) -> Any:
    """What a text of JSON holds; the text itself where it is none."""
    try:
        return read_json(text)
    except ValueError:
        return text


def _zipped(columns: Raw, where: str) -> list[Raw]:
    """The turns of a struct of lists, as tables hold them: `{"role": [...], "content": [...]}`."""
    lists = {key: value for key, value in columns.items() if isinstance(value, list | tuple)}
    if not lists or len({len(value) for value in lists.values()}) > 1:
        sizes = ", ".join(f"{key} {len(value)}" for key, value in lists.items()) or "no list"
        raise RowError(f"{where}: expected lists of one length for the turns, got {sizes}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
