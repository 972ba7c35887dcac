"""What engines and servers are asked side by side: prompts that keep their random numbers, and calls with no barrier.

A generator of ours answers one call after another, in batches that decide its last digits. One that has `side_by_side`
takes so many calls at once from as many threads, and its answers do not wait for what was asked with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from tercet.rows import Sampling
from tercet.store import endpoint

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Streamed(Sampling):
    """Every prompt draws by a seed and a number of its own, so that it does not matter which others are left."""

    streams: tuple[tuple[int, int], ...] = ()

    def stream(self, number: int) -> tuple[int, int]:
        """The prompt's own."""
        return self.streams[number]


def elsewhere(engine: str, model: Path) -> bool:
    """Whether an engine or a server answers for a model, and not our own generator."""
    return engine != "local" or endpoint(model) is not None


def calls_of(generator: Any) -> int:
    """How many calls a generator answers side by side; 1 where they would wait for each other."""
    return int(getattr(generator, "side_by_side", 1))


@contextmanager
def lent(generator: Any) -> Iterator[None]:
    """Give back the replicas or connections of a generator afterwards, where it has any."""
    try:
        yield
    finally:
        if hasattr(generator, "close"):
            generator.close()


def as_finished(ask: Callable[[P], R], parts: Iterable[P], calls: int, ended: Event) -> Iterator[tuple[P, R]]:
    """Each part with what `ask` makes of it, as it comes, `calls` at once; with one call in this thread and in order.

    `ended` is set when nothing more is wanted, also after an error: what then still runs had better stop.
    """
    if calls == 1:
        yield from ((part, ask(part)) for part in parts)
        return
    threads = ThreadPoolExecutor(calls, thread_name_prefix="asking")
    futures = {threads.submit(ask, part): part for part in parts}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        ended.set()
        threads.shutdown(wait=False, cancel_futures=True)


def in_turn(ask: Callable[[P], R], parts: Iterable[P], calls: int) -> Iterator[R]:
    """What `ask` makes of each part, in order; `calls` parts are asked ahead, taken from `parts` as they are needed."""
    if calls == 1:
        yield from map(ask, parts)
        return
    threads = ThreadPoolExecutor(calls, thread_name_prefix="asking")
    waiting: deque[Future[R]] = deque()
    try:
        for part in parts:
            waiting.append(threads.submit(ask, part))
            if len(waiting) >= calls:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
