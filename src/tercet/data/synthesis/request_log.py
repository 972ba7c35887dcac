"""What was asked of models and what they answered, on disk before it is used: a killed run pays for nothing twice.

A `RequestLog` is one file that only grows. `LoggedModel` is a `Generator` in front of others: an answer in the log is
read; any other request is noted as asked and put to the model, and its answer is on disk before the caller gets it.
The cost is metered, and a budget stops the run before it could be exceeded. Lines are of two kinds:

    {"asked": {"1f...": 0.004}}                                    the most each request may cost, before it is sent
    {"key": "1f...", "model": "gpt", "text": "Hello", "stop": "eos", "tokens": 2, "read": 9, "wrote": 2, "cost": 0.0001}

An answer that failed has an `error` and no text, and is asked again in the next run. A request that was under way when
a run was killed may have been paid for: it is counted with the most it may have cost.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Condition, Lock, Semaphore
from typing import Any, NoReturn

from tercet.data.disk_list import batched
from tercet.journal import Journal, Place
from tercet.rows import Completion, Completions, Done, Generator, Messages, Options, Prompts, Sampling, Seeded

AT_ONCE = (1, 64)  # calls of a generator, and requests in one call
TURN = 16  # tokens a chat template may put around one turn
AWAY = 50  # failures without one answer between them, after which a run stops: no server is there, or no prompt fits


class RequestLogError(ValueError):
    """The log cannot be used: a line in it is not one of ours, or what is asked of it makes no sense."""


class BudgetError(ValueError):
    """The next request could cost more than what is left."""


class AwayError(RuntimeError):
    """Many requests in a row failed: to go on would only lose rows."""


@dataclass
class Spent:
    """The meter. `unknown` requests were under way when a run was killed and may have cost up to `unknown_cost`."""

    answers: int = 0
    failed: int = 0
    unknown: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unknown_cost: float = 0.0

    @property
    def numbers(self) -> dict[str, float]:
        """What stages track; `cost` counts unknown requests with the most they may have cost."""
        return {"answers": self.answers, "failed": self.failed, "cost": self.cost + self.unknown_cost}


Claims = dict[str, Future[Completion]]  # key -> the answer that a thread is asking for


def request_key(model: str, prompt: Messages, sampling: Sampling, index: int) -> str:
    """The hash of what decides an answer: model, prompt, sampling without its number of samples, and which sample."""
    turns = [[turn.role, turn.content] for turn in prompt]
    how = {name: value for name, value in vars(sampling).items() if name != "n"}
    return hashlib.sha256(json.dumps([model, turns, how, index], sort_keys=True).encode()).hexdigest()


class RequestLog(Journal):
    """A journal of answers, for one process at a time and any number of its threads; use as a context manager.

    `budget` is in the currency of the prices and holds for the file, over all models and runs; None: no cap.
    """

    def __init__(self, path: Path, budget: float | None = None) -> None:
        super().__init__(path, checked=True)
        self.budget, self.spent = budget, Spent()
        self._places: dict[str, Place] = {}  # key -> where its line stands: texts stay on disk
        self._under_way: dict[str, float] = {}  # key -> the most it may cost
        self._claims: Claims = {}
        self._lock = Condition()
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str) -> dict[str, Any] | None:
        """The line of an answer, or None where there is none."""
        place = self._places.get(key)
        return self[place] if place else None

    def claim(self, keys: Sequence[str]) -> tuple[dict[str, Completion], Claims, Claims]:
        """Share out keys: answers on disk, what the caller now has to ask, and what another thread is asking."""
        with self._lock:
            places = {key: self._places[key] for key in keys if key in self._places}
            theirs = {key: self._claims[key] for key in keys if key not in places and key in self._claims}
            mine: Claims = {k: Future() for k in keys if k not in places and k not in theirs}
            self._claims.update(mine)
        return {key: completion(self[place]) for key, place in places.items()}, mine, theirs

    def reserve(self, costs: Mapping[str, float]) -> list[str]:
        """Note as asked the first of these requests that the budget surely allows, at least one; else `BudgetError`.

        What other threads have under way may turn out cheaper than it could have been: that is waited for.
        """
        with self._lock:
            while not (allowed := self._allowed(costs)):
                if not self._under_way:
                    raise BudgetError(self._too_dear(next(iter(costs.values()))))
                self._lock.wait()
            self.append({"asked": {key: costs[key] for key in allowed}})
            self._under_way.update((key, costs[key]) for key in allowed)
        return allowed

    def write(self, key: str, model: str, answer: Completion, used: tuple[int, int, float]) -> Completion:
        """Put an answer on disk; `used`: tokens read, tokens written, cost. The answer as the log has it."""
        facts = {"read": used[0], "wrote": used[1], "cost": used[2]}
        outcome = {"error": answer.error or "no answer"} if answer.stop == "error" else {"text": answer.text}
        line = {"key": key, "model": model, **outcome, "stop": answer.stop, "tokens": answer.num_tokens, **facts}
        with self._lock:
            self._count(line, self.append(line))
            self._lock.notify_all()
            if claim := self._claims.pop(key, None):
                claim.set_result(completion(line))
        return completion(line)

    def abandon(self, keys: Sequence[str]) -> None:
        """Requests that ended in an error of the program: nobody knows what they cost."""
        with self._lock:
            for key in keys:
                if key in self._under_way:
                    self._lose(self._under_way.pop(key))
            self._lock.notify_all()

    def release(self, mine: Claims) -> None:
        """Raise an error in the threads that wait for claims which were not answered."""
        with self._lock:
            for key, claim in mine.items():
                if not claim.done():
                    self._claims.pop(key, None)
                    claim.set_exception(RequestLogError("the thread that was asking this was stopped; run again"))

    def _allowed(self, costs: Mapping[str, float]) -> list[str]:
        if self.budget is None:
            return list(costs)
        left = self.budget - self.spent.cost - self.spent.unknown_cost - sum(self._under_way.values())
        return [key for key, total in zip(costs, accumulate(costs.values()), strict=True) if total <= left]

    def _too_dear(self, cost: float) -> str:
        spent = self.spent
        lost = f", up to {spent.unknown_cost:.6g} for {spent.unknown} requests cut off by a kill"
        return (
            f"{self.path}: the budget is {self.budget:g}: {spent.cost:.6g} is spent on {spent.answers} answers"
            f"{lost * bool(spent.unknown)}, and the next request may cost {cost:.6g}. Raise the budget, or lower "
            "max_new_tokens or the number of rows, and run again: what is answered is not asked again"
        )

    def _read(self) -> None:
        """Find every answer, and what was under way at a kill."""
        for number, (line, place) in enumerate(self, 1):
            try:
                self._count(line, place)
            except (TypeError, KeyError, AttributeError):
                raise RequestLogError(
                    f"{self.path}, line {number}: not a line of a request log: {line!r:.80}"
                ) from None
        for cost in self._under_way.values():
            self._lose(cost)
        self._under_way.clear()

    def _count(self, line: dict[str, Any], place: Place) -> None:
        for key, cost in line.get("asked", {}).items():
            if key in self._under_way:  # asked again by a later run
                self._lose(self._under_way[key])
            self._under_way[key] = cost
        if "asked" in line:
            return
        self._under_way.pop(line["key"], None)
        self.spent.prompt_tokens += line["read"]
        self.spent.completion_tokens += line["wrote"]
        self.spent.cost += line["cost"]
        if "error" in line:
            self.spent.failed += 1
        else:
            self.spent.answers += 1
            self._places[line["key"]] = place

    def _lose(self, cost: float) -> None:
        self.spent.unknown += 1
        self.spent.unknown_cost += cost


def completion(line: dict[str, Any]) -> Completion:
    """The answer that a line holds; its tokens are counted, not kept."""
    return Completion(line.get("text", ""), (), (), line["stop"], line.get("error", ""), line["tokens"])


class LoggedModel:
    """A model behind a request log. Implements `tercet.rows.Generator`; answers carry their text, not their tokens.

    `at_once` are the calls of the generator that run at the same time, and the requests in one call. A drawn answer has
    a seed that follows from its key: so a run that was killed draws what it would have drawn. `price` is what a million
    prompt and a million completion tokens cost; `meter` says how many of each this generator has used. Where the meter
    never moves an answer counts with the most it may have cost. `on_answers` is called by one thread at a time with the
    number of answers that came. `ahead`: how many calls of `complete` had better be under way at once.
    """

    def __init__(
        self,
        log: RequestLog,
        model: str,
        generator: Generator,
        *,
        price: tuple[float, float] = (0.0, 0.0),
        meter: Callable[[], tuple[int, int]] = lambda: (0, 0),
        at_once: tuple[int, int] = AT_ONCE,
    ) -> None:
        if min(price) < 0:
            raise RequestLogError(f"model {model!r} expects prices from 0; got {price}")
        self.log, self.model, self.generator, self.price, self.meter = log, model, generator, price, meter
        self.num_calls, self.call_size = at_once
        self.on_answers: Callable[[int], None] = lambda answers: None
        self.ahead = 1
        self.keys: dict[str, None] = {}  # all that was asked for, known or not
        self._slots, self._lock, self._telling = Semaphore(self.num_calls), Lock(), Lock()
        self._metered = meter()
        self._failing, self._failure = 0, ""

    def complete(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> Completions:
        """`sampling.n` completions of each prompt; the same question twice has the same answers. See `Generator`."""
        keys = [[request_key(self.model, prompt, sampling, index) for index in range(sampling.n)] for prompt in prompts]
        owners: dict[str, list[int]] = defaultdict(list)
        for i, own in enumerate(keys):
            for key in own:
                owners[key].append(i)
        with self._lock:
            self.keys |= dict.fromkeys(owners)
        found: dict[str, Completion] = {}
        results: dict[int, list[Completion]] = {}
        for answers in self._answers({key: prompts[own[0]] for key, own in owners.items()}, sampling):
            found |= answers
            with self._telling:
                self.on_answers(len(answers))
            for i in sorted({i for key in answers for i in owners[key]}):
                if all(key in found for key in keys[i]):
                    results[i] = [found[key] for key in keys[i]]
                    if done is not None:
                        done(i, results[i])
        return [results.get(i, []) for i in range(len(prompts))]

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> NoReturn:
        """Scores are not kept, so this is an error."""
        raise RequestLogError("a request log keeps what a model writes; ask the model itself for likelihoods")

    def _answers(self, asked: Mapping[str, Messages], sampling: Sampling) -> Iterator[dict[str, Completion]]:
        """All answers in portions: from disk, from the model as they come, from other threads."""
        # A thread that asks what another is asking waits for that answer, so that nothing is paid twice.
        known, mine, theirs = self.log.claim(list(asked))
        try:
            yield known
            with ThreadPoolExecutor(self.num_calls, thread_name_prefix="requests") as pool:
                groups = batched(mine, self.call_size)
                futures = [pool.submit(self._ask, {key: asked[key] for key in group}, sampling) for group in groups]
                try:
                    for future in as_completed(futures):
                        yield future.result()
                finally:  # after an error nothing more is asked; what is under way ends and is written
                    for future in futures:
                        future.cancel()
        finally:
            self.log.release(mine)
        yield {key: future.result() for key, future in theirs.items()}

    def _ask(self, prompts: Mapping[str, Messages], sampling: Sampling) -> dict[str, Completion]:
        """Put requests to the generator, as many at once as the budget surely allows."""
        answers: dict[str, Completion] = {}
        while left := {key: prompt for key, prompt in prompts.items() if key not in answers}:
            if self._failing >= AWAY:
                raise AwayError(
                    f"the last {self._failing} requests to {self.model} failed, the last one with: {self._failure}; "
                    f"see to it and run the same command again: what is answered is in {self.log.path}"
                )
            most = {key: self._most(prompt, sampling) for key, prompt in left.items()}
            keys: list[str] = []
            self._slots.acquire()
            try:
                # On disk before anything is sent: after a kill the next run knows what it may have paid for.
                keys = self.log.reserve(most)

                def note(i: int, found: list[Completion], keys: Sequence[str] = keys) -> None:
                    answers[keys[i]] = self._write(keys[i], found[0], most[keys[i]])  # noqa: B023 - within this round

                # A seed that follows from the key: an answer depends on nothing that is asked beside it.
                seeds = tuple(int(key[:8], 16) >> 1 for key in keys)
                how = Seeded(**{**vars(sampling), "n": 1, "seeds": seeds})
                for i, found in enumerate(self.generator.complete([left[key] for key in keys], how, note)):
                    if keys[i] not in answers:
                        note(i, found)
            finally:
                self.log.abandon([key for key in keys if key not in answers])
                self._slots.release()
        return answers

    def _write(self, key: str, answer: Completion, most: float) -> Completion:
        """Note an answer with what the meter moved since the last one."""
        with self._lock:
            # Several threads share the meter: each answer takes what was used since the last one, so the sum is exact.
            now = self.meter()
            read, wrote = (after - before for after, before in zip(now, self._metered, strict=True))
            self._metered = now
            self._failing, self._failure = (self._failing + 1, answer.error) if answer.stop == "error" else (0, "")
            silent = now == (0, 0) and answer.stop != "error"
            cost = most if silent else (read * self.price[0] + wrote * self.price[1]) / 1e6
            return self.log.write(key, self.model, answer, (read, answer.num_tokens if silent else wrote, cost))

    def _most(self, prompt: Messages, sampling: Sampling) -> float:
        """What a request costs at most: a token has at least one byte."""
        read = sum(len(turn.content.encode("utf-8", "surrogatepass")) + TURN for turn in prompt)
        return (read * self.price[0] + sampling.max_new_tokens * self.price[1]) / 1e6
