"""Rounds made ahead of training, by a thread of their own; how old their weights are follows from their number."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from tercet.train.rl.rollout import Round


class RolloutPrefetcher:
    """Hands out rounds in order. Round k is written with the weights after round k - lag, never with older ones.

    With `lag = 0` a round is made when it is taken. Otherwise a thread makes up to `lag` rounds that training has not
    reached, and waits. Which weights write a round depends on its number alone, so lagging runs repeat exactly.
    """

    def __init__(self, make: Callable[[int, int], Round], first: int, last: int, lag: int) -> None:
        """`make(number, version)` writes a round; rounds `first` to `last` - 1 are wanted."""
        self.make, self.first, self.last, self.lag = make, first, last, lag
        self.rounds: dict[int, Future[Round]] = {number: Future() for number in range(first, last) if lag}
        self.allowed = threading.Semaphore(lag + 1)  # rounds that the weights on offer may still write
        self.closed = False
        if lag:
            # A daemon: a round may wait forever for a rank that is gone, and the process must end all the same.
            threading.Thread(target=self._work, name="rollouts", daemon=True).start()

    def take(self, number: int) -> Round:
        """Round `number`, as soon as it is there."""
        if not self.lag:
            return self.make(number, number)
        made = self.rounds[number].result()
        del self.rounds[number]
        return made

    def advance(self) -> None:
        """Training has finished one more round, and its weights are on offer."""
        self.allowed.release()

    def settle(self, learned: int) -> None:
        """Wait until all rounds are made whose weights are older than those after `learned` rounds."""
        if (latest := self.rounds.get(min(learned + self.lag, self.last) - 1)) is not None:
            latest.result()

    def close(self) -> None:
        """Make no further rounds."""
        self.closed = True
        self.allowed.release()

    def _work(self) -> None:
        try:
            for number in range(self.first, self.last):
                self.allowed.acquire()
                if self.closed:
                    return
                self.rounds[number].set_result(self.make(number, max(self.first, number - self.lag)))
        except BaseException as error:
            for waiting in [one for one in list(self.rounds.values()) if not one.done()]:
                waiting.set_exception(error)
