"""`verifiers@1`: a task set of the `verifiers` package (`pip install verifiers`), each episode a rollout of its own.

Such an environment runs the model itself: it asks an address of OpenAI's protocol, answers tool calls, plays the user,
and scores at the end. Here it runs beside us and asks an address of ours: what it asks is the next turn, and what the
model writes is what it is answered. The rewards of its trace are paid when it ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from contextlib import suppress
from functools import cache
from typing import Any

from tercet.environments.tool_words import called, explained, said
from tercet.environments.verifiers_rollout import made, play
from tercet.rows import Message, Row

FIRST = 1_000  # tasks that are read of an endless set


class TasksetEpisode:
    """One rollout of a task. Which one is the row's reference answer, a number from 0 on, or follows from its id."""

    def __init__(self, taskset: str, max_turns: int = 0, **settings: Any) -> None:
        """`taskset` is the module's name, `settings` what its config takes; after `max_turns` it scores and ends."""
        try:
            self.environment = made(taskset, settings, max_turns or None)
        except ImportError as error:
            raise ImportError(f"verifiers@1 needs verifiers 0.4 and the task set's module ({error})") from None
        self.tasks = _tasks(taskset, json.dumps(settings, sort_keys=True))
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answered: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.playing: asyncio.Task[float] | None = None
        self.heard = 0  # turns of its conversation that the model has read or written
        self.turns = 0

    async def reset(self, row: Row) -> list[Message]:
        """Begin a rollout; what it asks first. The row's prompt plays no part."""
        task = self.tasks[_number(row, len(self.tasks))]
        self.playing = asyncio.create_task(play(self.environment, task, self._answer))
        request = await self._next()
        if request is None:
            raise ValueError(f"the rollout ended with reward {self.playing.result()} before it asked the model")
        self.heard = len(request["messages"])
        return said([*explained(request.get("tools") or []), *request["messages"]])

    async def step(self, action: str) -> tuple[list[Message], float, bool, dict[str, Any]]:
        """Answer what was asked; what is asked next, or the reward."""
        assert self.playing is not None
        self.turns += 1
        self.answered.put_nowait(called(action, self.turns))
        request = await self._next()
        if request is None:
            return [], self.playing.result(), True, {}
        new = request["messages"][self.heard :]
        if not new or new[0]["role"] != "assistant":
            raise ValueError("the rollout asked with another conversation than it had; that cannot be trained on")
        self.heard = len(request["messages"])
        return said(new[1:]), 0.0, False, {}

    async def close(self) -> None:
        """End the rollout where it goes on."""
        if self.playing is not None:
            self.playing.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self.playing

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the rollout's server calls: the model's turn, when there is one."""
        self.asked.put_nowait(request)
        return await self.answered.get()

    async def _next(self) -> dict[str, Any] | None:
        """What the rollout asks next; None where it has ended."""
        assert self.playing is not None
        asking = asyncio.ensure_future(self.asked.get())
        await asyncio.wait({asking, self.playing}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        asking.cancel()
        return None


@cache
def _tasks(taskset: str, settings: str) -> list[Any]:
    """The tasks of a set, read once per process."""
    return list(itertools.islice(made(taskset, json.loads(settings), None).taskset, FIRST))


def _number(row: Row, count: int) -> int:
    given = row.reference.strip()
    if not (given.isdigit() and len(given) < 10):
        return int(hashlib.sha256(row.id.encode()).hexdigest(), 16) % count
    if int(given) >= count:
        raise ValueError(f"there is no task {given}: there are {count}, from 0 on, at most {FIRST:,}")
    return int(given)
