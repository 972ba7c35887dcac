"""A model behind an OpenAI-compatible HTTP server: the same questions over a network that fails now and then.

A request that may yet succeed (a lost or broken answer, 408, 409, 425, 429, 5xx) is put again after a growing pause.
One that never will is that prompt's error, as is one whose retries are used up: completions with `error`, never an
exception. Only what makes every other request pointless stops the run with an `EndpointError`: a wrong key, URL or
model, an empty account, a server that could never be reached or refuses everything in the same words. A parameter that
a server does not take is left out after its first refusal. Keys are sent, never stored or shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from tercet.models.openai import payloads
from tercet.models.openai.pacing import Clock, Limits, RateLimiter
from tercet.models.openai.payloads import EndpointError, NoAnswer, PassingFailure, RequestRefused
from tercet.models.openai.refusals import PATIENCE, Refusals
from tercet.models.openai.wire import HttpAnswer, Wire
from tercet.outside import has_userinfo
from tercet.rows import Completion, Completions, Done, Likelihood, Likelihoods, Options, Prompts, Sampling

T = TypeVar("T")
ADDRESS = "check the URL (it often ends in /v1) and the name of the model"
HOPELESS = {
    **dict.fromkeys((301, 302, 307, 308, 404, 405), ADDRESS),
    401: "check the API key",
    402: "the account has no credit left",
    403: "the key may not use this model",
}
BUDGETS = {*payloads.LIMITS, "reasoning_effort"}  # of an answer, not of the one token that options are looked up in
PASSING = {408, 409, 425, 429}


@dataclass
class Usage:
    """What was asked and what it cost: tokens as the server counted them, `cost` in the currency of the price.

    `requests` counts attempts, `retries` those after a first one, `failed` the questions that got no answer. An answer
    that was lost on the way may have been charged and is not counted here.
    """

    requests: int = 0
    retries: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


def key_of(url: str) -> str:
    """The key for a server, from the environment (see `open`); EndpointError where the URL is none of a server."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or has_userinfo(url):
        raise EndpointError("expected a base URL such as https://host/v1, without a user name or key in it")
    names = ["TERCET_API_KEY", *["OPENAI_API_KEY"] * (parts.hostname == "api.openai.com")]
    key = next(filter(None, (os.environ.get(name, "").strip() for name in names)), "")
    if not (key.isascii() and key.isprintable()):
        raise EndpointError("the API key holds characters that no key has; copy it again")
    return key


