"""The worker's side of pool.py: it holds the episodes' objects, calls them, and gives back plain values alone."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from tercet.rows import Message, Row
from tercet.verify.user_code import UserCodeError, described, load

Turn = tuple[str, str]  # role and content
TEXT = 100_000  # characters of a turn, and of a note
ROLES = ("system", "user", "tool")

_PLAYED: dict[int, Any] = {}  # the objects of the episodes that are being played here, by number
_LOOP: list[asyncio.AbstractEventLoop] = []  # one for all calls, as what a coroutine opens belongs to its loop


class WrongEnvironmentError(TypeError):
    """What an environment gave is not what was asked of it."""


def describe(where: str, settings: Mapping[str, Any]) -> str:
    """Why an environment cannot be used; empty where it can."""
    try:
        _made(where, settings)
    except (UserCodeError, ImportError, AttributeError, WrongEnvironmentError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return described(error)
    return ""


def reset(number: int, where: str, settings: Mapping[str, Any], row: Row) -> list[Turn]:
    """Begin episode `number`; the turns that the model reads first."""
    played = _PLAYED[number] = _made(where, settings)
    turns = _turns(_called(played.reset, row), ("assistant", *ROLES))
    if not turns or turns[-1][0] == "assistant":
        raise WrongEnvironmentError("reset() gave no turn that waits for an answer; expected a user's turn last")
    return turns


def step(number: int, action: str) -> tuple[list[Turn], float, bool, str]:
    """What follows an action of episode `number`: turns, reward, whether it is over, and its note as JSON."""
    found = _called(_PLAYED[number].step, action)
    if not (isinstance(found, tuple | list) and len(found) == 4):
        raise WrongEnvironmentError(f"step() gave {found!r:.80}; expected (messages, reward, done, info)")
    messages, reward, done, info = found
    if isinstance(reward, bool) or not isinstance(reward, Real) or not math.isfinite(reward):
        raise WrongEnvironmentError(f"step() gave the reward {reward!r:.80}; expected a finite number")
    turns = _turns(messages, ROLES)
    if not (turns or done):
        raise WrongEnvironmentError("step() gave no turn and did not end the episode; the model has nothing to answer")
    note = json.dumps(info, ensure_ascii=False, default=str) if info else ""
    return turns, float(reward), bool(done), note[:TEXT]


def close(numbers: Sequence[int]) -> None:
    """Forget these episodes; objects that have a `close` are told."""
    for number in numbers:
        if (played := _PLAYED.pop(number, None)) is not None and hasattr(played, "close"):
            _called(played.close)


def _made(where: str, settings: Mapping[str, Any]) -> Any:
    made = load(where)(**settings)
    if missing := [name for name in ("reset", "step") if not callable(getattr(made, name, None))]:
        raise WrongEnvironmentError(f"{where} has no {' and no '.join(missing)}; expected reset(row) and step(action)")
    return made


def _called(function: Callable[..., Any], *args: Any) -> Any:
    found = function(*args)
    if not inspect.isawaitable(found):
        return found
    if not _LOOP:
        _LOOP.append(asyncio.new_event_loop())
    return _LOOP[0].run_until_complete(_awaited(found))


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def _turns(found: Any, roles: Sequence[str]) -> list[Turn]:
    """Turns as roles and contents, whatever way they were given."""
    given = [found] if isinstance(found, str | Message | Mapping) else list(found or [])
    turns = []
    for one in given:
        match one:
            case str():
                turn = ("user", one)
            case Mapping():
                turn = (one.get("role", ""), one.get("content", ""))
            case _:
                turn = (getattr(one, "role", ""), getattr(one, "content", ""))
        if turn[0] not in roles or not isinstance(turn[1], str) or len(turn[1]) > TEXT:
            raise WrongEnvironmentError(
                f"a turn is {one!r:.80}; expected a role of {', '.join(roles)} and at most {TEXT:,} characters"
            )
        turns.append((str(turn[0]), turn[1]))
    return turns
