"""Jobs over several processes; results come in the order of the jobs, so the number of processes changes none."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Generic, TypeVar

from tercet import machine
from tercet.device.ray_data import ClusterPool
from tercet.recipe import Placement

J = TypeVar("J")
R = TypeVar("R")

ALONE = 4  # jobs that this process does before it starts others


class ProcessPool(Generic[J, R]):
    """`workers` processes with one picklable function; use as a context manager.

    One worker means that this process does all jobs. It also does the first `alone` jobs of several workers, because
    few jobs are not worth the start of processes.
    """

    def __init__(self, work: Callable[[J], R], workers: int, alone: int | None = None) -> None:
        self.work, self.workers, self.alone = work, workers, ALONE if alone is None else alone
        self._done = 0
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> ProcessPool[J, R]:
        return self

    def __exit__(self, *args: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, jobs: Iterable[J]) -> Iterator[R]:
        """The result of each job, in order; a few are under way at once."""
        running: deque[Future[Any]] = deque()
        for job in jobs:
            self._done += 1
            if self.workers <= 1 or self._done <= self.alone:
                yield self.work(job)
                continue
            if self._pool is None:
                fresh = multiprocessing.get_context("spawn")  # because the caller may have threads
                self._pool = ProcessPoolExecutor(self.workers, fresh, _ready, (self.work,))
            running.append(self._pool.submit(_do, job))
            if len(running) > 2 * self.workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def pool_of(work: Callable[[J], R], placement: Placement) -> ProcessPool[J, R] | ClusterPool[J, R]:
    """Where a stage's jobs are done: in processes of this machine, or with `launch = "ray"` on a cluster."""
    return ClusterPool(work) if placement.launch == "ray" else ProcessPool(work, placement.workers or machine.cores())


_own: Callable[[Any], Any]  # of a worker process, set when it starts


def _ready(work: Callable[[Any], Any]) -> None:
    global _own
    _own = work


def _do(job: Any) -> Any:
    return _own(job)
