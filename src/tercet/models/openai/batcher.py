"""One worker for all models of a server: what is asked meanwhile joins what is being written, token by token.

Any thread may submit jobs; one thread of the batcher's own does them. Models take turns, a token for each row of each.
Weights are loaded in a thread of their own when a model is first asked, and at most `kept` models have theirs: when
another is asked, the one that was used longest ago takes no more jobs, ends what it writes, and goes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from tercet.models.decoding import DecodingRow
from tercet.models.generate import OUT_OF_MEMORY, LocalGenerator
from tercet.models.openai.jobs import GenerationJob, Ticket, Written
from tercet.models.openai.live import PREFILL, ByRows, Live, rows_of
from tercet.models.openai.logps import look
from tercet.models.openai.served import ServedModel, share
from tercet.rows import Completion

WAITING = 512  # tickets that wait at once, at most
TICK = 0.5  # seconds after which the worker looks whether the server is to stop


class BatcherClosed(RuntimeError):  # noqa: N818 - a state, not a failure
    """The batcher takes no more jobs."""


class BatcherFull(RuntimeError):  # noqa: N818 - a state, not a failure
    """The batcher takes no more jobs for now."""


@dataclass
class _Loaded:
    """A model whose weights are in memory; `begun` are the tickets that it is writing."""

    generator: LocalGenerator
    rows: Live | ByRows
    held: ExitStack  # gives the weights back as they were
    capacity: int
    begun: list[Ticket] = field(default_factory=list)
    fresh: bool = True  # it has had no turn yet, so it is not let go
    going: bool = False


class Batcher:
    """Queues and worker. `stopping` is asked before every turn; once it is true, who waits gets `BatcherClosed`."""

    def __init__(self, models: Mapping[str, ServedModel], rows: int, kept: int) -> None:
        self.models, self.rows, self.kept = models, rows, kept
        self.stopping: Callable[[], bool] = lambda: False
        self._waiting: dict[str, deque[Ticket]] = {name: deque() for name in models}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # the last used one last
        self._loading = ""  # the model that a thread is loading
        self._came: LocalGenerator | Exception | None = None  # what it has loaded
        self._wished: deque[str] = deque()  # models to be loaded although nobody has asked them yet
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._worker.start()

    def submit(self, jobs: Sequence[GenerationJob], changed: Callable[[], None] = lambda: None) -> list[Ticket]:
        """Tasks for all of these jobs, or an error for all; `changed` is called whenever there is more of an answer."""
        tickets = [Ticket(job, changed) for job in jobs]
        with self._changed:
            if self._closed or self.stopping():
                raise BatcherClosed("the server is shutting down")
            if self._num_waiting() + len(tickets) > WAITING:
                raise BatcherFull(f"{WAITING} prompts are waiting, the most that are taken; come again")
            for ticket in tickets:
                self._waiting[ticket.job.model].append(ticket)
            self._changed.notify()
        return tickets

    def warm(self, names: Sequence[str]) -> None:
        """Load these models before anybody asks them, as far as there is room."""
        with self._changed:
            self._wished.extend(names)
            self._changed.notify()

    def place(self, ticket: Ticket) -> int:
        """How many tickets of its model come before one that waits, and itself; 0 for what is being written."""
        queue = [one for one in list(self._waiting[ticket.job.model]) if not one.cancelled]
        return next((place for place, one in enumerate(queue, 1) if one is ticket and not one.rows), 0)

    @property
    def load(self) -> dict[str, int]:
        """How many tickets wait, and how many rows are written."""
        with self._changed:
            writing = sum(len(one.rows.rows) for one in self._loaded.values())
            return {"waiting": self._num_waiting(), "writing": writing}

    @property
    def loaded(self) -> list[str]:
        """The models that have their weights in memory, the last used one last."""
        with self._changed:
            return list(self._loaded)

    def close(self) -> None:
        """End what is being written, refuse the rest, and wait for the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _num_waiting(self) -> int:
        return sum(not ticket.cancelled for queue in self._waiting.values() for ticket in list(queue))

    @torch.no_grad()
    def _work(self) -> None:
        while self._wait():
            self._receive()
            self._make_room()
            for name, model in list(self._loaded.items()):
                self._turn(name, model)
        for name in list(self._loaded):
            self._release(name)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False once the batcher is closed and all is written."""
        with self._changed:
            while True:
                if self._closed or self.stopping():
                    self._refuse()
                if self._came is not None or any(one.rows.busy for one in self._loaded.values()):
                    return True
                if self._closed and not self._loading:
                    return False
                asked = {name for name, queue in self._waiting.items() if queue}
                if asked & self._loaded.keys() or ((asked or self._wished) and not self._loading):
                    return True
                self._changed.wait(TICK)

    def _refuse(self) -> None:
        for queue in self._waiting.values():
            while queue:
                queue.popleft().fail(BatcherClosed("the server is shutting down"))

    def _receive(self) -> None:
        """Take what the loading thread has brought."""
        with self._changed:
            name, came = self._loading, self._came
            if came is None:
                return
            self._loading, self._came = "", None
        if isinstance(came, Exception):
            queue = self._waiting[name]
            while queue:
                queue.popleft().fail(came)
            return
        held = ExitStack()
        held.enter_context(came.writing())
        with self._changed:
            self._loaded[name] = _Loaded(came, rows_of(came, self.rows), held, self.rows)

    def _make_room(self) -> None:
        """Begin to load what is asked; where that is too much, the model that was used longest ago goes."""
        for name, model in list(self._loaded.items()):
            if model.going and not model.rows.busy:
                self._release(name)
        while self._wished and (self._wished[0] in self._loaded or len(self._loaded) >= self.kept):
            self._wished.popleft()
        asked = [name for name, queue in self._waiting.items() if queue and name not in self._loaded]
        name = next(iter(asked), self._wished[0] if self._wished else "")
        if self._loading or not name:
            return
        if len(self._loaded) < self.kept:
            self._loading = name
            threading.Thread(target=self._load, args=(name,), name=f"loading {name}", daemon=True).start()
        elif not any(model.going for model in self._loaded.values()):
            idle = next((model for model in self._loaded.values() if not model.fresh), None)
            if idle is not None:
                idle.going = True
                self._make_room()

    def _load(self, name: str) -> None:
        came: LocalGenerator | Exception
        try:
            came = self.models[name].opened()
            share(came, [one.generator for one in list(self._loaded.values())])
        except Exception as error:  # of a folder that has changed, or memory that is full: those who asked get it
            came = error
        with self._changed:
            self._came = came
            self._changed.notify()

    def _release(self, name: str) -> None:
        with self._changed:
            model = self._loaded.pop(name)
        model.held.close()

    def _turn(self, name: str, model: _Loaded) -> None:
        """Let what waits join what a model is writing, and write a token of every row."""
        queue = self._waiting[name]
        for row in model.rows.rows:
            row.ended = row.ended or (isinstance(row, Written) and row.ticket.cancelled)
        with self._changed:
            for ticket in [ticket for ticket in queue if ticket.cancelled]:
                queue.remove(ticket)
            entering = [] if model.going else list(queue)
            if entering:
                self._loaded.move_to_end(name)
        try:
            if entering:
                self._score(model, queue)
            ended = model.rows.turn(queue if entering else deque())
            model.begun += [ticket for ticket in entering if ticket.rows]
            self._tell(model, ended)
        except Exception as error:  # whatever fails must not end the worker: those it concerns get the error
            self._failed(model, queue, entering, error)
        model.fresh = False

    def _score(self, model: _Loaded, queue: deque[Ticket]) -> None:
        """Answer the tickets at the queue's head that want nothing written, only log-probs of their prompts."""
        tickets: list[Ticket] = []
        while queue and not queue[0].job.sampling.max_new_tokens and sum(len(one.job.ids) for one in tickets) < PREFILL:
            tickets.append(queue.popleft())
        model.begun += tickets  # so that an error is theirs
        asked = [ticket for ticket in tickets if ticket.job.top >= 0]
        top = max((ticket.job.top for ticket in asked), default=0)
        for ticket, found in zip(asked, look(model.generator, [ticket.job.ids for ticket in asked], top), strict=True):
            ticket.prompt += [replace(one, likeliest=one.likeliest[: ticket.job.top]) for one in found]
        for ticket in tickets:
            for sample in range(ticket.job.sampling.n):
                ticket.finish(sample, Completion("", (), (), "length"))

    def _tell(self, model: _Loaded, ended: Sequence[DecodingRow]) -> None:
        """Hand over what was written, and finish what has ended."""
        chat = model.generator.chat
        for row in ended:
            if isinstance(row, Written) and not row.ticket.cancelled:
                job = row.ticket.job
                found = chat.completion(row.token_ids, row.logps, job.sampling.stop, chat.begun(job.ids))
                row.ticket.finish(row.sample, found)
        model.begun = [ticket for ticket in dict.fromkeys(model.begun) if not ticket.answer.done()]
        for ticket in model.begun:
            ticket.changed()

    def _failed(self, model: _Loaded, queue: deque[Ticket], entering: Sequence[Ticket], error: Exception) -> None:
        """Where memory ran out, try again with half the rows; else what was being written gets the error."""
        begun = [ticket for ticket in dict.fromkeys([*model.begun, *entering]) if ticket.rows or ticket not in queue]
        begun = [ticket for ticket in begun or entering[:1] if not ticket.answer.done()]
        for ticket in begun:
            if ticket in queue:
                queue.remove(ticket)
        again = memory_is_full(error) and model.capacity > 1
        model.begun, model.capacity = [], model.capacity // 2 if again else model.capacity
        for ticket in reversed(begun):
            if again:
                ticket.again()
                queue.appendleft(ticket)
            else:
                ticket.fail(error)
        model.rows = rows_of(model.generator, model.capacity)


def memory_is_full(error: Exception) -> bool:
    """Whether an error says that there is no memory left."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