class EndpointGenerator:
    """Writes and scores over HTTP. Implements `tercet.rows.Generator`; it cannot show token ids, so has no `encode`."""

    def __init__(self, url: str, model: str, key: str, limits: Limits, price: tuple[float, float] | None) -> None:
        self.url, self.model, self.limits, self.price = url.rstrip("/"), model, limits, price
        self.extra: dict[str, Any] = {}
        self.clock = Clock()
        self._key, self._usage, self._answered = key, Usage(), False
        self._limiter, self._refusals = RateLimiter(limits), Refusals(self.url)
        self._lock = threading.Lock()
        self._wire = Wire(self.url, {"Authorization": f"Bearer {key}"} if key else {}, limits.concurrency)

    @classmethod
    def open(
        cls,
        url: str,
        model: str,
        *,
        price: tuple[float, float] | None = None,
        extra: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> Self:
        """A server by its base URL (`http://localhost:8000/v1`); `limits` are the fields of `Limits`.

        `extra` is laid over every request that lets the model write, e.g. `{"reasoning_effort": "low"}`.

        The key is read from TERCET_API_KEY where that is set, else for api.openai.com from OPENAI_API_KEY, which no
        other host is sent. `price` is what a million prompt and a million completion tokens cost.
        """
        found = cls(url, model, key_of(url), Limits(**limits), price)
        found.extra = dict(extra or {})
        return found

    @property
    def usage(self) -> Usage:
        """What has been asked so far, over all calls."""
        with self._lock:
            used = replace(self._usage)
        if self.price is not None:
            used.cost = (used.prompt_tokens * self.price[0] + used.completion_tokens * self.price[1]) / 1e6
        return used

    def close(self) -> None:
        """Give the connections back."""
        self._wire.close()

    def complete(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> Completions:
        """`sampling.n` completions of each prompt; `done` is called in the caller's thread. See `Generator`.

        An open assistant turn is sent with vLLM's `continue_final_message`; a server that does not know the field
        begins a new turn instead. The server draws by its own random numbers from (seed, prompt), if it keeps seeds.
        What a model thought stands as `<think>...</think>` before its text.
        """
        results: dict[int, list[Completion]] = {}

        def ask(i: int, stopped: threading.Event) -> list[Completion]:
            path, body = payloads.question(prompts[i], sampling, i)
            try:
                return self._write(path, payloads.with_extra(body, self.extra), sampling, stopped)
            except RequestRefused as problem:
                return [Completion("", (), (), "error", str(problem))] * sampling.n

        def emit(i: int, found: list[Completion]) -> None:
            results[i] = found
            if done is not None:
                done(i, found)

        self._each(len(prompts), ask, emit)
        return [results[i] for i in range(len(prompts))]

    def _write(
        self, path: str, body: Mapping[str, Any], sampling: Sampling, stopped: threading.Event
    ) -> list[Completion]:
        """All completions of a question; of a server that ignores `n`, one by one."""

        def read(reply: Any) -> list[Completion]:
            return payloads.completions(reply, sampling)

        found = self._request(path, body, read, stopped)
        if len(found) < sampling.n:
            self._refusals.leave_out(
                "n", f"it answered {len(found)} of {sampling.n} completions; they are asked singly"
            )
        while len(found) < sampling.n:
            found += self._request(path, payloads.single(body, len(found)), read, stopped)[:1]
        return found

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """Log-probs of options, as far as the protocol shows them; what it does not show has `error`.

        Plain prompts: the server echoes prompt and option with log-probs (vLLM, llama.cpp; OpenAI no longer does), and
        the tokens that start in the option are summed. Conversations: only options of one token, looked up among the
        twenty likeliest first tokens; where not all are there as written, surrounding blanks are ignored for all.
        """
        if close:
            raise EndpointError("an endpoint does not show the end-of-turn token's log-prob; use close=False")
        jobs = [
            (i, part)
            for i, texts in enumerate(options)
            for part in ([[text] for text in texts] if payloads.is_plain(prompts[i]) else [list(texts)])
        ]
        results: dict[int, list[Likelihood]] = {}

        def ask(job: int, stopped: threading.Event) -> list[Likelihood]:
            i, texts = jobs[job]
            try:
                if payloads.is_plain(prompts[i]):
                    context = prompts[i][0].content
                    path, body = payloads.echo(context + texts[0])
                    return self._request(path, body, lambda reply: [payloads.echoed(reply, context, texts[0])], stopped)
                path, body = payloads.first_token(prompts[i])
                body = payloads.with_extra(body, {k: v for k, v in self.extra.items() if k not in BUDGETS})
                return self._request(path, body, lambda reply: payloads.among_likeliest(reply, texts), stopped)
            except RequestRefused as problem:
                return [Likelihood(math.nan, 0, error=str(problem)) for _ in texts]

        self._each(len(jobs), ask, results.__setitem__)
        found: Likelihoods = [[] for _ in prompts]
        for job, (i, _) in enumerate(jobs):
            found[i] += results[job]
        return found

    def _each(self, count: int, work: Callable[[int, threading.Event], T], emit: Callable[[int, T], None]) -> None:
        """Do all pieces of work at once, as many as allowed, and hand over each result here as it comes.

        Several threads may call this at once, each for its own questions: one that stops, stops no other.
        """
        stopped = threading.Event()
        with ThreadPoolExecutor(self.limits.concurrency, thread_name_prefix="endpoint") as pool:
            futures = {pool.submit(work, number, stopped): number for number in range(count)}
            try:
                for future in as_completed(futures):
                    emit(futures[future], future.result())
            finally:  # after an error nothing more is sent; what is under way ends within its timeout
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _request(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], stopped: threading.Event) -> T:
        """One question until it is answered; raises `RequestRefused` for this one, `EndpointError` for all."""
        while True:
            sent = self._refusals.fitted(body)
            try:
                found = self._patiently(path, sent, read, stopped)
            except NoAnswer as problem:
                self._count(failed=1)
                raise NoAnswer(self._hidden(str(problem))) from None
            except RequestRefused as problem:
                if self._refusals.learn(str(problem), problem.param, sent):
                    continue
                self._count(failed=1)
                message = self._hidden(str(problem))
                if self._refusals.count(path, message) >= PATIENCE:
                    raise EndpointError(
                        f"the same refusal came {PATIENCE} times in a row, so the rest was not sent: {message}; change "
                        f"what is asked of this server, or the server (model {self.model!r})"
                    ) from None
                raise RequestRefused(message) from None
            self._refusals.answered(path)
            return found

    def _patiently(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], stopped: threading.Event) -> T:
        """One body, put again while it may succeed; raises `RequestRefused` where the server will not have it."""
        data = json.dumps({"model": self.model, **body})
        chance = random.Random(data)
        tokens = len(data) // 4 + payloads.budget(body) * body.get("n", 1)
        begin = None
        for attempt in range(self.limits.retries + 1):
            self._limiter.enter(tokens, self.clock, stopped)
            begin = self.clock.now() if begin is None else begin  # the queue before the first attempt is our own
            self._count(requests=1, retries=int(attempt > 0))
            left = begin + self.limits.deadline - self.clock.now()
            try:
                return self._attempt(path, data, tokens, read, min(self.limits.timeout, max(1.0, left)))
            except PassingFailure as problem:
                failure = problem
            pause = min(self.limits.longest_backoff, self.limits.backoff * 2**attempt) * chance.uniform(0.5, 1.0)
            pause = max(pause, failure.pause)
            if attempt == self.limits.retries or self.clock.now() + pause >= begin + self.limits.deadline:
                break
            self._limiter.hold(failure.pause, self.clock)
            self.clock.wait(pause, stopped)
        if not failure.reached and not self._answered:
            self._count(failed=1)
            raise EndpointError(f"{self.url} cannot be reached ({failure}); is the server running, is the URL right?")
        raise NoAnswer(f"no answer after {attempt + 1} attempts; the last one: {failure}")

    def _attempt(self, path: str, data: str, tokens: int, read: Callable[[Any], T], seconds: float) -> T:
        key = hashlib.sha256(data.encode()).hexdigest()  # a server that knows such keys answers, and charges, once
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        answer = self._wire.post(path, data.encode(), headers, seconds=seconds, tokens=tokens)
        self._answered = True
        self._check(path, answer)
        reply = payloads.parsed(answer.content)
        self._settle(reply, tokens)
        try:
            return read(reply)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError) as error:
            shown = answer.content[:120].decode("utf-8", errors="replace")
            raise PassingFailure(
                f"the reply has another shape than the protocol's ({error!r:.200}): {shown}"
            ) from error

    def _check(self, path: str, answer: HttpAnswer) -> None:
        status = answer.status
        if 200 <= status < 300:
            return
        text = answer.content.decode("utf-8", errors="replace")
        message = f"{self.url}{path} answered {status}: {payloads.error_text(text)}"
        if status in HOPELESS or (status == 429 and "insufficient_quota" in text):
            raise EndpointError(
                f"{self._hidden(message)}; {HOPELESS.get(status, HOPELESS[402])} (model {self.model!r})"
            )
        if status in PASSING or status >= 500:
            raise PassingFailure(message, payloads.retry_after(answer.retry_after))
        raise RequestRefused(message, payloads.error_param(text))

    def _settle(self, reply: Any, tokens: int) -> None:
        """Count what the server says it read and wrote, and give back what was reserved too much."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        if isinstance(usage, dict):
            read, wrote = (payloads.count_of(usage, key, tokens) for key in ("prompt_tokens", "completion_tokens"))
            self._count(prompt_tokens=read, completion_tokens=wrote)
            self._limiter.settle(tokens - read - wrote, self.clock)

    def _hidden(self, text: str) -> str:
        """An error text in which a server repeats no key; a stand-in such as `EMPTY` is no secret."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self._usage, name, getattr(self._usage, name) + number)
