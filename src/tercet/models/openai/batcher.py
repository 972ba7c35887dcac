"""A queue in front of one local generator: what is asked at the same time is decoded together.

Any thread may submit jobs; one thread of the batcher's own does them, a batch at a time. A batch holds jobs with equal
sampling settings. Each job draws from the random numbers of its own seed, so its answer is what the generator would
give to it alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from tercet.models.forest import Tree, pack_forest
from tercet.models.generate import LocalGenerator
from tercet.rows import Completion, Sampling, Seeded

Ids = Sequence[int]
QUIET, PATIENCE = 0.01, 0.05  # seconds: a batch begins when no job came for so long, and after this at the latest
WAITING = 512  # jobs that wait at once, at most
LOOK_TOKENS = 8192  # token budget of one forward pass for log-probs
CHUNK = 256  # positions whose logits exist at once


class BatcherClosed(RuntimeError):  # noqa: N818 - a state, not a failure
    """The batcher takes no more jobs."""


class BatcherFull(RuntimeError):  # noqa: N818 - a state, not a failure
    """The batcher takes no more jobs for now."""


@dataclass(frozen=True)
class GenerationJob:
    """A prompt's token ids, how to answer it, and its seed (`sampling.seed` stays 0).

    `top` asks for the log-probs of the tokens that were written, and of so many of the likeliest at each place; -1 for
    none. With `echo` the prompt's own tokens get log-probs too.
    """

    ids: Ids
    sampling: Sampling
    seed: int = 0
    top: int = -1
    echo: bool = False


@dataclass(frozen=True)
class TokenLogps:
    """One token with its log-prob in nats (None for the first of a text) and the likeliest tokens at its place."""

    token: int
    logp: float | None
    likeliest: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class GenerationResult:
    """The completions of a job and, where it asked for log-probs, the tokens of each."""

    completions: Sequence[Completion]
    logps: Sequence[Sequence[TokenLogps]] = ()


Waiting = tuple[GenerationJob, Future[GenerationResult]]


class Batcher:
    """Queue and worker. `stopping` is called before every batch; once it is true, waiting jobs get `BatcherClosed`."""

    def __init__(self, generator: LocalGenerator, rows: int) -> None:
        self.generator, self.rows = generator, rows
        self.stopping: Callable[[], bool] = lambda: False
        self._waiting: deque[Waiting] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    def submit(self, job: GenerationJob) -> Future[GenerationResult]:
        """The answer to come. It can be cancelled until its batch begins."""
        answer: Future[GenerationResult] = Future()
        with self._changed:
            if self._closed or self.stopping():
                raise BatcherClosed("the server is shutting down")
            if len(self._waiting) >= WAITING:
                self._waiting = deque(one for one in self._waiting if not one[1].cancelled())
                if len(self._waiting) >= WAITING:
                    raise BatcherFull(f"{WAITING} requests are waiting, the most that are taken; come again")
            self._waiting.append((job, answer))
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Finish the batch under way, refuse the others, and wait for the thread to end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._take():
            try:
                self._answer(batch)
            except Exception as error:  # a batch that fails must not end the worker: its jobs get the error
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)

    def _take(self) -> list[Waiting]:
        """The next batch; nothing once the batcher is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                self._gather()
                if self._closed or self.stopping():
                    self._refuse()
                    if self._closed:
                        return []
                elif batch := self._draw():
                    return batch

    def _gather(self) -> None:
        """Wait a moment for jobs that come together with the first."""
        for _ in range(round(PATIENCE / QUIET)):
            before = len(self._waiting)
            if before >= self.rows or self._closed:
                return
            self._changed.wait_for(lambda: len(self._waiting) >= self.rows or self._closed, QUIET)
            if len(self._waiting) == before:
                return

    def _draw(self) -> list[Waiting]:
        """Jobs that are written like the first one, in their order, as many as there are rows for."""
        how = self._waiting[0][0].sampling
        most = max(1, self.rows // how.n)
        batch: list[Waiting] = []
        left = deque[Waiting]()
        for job, answer in self._waiting:
            if len(batch) >= most or job.sampling != how:
                left.append((job, answer))
            elif answer.set_running_or_notify_cancel():
                batch.append((job, answer))
        self._waiting = left
        return batch

    def _refuse(self) -> None:
        for _, answer in self._waiting:
            if answer.set_running_or_notify_cancel():
                answer.set_exception(BatcherClosed("the server is shutting down"))
        self._waiting.clear()

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Write the batch; jobs without log-probs get their answer as it ends."""

        def done(i: int, completions: list[Completion]) -> None:
            job, answer = batch[i]
            if job.top < 0:
                answer.set_result(GenerationResult(completions))

        sampling = Seeded(**vars(batch[0][0].sampling), seeds=tuple(job.seed for job, _ in batch))
        written = self.generator.write([job.ids for job, _ in batch], sampling, done)
        for (job, answer), completions in zip(batch, written, strict=True):
            if job.top >= 0:
                rows = [(*job.ids, *completion.token_ids) for completion in completions]
                found = look(self.generator, rows, 0 if job.echo else len(job.ids), job.top)
                answer.set_result(GenerationResult(completions, list(found)))


@torch.no_grad()
def look(generator: LocalGenerator, rows: Sequence[Ids], start: int, top: int) -> Iterator[list[TokenLogps]]:
    """The tokens of each row from place `start` on, with log-probs under the model's own distribution."""
    most = max(1, LOOK_TOKENS // max(map(len, rows)))
    for begin in range(0, len(rows), most):
        part = rows[begin : begin + most]
        forest = pack_forest([Tree(ids, []) for ids in part]).to(generator.device)
        hidden = generator.policy.hidden(forest, forest.input_ids, forest.position_ids)
        for ids, segment in zip(part, forest.segments, strict=True):
            first = max(start, 1)
            found = [TokenLogps(ids[0], None)] if not start else []
            for place in range(first, len(ids), CHUNK):
                tokens = ids[place : place + CHUNK]
                states = hidden[segment.start + place - 1 : segment.start + place - 1 + len(tokens)]
                found += _look(generator, states, tokens, top)
            yield found


def _look(generator: LocalGenerator, states: torch.Tensor, tokens: Ids, top: int) -> Iterator[TokenLogps]:
    logps = generator.policy.head()(states).float().log_softmax(dim=1)
    chosen = logps.gather(1, torch.tensor(tokens, device=logps.device)[:, None]).squeeze(1)
    values, places = logps.topk(top, dim=1)
    for token, logp, ids, likely in zip(tokens, chosen.tolist(), places.tolist(), values.tolist(), strict=True):
        yield TokenLogps(token, logp, list(zip(ids, likely, strict=True)))
