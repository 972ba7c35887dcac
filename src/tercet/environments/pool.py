"""Episodes played in processes that may be killed: as many as there are cores, each with its share of the episodes.

A call has a time limit, and a process a limit of memory, as verifiers have. One that hangs is killed: its episode ends
there, and the others of that process are played again in a new one, up to where they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tercet import machine
from tercet.rows import Message, Messages, Row
from tercet.sandbox.workers import (
    Worker,
    WorkerError,
    WorkerRaisedError,
    WorkerStartError,
    WorkerTimeoutError,
    returned,
)

PLAYER = "tercet.environments.worker"
TURN = 7_919  # between the seeds of the turns of episodes that are played side by side


class EnvironmentPlayError(RuntimeError):
    """The environment cannot be used at all; the message says why."""


class Reply(NamedTuple):
    """What follows an action. `fault` says what broke, and then the episode is over; `outcome` is of a Grade."""

    messages: Messages = ()
    reward: float = 0.0
    done: bool = True
    info: str = ""
    outcome: str = "graded"
    fault: str = ""

    @property
    def said(self) -> list[str]:
        """Its turns as a transcript shows them."""
        return [f"[{turn.role}] {turn.content}" for turn in self.messages]


@dataclass
class Played:
    """An episode so far, all that is needed to play it again: its row, its actions, and what followed them."""

    row: Row
    first: Messages = ()
    actions: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    worker: Worker | None = None  # the process that holds it


class EnvironmentPool:
    """Plays any number of episodes side by side; numbered by the caller."""

    def __init__(self, where: str, settings: Mapping[str, Any], seconds: float, workers: int = 0) -> None:
        """`where` is `module:Class` or a file's; `settings` are its arguments; `seconds` the limit of a call."""
        self.where, self.settings, self.seconds = where, dict(settings), seconds
        self.seats = [Seats(self) for _ in range(workers or machine.cores())]

    def check(self) -> None:
        """Raise EnvironmentPlayError where the class cannot be made or has not what it needs."""
        try:
            fault = self.seats[0].ask("describe", self.where, self.settings)
        except (WorkerTimeoutError, WorkerError, WorkerStartError) as error:
            fault = str(error)
        if fault:
            self.close()
            raise EnvironmentPlayError(f"the environment {self.where} cannot be used: {fault}")

    def reset(self, rows: Mapping[int, Row]) -> dict[int, Reply]:
        """Begin the episodes of these numbers; the turns that each begins with."""
        return self._spread(rows)

    def step(self, actions: Mapping[int, str]) -> dict[int, Reply]:
        """What follows an action in each of these episodes."""
        return self._spread(actions)

    def finish(self) -> None:
        """End the episodes that go on; the processes stay."""
        for table in self.seats:
            table.forget(list(table.games))

    def close(self) -> None:
        """End all processes."""
        for table in self.seats:
            table.leave()
            table.games.clear()

    def _spread(self, wanted: Mapping[int, Row | str]) -> dict[int, Reply]:
        """Each process's part by a thread of its own, which mostly waits for its process."""
        size = len(self.seats)
        with ThreadPoolExecutor(size) as threads:
            parts = [{n: one for n, one in wanted.items() if n % size == i} for i in range(size)]
            found = threads.map(lambda pair: pair[0].play(pair[1]), zip(self.seats, parts, strict=True))
            return {number: reply for part in found for number, reply in part.items()}


class Seats:
    """One process and the episodes that are played in it."""

    def __init__(self, pool: EnvironmentPool) -> None:
        self.pool, self.games = pool, dict[int, Played]()
        self._worker: Worker | None = None

    def leave(self) -> None:
        """End the process; what is played in it is played again in the next one."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def play(self, wanted: Mapping[int, Row | str]) -> dict[int, Reply]:
        """Begin an episode for each row, act in one for each text; one after another."""
        found = {}
        for number, one in wanted.items():
            try:
                found[number] = self._begun(number, one) if isinstance(one, Row) else self._acted(number, one)
            except WorkerTimeoutError as error:
                found[number] = Reply(outcome="timeout", fault=str(error))
            except WorkerError as error:
                found[number] = Reply(outcome="error", fault=str(error))
            if found[number].done:
                self.forget([number])
        return found

    def ask(self, function: str, *args: Any) -> Any:
        """What a function of the worker's side answers; the process is gone where it hung or died."""
        if self._worker is None:
            self._worker = Worker()
        try:
            return returned(self._worker.ask(f"{PLAYER}:{function}", args, self.pool.seconds), function)
        except WorkerRaisedError:
            raise
        except (WorkerTimeoutError, WorkerError):
            self.leave()
            raise

    def _begun(self, number: int, row: Row) -> Reply:
        first = self._reset(number, row)
        self.games[number] = Played(row, first, worker=self._worker)
        return Reply(first, done=False)

    def _acted(self, number: int, action: str) -> Reply:
        game = self.games[number]
        if self._worker is None or game.worker is not self._worker:
            self._play_again(number, game)
        reply = self._step(number, action)
        game.actions.append(action)
        game.replies.append(reply)
        return reply

    def _reset(self, number: int, row: Row) -> Messages:
        turns = self.ask("reset", number, self.pool.where, self.pool.settings, row)
        return tuple(Message(*turn) for turn in turns)

    def _step(self, number: int, action: str) -> Reply:
        turns, reward, done, info = self.ask("step", number, action)
        return Reply(tuple(Message(*turn) for turn in turns), reward, done, info)

    def _play_again(self, number: int, game: Played) -> None:
        """Bring an episode whose process was lost to where it was, in the process of now."""
        try:
            same = self._reset(number, game.row) == game.first
            same = same and [self._step(number, action) for action in game.actions] == game.replies
        except WorkerTimeoutError:
            raise
        except WorkerError as error:
            raise WorkerError(f"its process was lost, and it could not be played again: {error}") from None
        if not same:
            raise WorkerError("its process was lost, and when played again it went otherwise; it has to repeat itself")
        game.worker = self._worker

    def forget(self, numbers: list[int]) -> None:
        """Drop these episodes, here and in the process, which tells those of its objects that have a `close`."""
        for number in numbers:
            self.games.pop(number, None)
        if numbers and self._worker is not None:
            with suppress(WorkerTimeoutError, WorkerError):
                self.ask("close", numbers)
