"""Several engines as one generator: prompts flow to whichever has room, and one that dies is replaced.

    EnginePool(replicas, chat, at_once=256, again=start_one)

The longest work that waits goes first, to the replica with the fewest tokens before it; none idles while prompts wait.
What a dead replica had is asked again elsewhere, and answered once. Random numbers belong to (stream, sample), so who
answers changes no greedy token in float32 beyond what the size of a batch does to its last digits.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from tercet.models.chat import Chat, ChatGenerator, Done, Ids
from tercet.models.engines.replica import EngineError, Replica, ReplicaDiedError, WrittenGroup
from tercet.rows import Completions, Likelihood, Likelihoods, Options, Prompts, Sampling

CALLS = 16  # of threads at once: tasks of an evaluation, chunks of rows; the queue takes the prompts of all of them
AT_ONCE = 256  # completions that a replica holds where nobody says: vLLM's own number on most machines
DEATHS = 3  # a prompt that was out on so many replicas that died is not tried on another
TRANSFER = ("start_weight_update", "update_weights", "finish_weight_update")  # verbs of replicas that share a group
AGAIN = "continue from the last checkpoint (the same command)"


@dataclass
class Counts:
    """What a pool was asked: prompts, answers, prompts asked again, replicas replaced, answers that came too late."""

    asked: int = 0
    answered: int = 0
    again: int = 0
    replaced: int = 0
    late: int = 0


@dataclass(eq=False)
class _Job:
    """One prompt to be written or scored."""

    ask: Callable[[Replica], Future[Any]]
    tokens: int  # the most that it takes
    rows: int  # completions that it is at once
    answer: Future[Any] = field(default_factory=Future)
    deaths: int = 0


@dataclass(eq=False)
class _Member:
    """A replica with what it has been asked; `ready` once it has the weights that the others have."""

    replica: Replica
    ready: bool
    held: set[_Job] = field(default_factory=set)

    @property
    def tokens(self) -> int:
        return sum(job.tokens for job in self.held)

    @property
    def rows(self) -> int:
        return sum(job.rows for job in self.held)


class EnginePool(ChatGenerator):
    """Writes and scores on several replicas; a `tercet.rows.Generator` and a `Submits`. From any thread."""

    side_by_side = CALLS

    def __init__(
        self,
        replicas: Sequence[Replica],
        chat: Chat,
        *,
        at_once: int | None = None,
        ranks: int = 1,
        again: Callable[[str], Replica] | None = None,
    ) -> None:
        """`at_once`: most completions a replica holds; `ranks`: its processes; `again` starts one like that name."""
        self.chat, self.at_once, self.ranks = chat, at_once or AT_ONCE, ranks
        self.context = min(one.context for one in replicas)
        self._again = again
        self._members = [_Member(one, True) for one in replicas]
        self._group: list[_Member] = []  # those that take weights together
        self._queue: list[tuple[bool, int, int, _Job]] = []
        self._counts, self._number = Counts(), 0
        self._updates, self._starting = 0, 0
        self._filling = self._closed = False
        self._trouble = "it has no replica"  # why the last one went
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counts:
        """What it was asked so far."""
        with self._lock:
            return replace(self._counts)

    @property
    def names(self) -> list[str]:
        """The replicas that live."""
        with self._lock:
            return [member.replica.name for member in self._members]

    @property
    def workers(self) -> int:
        """Processes of all replicas that live: the receiving ranks of a transfer group."""
        return len(self.names) * self.ranks

    def joined(self) -> bool:
        """Whether replicas came or went since the transfer group was made, which must then be made anew."""
        with self._lock:
            return self._group != self._members

    def submit(self, prompt: Ids, sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        """`sampling.n` completions of a prompt; see `Submits`. An EngineError in the future is final."""
        seed, number = sampling.stream(stream)
        # A prompt travels with its own seed alone, not with those of a whole evaluation.
        alone = Sampling(**{one.name: getattr(sampling, one.name) for one in fields(Sampling)} | {"seed": seed})
        rows = sampling.n if sampling.temperature else 1  # greedy samples are all the same
        ids = list(prompt)
        job = _Job(lambda one: one.submit(ids, alone, number), len(ids) + rows * sampling.max_new_tokens, rows)
        self._put([job])
        return job.answer

    def write(
        self, prompts: Sequence[Ids], sampling: Sampling, done: Done | None = None, streams: Sequence[int] | None = None
    ) -> Completions:
        """The same from token ids; `done` is called in this thread as prompts finish, in any order."""
        names = range(len(prompts)) if streams is None else streams
        asked = {self.submit(ids, sampling, name): i for i, (ids, name) in enumerate(zip(prompts, names, strict=True))}
        results: Completions = [[] for _ in prompts]

        def take(i: int, group: WrittenGroup) -> None:
            results[i] = group.completions
            if done is not None:
                done(i, group.completions)

        _gather(asked, take)
        return results

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """Score each option by the log-probs of its own tokens; `Chat.continuations` says which those are."""
        jobs, places = [], {}
        results: Likelihoods = [[] for _ in prompts]
        for i, (messages, texts) in enumerate(zip(prompts, options, strict=True)):
            context, found = self.chat.continuations(messages, texts)
            results[i] = [Likelihood(0.0, 0)] * len(texts)
            for j, ids in enumerate(found):
                whole = [*ids, *(self.chat.closing_ids if close else [])]
                jobs.append(_Job(partial(_score, context, whole), len(context) + len(whole), 1))
                places[jobs[-1].answer] = (i, j)
        self._put(jobs)

        def take(place: tuple[int, int], score: Likelihood) -> None:
            results[place[0]][place[1]] = score

        _gather(places, take)
        return results

    def control(self, verb: str, **values: Any) -> Any:
        """A verb of the control plane to all replicas at once; what the first answered. Checksums must be equal.

        One that dies of it is taken out. Where weights travel, the group has to be that of all who live: a
        ReplicaDiedError says that it is not, and must be made anew (`joined`) and the weights sent again. A replica
        that joined later writes after the first update that it was given.
        """
        members = self._targets(verb, values.get("init_info"))
        found: dict[str, Any] = {}
        died: ReplicaDiedError | None = None
        with ThreadPoolExecutor(len(members) or 1, thread_name_prefix="control") as threads:
            asked = [
                threads.submit(member.replica.control, verb, **_placed(values, i * self.ranks))
                for i, member in enumerate(members)
            ]
        for member, one in zip(members, asked, strict=True):
            try:
                found[member.replica.name] = one.result()
            except ReplicaDiedError as error:
                died = error
                self._died(member, error)
        if died is not None and (not found or verb in (*TRANSFER, "init_weight_transfer_engine")):
            raise died
        self._took(verb, members)
        first = next(iter(found.values()))
        if verb == "checksum" and set(found.values()) != {first}:
            raise EngineError(f"the replicas hold different weights, by their checksums: {found}; {AGAIN}")
        return first

    def close(self) -> None:
        """End all replicas; what was asked and not answered ends with an EngineError."""
        with self._lock:
            self._closed, self._trouble = True, "it was closed"
            members = list(self._members)
        for member in members:
            member.replica.close()
            self._died(member, ReplicaDiedError("the pool of engines was closed"))
        self._fill()

    def _targets(self, verb: str, info: Any) -> list[_Member]:
        """Whom a verb is for: a transfer group as it was made, or all that live."""
        with self._lock:
            if verb in TRANSFER and self._group:
                others = set(self._group) - set(self._members)
                if verb == TRANSFER[0]:  # an update that has begun goes on without those that joined just now
                    others |= set(self._members) - set(self._group)
                if names := ", ".join(sorted(one.replica.name for one in others)):
                    raise ReplicaDiedError(f"{names} came or went; the transfer group must be made anew")
                return list(self._group)
            size = (info or {}).get("world_size")
            count = len(self._members) if size is None else (size - info.get("rank_offset", 0)) // self.ranks
            if not self._members or count > len(self._members):
                raise ReplicaDiedError(f"{len(self._members)} engines live, {count} were expected: {self._trouble}")
            return self._members[:count]

    def _took(self, verb: str, members: list[_Member]) -> None:
        """Note what a verb changed that all have done."""
        with self._lock:
            if verb == "init_weight_transfer_engine":
                self._group = members
            if verb == "finish_weight_update":
                self._updates += 1
                for member in members:
                    member.ready = True
        self._fill()

    def _put(self, jobs: Sequence[_Job]) -> None:
        with self._lock:
            self._counts.asked += len(jobs)
            for job in jobs:
                self._push(job)
        self._fill()

    def _push(self, job: _Job) -> None:
        """Into the queue: what is asked again first, then the longest."""
        self._number += 1
        heapq.heappush(self._queue, (not job.deaths, -job.tokens, self._number, job))

    def _fill(self) -> None:
        """Hand out what waits while a replica has room. One thread does at a time, without the lock while it asks.

        A replica may answer within `submit`, which comes back here: whoever finds it filled leaves it to that one.
        """
        with self._lock:
            if self._filling:
                return
            self._filling = True
        try:
            while (found := self._next()) is not None:
                self._hand(*found)
        except BaseException:  # a stage that is stopped just now: others may go on
            with self._lock:
                self._filling = False
            raise
        for job, why in self._stranded():
            job.answer.set_exception(why)

    def _hand(self, member: _Member, job: _Job) -> None:
        try:
            future = job.ask(member.replica)
        except Exception as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(partial(self._answered, member, job))

    def _next(self) -> tuple[_Member, _Job] | None:
        """The next prompt and the replica that gets it; with None, the thread that filled is done."""
        with self._lock:
            while self._queue:
                job = self._queue[0][-1]
                able = [
                    one for one in self._members if one.ready and (not one.held or one.rows + job.rows <= self.at_once)
                ]
                if not able:
                    break
                heapq.heappop(self._queue)
                if not job.deaths and not job.answer.set_running_or_notify_cancel():
                    continue
                member = min(able, key=lambda one: one.tokens)
                member.held.add(job)
                return member, job
            self._filling = False
            return None

    def _stranded(self) -> list[tuple[_Job, EngineError]]:
        """What waits for a replica that will never write: all are gone, or those that come have older weights."""
        with self._lock:
            coming = self._starting and not self._updates
            if any(one.ready for one in self._members) or (coming and not self._closed):
                return []
            left, self._queue = self._queue, []
            why = f"no engine is left that could write: {self._trouble}; {AGAIN}"
            return [
                (job, EngineError(why)) for *_, job in left if job.deaths or job.answer.set_running_or_notify_cancel()
            ]

    def _answered(self, member: _Member, job: _Job, future: Future[Any]) -> None:
        error = future.exception()
        with self._lock:
            held = job in member.held
            if not held:
                self._counts.late += error is None  # of a replica that is gone; somebody else was asked
                return
            if not isinstance(error, ReplicaDiedError):
                member.held.remove(job)
                self._counts.answered += 1
        if isinstance(error, ReplicaDiedError):
            self._died(member, error)
        elif error is not None:
            job.answer.set_exception(error)
        else:
            job.answer.set_result(future.result())
        self._fill()

    def _died(self, member: _Member, error: ReplicaDiedError) -> None:
        """Ask elsewhere for what a replica had, and have it replaced; what it says later does not count."""
        with self._lock:
            if member not in self._members:
                return  # another of its prompts has told
            self._members.remove(member)
            lost, member.held = member.held, set()
            for job in lost:
                job.deaths += 1
            hopeless = [job for job in lost if self._closed or job.deaths >= DEATHS]
            for job in lost.difference(hopeless):
                self._counts.again += 1
                self._push(job)
            replaces = self._again is not None and not self._closed
            self._starting += replaces
            if not self._closed:
                self._trouble = str(error)
        for job in hopeless:
            why = f"a prompt was out on {job.deaths} engines that died: {error}" if not self._closed else str(error)
            job.answer.set_exception(EngineError(f"{why}; {AGAIN}"))
        if replaces:
            threading.Thread(target=self._replace, args=(member.replica,), name="replace", daemon=True).start()
        elif not self._closed:
            member.replica.close()

    def _replace(self, dead: Replica) -> None:
        """Start another replica; it writes at once, or after the next update where the others have newer weights."""
        found, trouble = None, ""
        with suppress(Exception):
            dead.close()
        try:
            assert self._again is not None
            found = self._again(dead.name)
        except Exception as error:
            trouble = f"{dead.name} could not be replaced: {error}"
        with self._lock:
            self._starting -= 1
            self._trouble = trouble or self._trouble
            if found is not None and not self._closed:
                self._members.append(_Member(found, not self._updates))
                self._counts.replaced += 1
                found = None
        if found is not None:
            found.close()
        self._fill()


def _score(context: Sequence[int], ids: Sequence[int], replica: Replica) -> Future[Likelihood]:
    return replica.score(context, ids)


def _placed(values: dict[str, Any], before: int) -> dict[str, Any]:
    """A verb's values for one replica: its ranks in the transfer group come behind those of the ones before it."""
    info = values.get("init_info")
    if not before or not isinstance(info, dict) or "rank_offset" not in info:
        return values
    return values | {"init_info": info | {"rank_offset": info["rank_offset"] + before}}


def _gather(asked: dict[Future[Any], Any], take: Callable[[Any, Any], None]) -> None:
    """Hand over each answer as it comes; after an error nothing more is asked."""
    try:
        for future in as_completed(asked):
            take(asked[future], future.result())
    finally:
        for future in asked:
            future.cancel()
