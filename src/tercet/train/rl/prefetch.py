"""Rounds made ahead of training, by a thread of their own (design: staleness is explicit)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tercet.train.rl.rollout import Round


class RolloutPrefetcher:
    """Hands out rounds in order. Round k is written with the weights after round k - lag, never with older ones.

    With `lag = 0` a round is made when it is asked for. Otherwise a thread makes up to `lag` rounds that training has
    not reached, and waits there; which weights write a round follows from its number, so lagging runs repeat exactly.
    """

    def __init__(self, make: Callable[[int, int], Round], first: int, last: int, lag: int) -> None:
        """`make(number, version)` writes a round; rounds `first` to `last` - 1 are wanted."""
        self.make, self.first, self.last, self.lag = make, first, last, lag
        self.learned, self.made = first, first
        self.rounds: dict[int, Round] = {}
        self.failure: BaseException | None = None
        self.change = threading.Condition()
        self.closed = False
        if lag:
            threading.Thread(target=self._work, name="rollouts", daemon=True).start()

    def take(self, number: int) -> Round:
        """Round `number`, as soon as it is there."""
        if not self.lag:
            return self.make(number, number)
        self._wait(number)
        return self.rounds.pop(number)

    def learn(self, version: int) -> None:
        """Training has finished `version` rounds, and their weights are on offer."""
        with self.change:
            self.learned = version
            self.change.notify_all()

    def settle(self, learned: int) -> None:
        """Wait until every round is made that older weights than those after `learned` rounds have to write."""
        if self.lag and (number := min(learned + self.lag, self.last) - 1) >= self.first:
            self._wait(number)

    def close(self) -> None:
        """Make no further rounds."""
        with self.change:
            self.closed = True
            self.change.notify_all()

    def _wait(self, number: int) -> None:
        with self.change:
            self.change.wait_for(lambda: self.made > number or self.failure is not None)
            if self.failure is not None and self.made <= number:
                raise self.failure

    def _may(self, number: int) -> bool:
        """Wait for the weights that a round needs; False when no round is wanted any more."""
        with self.change:
            self.change.wait_for(lambda: self.closed or self.learned >= number - self.lag)
            return not self.closed

    def _work(self) -> None:
        try:
            for number in range(self.first, self.last):
                if not self._may(number):
                    return
                made = self.make(number, max(self.first, number - self.lag))
                with self.change:
                    self.rounds[number], self.made = made, number + 1
                    self.change.notify_all()
        except BaseException as error:
            with self.change:
                self.failure = error
                self.change.notify_all()
