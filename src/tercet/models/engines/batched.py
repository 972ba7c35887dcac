"""`submit` for a generator that writes lists of prompts: an engine in the process of its trainer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from tercet.models.chat import ChatGenerator
from tercet.models.engines.replica import WrittenGroup
from tercet.rows import Completion, Sampling

Waiting = tuple[Sequence[int], Sampling, int, Future[WrittenGroup]]


class BatchedEngine:
    """Writes all that waits at once, and hands groups out as they finish; what comes meanwhile is written next.

    `version()` is asked when prompts begin and when they end, so that a group's versions are never said to be newer
    than they are.
    """

    def __init__(self, generator: ChatGenerator, version: Callable[[], int], name: str = "") -> None:
        self.generator, self.version, self.name = generator, version, name
        self.waiting: SimpleQueue[Waiting] = SimpleQueue()
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        """See `Submits`."""
        done: Future[WrittenGroup] = Future()
        self.waiting.put((prompt, sampling, stream, done))
        return done

    def _work(self) -> None:
        held: list[Waiting] = []
        while True:
            held = held or [self.waiting.get()]
            while True:
                try:
                    held.append(self.waiting.get_nowait())
                except Empty:
                    break
            alike = [one for one in held if one[1] == held[0][1]]  # a call has one way of sampling
            held = [one for one in held if one[1] != held[0][1]]
            self._write(alike)

    def _write(self, asked: Sequence[Waiting]) -> None:
        first = self.version()

        def done(i: int, group: list[Completion]) -> None:
            asked[i][3].set_result(WrittenGroup(group, first, self.version(), self.name))

        try:
            self.generator.write([one[0] for one in asked], asked[0][1], done, [one[2] for one in asked])
        except Exception as error:
            for one in asked:
                if not one[3].done():
                    one[3].set_exception(error)
