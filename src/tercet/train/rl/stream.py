"""Rollouts as a stream: prompts go to an engine one by one, and groups come back as they finish.

A round is the first `batch` groups that are there and not too old. How old a group is follows from the weights that
wrote its first token: weights after `first` rounds are `number - first` rounds old in round `number`, and `lag` is the
most. Weights are put into the engine while it writes, so a group's last tokens may be of newer ones.

Which groups a round has depends on who was quick; the log says which, and a run that goes on trains on the same.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from tercet.models.engines.replica import ReplicaDiedError, Submits, WrittenGroup
from tercet.recipe import RLSpec
from tercet.rows import Sampling
from tercet.train.batch import chosen_rows
from tercet.train.loop import TrainingError
from tercet.train.rl.generator import engine_errors
from tercet.train.rl.reward_fn import RewardFunction
from tercet.train.rl.rollout import (
    GroupOrigin,
    Prompts,
    RolloutGroup,
    Round,
    graded_samples,
    has_signal,
    records_of,
    replay,
)
from tercet.train.rl.rollout_log import RolloutLog

MOST_DEATHS = 3  # of the engines that had a prompt, before the run gives up
RETRY = 1_000_003  # between the streams of random numbers of a draw that is asked again


class Asked(NamedTuple):
    """A prompt that is out: its draw, how often it was dropped, how often its engine died, the newest version then."""

    draw: int
    tries: int
    deaths: int
    version: int


class Draws:
    """Which prompt is asked for next. Draw d is prompt d of the passes; each is asked until a round has it.

    A pass takes every prompt once, in an order fixed by seed and pass. What is asked again comes before what is new:
    after a kill those that were out, and those that came back too late.
    """

    def __init__(self, log: RolloutLog, num_rows: int, seed: int) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.tries: Counter[int] = Counter(log.dropped)
        self.again: list[int] = []
        had = log.draws
        self.new = (draw for draw in itertools.count(log.in_turn) if draw not in had)

    def take(self) -> int:
        """The next draw."""
        return heapq.heappop(self.again) if self.again else next(self.new)

    def drop(self, draw: int) -> None:
        """It came back too late: ask again, with other random numbers."""
        self.tries[draw] += 1
        heapq.heappush(self.again, draw)

    def place(self, draw: int) -> int:
        """The row of a draw."""
        return chosen_rows(draw, self.num_rows, 1, self.seed)[0]


class RolloutStream:
    """Hands out rounds in order, as `RolloutPrefetcher` does; the first rank asks, and shares every round.

    Out or ready, but not trained on, are at most `lag` + 1 rounds, that in training among them: what finishes in the
    order of asking is then never too old. A thread grades what has come back while training goes on.
    """

    def __init__(
        self, prompts: Prompts, engine: Submits, reward_fn: RewardFunction, log: RolloutLog, spec: RLSpec, seed: int
    ) -> None:
        """The engine must have the weights of the log's first round."""
        self.prompts, self.engine, self.reward_fn, self.log, self.spec = prompts, engine, reward_fn, log, spec
        self.seed, self.draws = seed, Draws(log, len(prompts.rows), seed)
        self.waves = getattr(spec, "active_rounds", 1)
        self.trained = log.first  # rounds
        self.next = log.first + len(log.recorded)  # the round that is put together next
        self.cursor = log.in_turn + len(log.draws)  # groups of all rounds so far
        self.out = 0
        self.ready: dict[GroupOrigin, RolloutGroup] = {}
        self.dropped: list[int] = []  # since the last round
        self.grading, self.since = 0.0, time.monotonic()
        self.finished: SimpleQueue[tuple[Asked, Future[WrittenGroup]] | None] = SimpleQueue()
        self.changed = threading.Condition()  # held to read or change what is above
        self.error: BaseException | None = None
        if log.mesh.first:
            # A daemon: an engine may answer never, and the process must end all the same.
            threading.Thread(target=self._grade, name="rollouts", daemon=True).start()
            with self.changed:
                self._ask()

    def take(self, number: int) -> Round:
        """Round `number`, as soon as it is there; one that the log holds is read from it. Every rank calls this."""
        if (recorded := self.log.recorded.pop(number, None)) is not None:
            return replay(recorded, self.prompts)
        made = self._made(number) if self.log.mesh.first else None
        records = None if made is None else records_of(made)
        self.log.append(number, records or ())
        shared: list[dict[str, Any]] = self.log.mesh.gather(records)[0]
        # All ranks, and every later run, train on what the log holds.
        found = replay([{"round": number} | record for record in shared], self.prompts)
        if made is not None:
            found.seconds, found.speed = made.seconds, made.speed
        return found

    def advance(self) -> None:
        """Training has finished one more round, and the engine has its weights."""
        with self.changed:
            self.trained += 1
            if self.log.mesh.first:
                self._ask()

    def settle(self, learned: int) -> None:
        """Nothing to wait for: what is out at a checkpoint is asked again by the run that goes on from it."""

    def close(self) -> None:
        """Ask for nothing more."""
        with self.changed:
            self.trained = self.next = self.spec.rounds
        self.finished.put(None)

    def _ask(self) -> None:
        """Ask for prompts as long as some may be out; the lock is held."""
        rounds = min(self.spec.lag + 1 - (self.next - self.trained), self.spec.rounds - self.next)
        most = rounds * self.spec.batch
        while self.out + self._useful() < most and self.out + len(self.ready) < most * self.waves:
            draw = self.draws.take()
            self.out += 1
            self._submit(Asked(draw, self.draws.tries[draw], 0, self.trained))

    def _submit(self, asked: Asked) -> None:
        spec = self.spec
        sampling = Sampling(spec.max_new_tokens, spec.temperature, n=spec.num_generations, seed=self.seed * 100_003)
        ids = self.prompts.ids(self.draws.place(asked.draw))
        # The queue and not the lock takes the answer: an engine may call back while a lock of its own is held.
        answer = self.engine.submit(ids, sampling, asked.draw + asked.tries * RETRY)
        answer.add_done_callback(lambda done: self.finished.put((asked, done)))

    def _useful(self) -> int:
        return sum(map(has_signal, self.ready.values())) if self.waves > 1 else len(self.ready)

    def _grade(self) -> None:
        """Grade what has come back, all that waits at once: LLM judges are asked in few calls."""
        try:
            while (one := self.finished.get()) is not None:
                groups = self._graded([one, *self._waiting()])
                with self.changed:
                    self.out -= len(groups)
                    self.ready |= groups
                    self._ask()
                    self.changed.notify_all()
        except BaseException as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _waiting(self) -> list[tuple[Asked, Future[WrittenGroup]]]:
        found: list[tuple[Asked, Future[WrittenGroup]]] = []
        while True:
            try:
                one = self.finished.get_nowait()
            except Empty:
                return found
            if one is None:
                self.finished.put(None)  # the end is seen once more, after these
                return found
            found.append(one)

    def _graded(self, finished: Sequence[tuple[Asked, Future[WrittenGroup]]]) -> dict[GroupOrigin, RolloutGroup]:
        came = [(asked, written) for asked, done in finished if (written := self._written(asked, done))]
        began = time.monotonic()
        places = [self.draws.place(asked.draw) for asked, _ in came]
        rows = [self.prompts.rows[place] for place in places]
        graded = graded_samples(self.reward_fn, rows, [written.completions for _, written in came])
        self.grading += time.monotonic() - began
        found = {}
        for row, place, samples, (asked, written) in zip(rows, places, graded, came, strict=True):
            origin = GroupOrigin(asked.draw, asked.tries, written.first, written.last, written.replica)
            found[origin] = RolloutGroup(row, self.prompts.ids(place), samples, place, origin)
        return found

    def _written(self, asked: Asked, done: Future[WrittenGroup]) -> WrittenGroup | None:
        """What an engine wrote; where the engine has died, the prompt is asked again as it was."""
        try:
            written = done.result()
        except ReplicaDiedError:
            if asked.deaths == MOST_DEATHS:
                raise
            self._submit(asked._replace(deaths=asked.deaths + 1))
            return None
        # Else a stale engine would have its groups dropped for ever.
        if not asked.version <= written.first <= written.last:
            raise TrainingError(
                f"the engine {written.replica} says that the weights of versions {written.first} to {written.last} "
                f"wrote what it was asked for with those of version {asked.version}: it lacks an update; restart it, "
                "and the run continues from its last checkpoint"
            )
        return written

    def _made(self, number: int) -> Round:
        """Wait until the groups of a round are there (first rank)."""
        with self.changed:
            while not (chosen := self._chosen(number)):
                if self.error is not None:
                    with engine_errors():
                        raise self.error
                self.changed.wait()
            groups = [self.ready.pop(origin) for origin in sorted(chosen)]  # by draw
            self.next += 1
            self.cursor += len(groups)
            seconds = time.monotonic() - self.since  # in all of which the engine writes
            tokens = sum(len(s.completion.token_ids) for group in groups for s in group.samples)
            made = Round(number, min(one.first for one in chosen), self.cursor, groups, dropped=self.dropped)
            made.seconds = {"generate": seconds, "grade": self.grading}
            made.speed = {"tokens_per_second": tokens / max(seconds, 1e-9)}
            self.dropped, self.grading, self.since = [], 0.0, time.monotonic()
        return made

    def _chosen(self, number: int) -> list[GroupOrigin]:
        """The groups of a round, of those that are ready the oldest; none while they are too few. The lock is held."""
        late = [one for one in self.ready if number - one.first > self.spec.lag]
        if late and self.spec.stale == "drop":
            for one in late:
                del self.ready[one]
                self.draws.drop(one.draw)
            self.dropped += sorted(one.draw for one in late)
            self._ask()
        found: list[GroupOrigin] = []
        useful, batch = 0, self.spec.batch
        for one in sorted(self.ready, key=lambda origin: (origin.first, origin.draw)):
            found.append(one)
            useful += self.waves == 1 or has_signal(self.ready[one])
            if useful == batch or len(found) == batch * self.waves:
                return found
        return []


def staleness(made: Round, lag: int) -> dict[str, float]:
    """How old a round's weights were, in rounds; of a stream also what came back too late, as metrics.

    `lag` and `lag_max`: mean and largest age of a group by its first token; `in_flight_updates`: mean number of updates
    while a group was written; `dropped_groups` came back too late and were asked again, `dropped` is their share of all
    that came back; `corrected`: share of groups that are older than `lag` and trained on all the same.
    """
    origins = [group.origin for group in made.groups if group.origin]
    if not origins:
        return {"lag": float(made.number - made.version)}
    ages = [made.number - origin.first for origin in origins]
    num, dropped = len(origins), len(made.dropped)
    return {
        "lag": sum(ages) / num,
        "lag_max": float(max(ages)),
        "in_flight_updates": sum(origin.last - origin.first for origin in origins) / num,
        "dropped_groups": float(dropped),
        "dropped": dropped / (dropped + num),
        "corrected": sum(age > lag for age in ages) / num,
    }
