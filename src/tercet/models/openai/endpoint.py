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
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx2

from tercet.models.openai import payloads
from tercet.models.openai.payloads import NoAnswer, PassingFailure, RequestRefused
from tercet.models.openai.refusals import PATIENCE, Refusals
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


class EndpointError(ValueError):
    """Every request would fail: the key, the URL, the model or the account is wrong, or no server is there."""


@dataclass(frozen=True)
class Limits:
    """How much a server is asked: requests at once and per minute, tokens per minute, patience and pauses in seconds.

    A pause grows from `backoff` by doubling to `longest_backoff`; chance, fixed by the request, takes up to half off.
    """

    concurrency: int = 16
    retries: int = 6
    timeout: float = 300.0  # for a whole answer; connecting may take ten seconds of it
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    backoff: float = 1.0
    longest_backoff: float = 60.0

    def __post_init__(self) -> None:
        rates = [rate for rate in (self.requests_per_minute, self.tokens_per_minute) if rate is not None]
        if self.concurrency < 1 or self.retries < 0 or min([self.timeout, *rates]) <= 0:
            raise EndpointError(f"expected positive limits (retries may be 0), got {self}")


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


class Clock:
    """The machine's time; tests replace it by a clock that does not wait."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, seconds: float, stopped: threading.Event) -> None:
        """Return after that long, or as soon as `stopped` is set."""
        stopped.wait(seconds)


class EndpointGenerator:
    """Writes and scores over HTTP. Implements `tercet.rows.Generator`; it cannot show token ids, so has no `encode`."""

    def __init__(self, url: str, model: str, key: str, limits: Limits, price: tuple[float, float] | None) -> None:
        self.url, self.model, self.limits, self.price = url.rstrip("/"), model, limits, price
        self.extra: dict[str, Any] = {}
        self.clock = Clock()
        self._key, self._usage, self._answered = key, Usage(), False
        self._limiter, self._refusals = RateLimiter(limits), Refusals(self.url)
        self._lock = threading.Lock()
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(limits.timeout, connect=min(limits.timeout, 10.0)),
            limits=httpx2.Limits(max_connections=limits.concurrency),
        )

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
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise EndpointError("expected a base URL such as https://host/v1, without a user name or key in it")
        names = ["TERCET_API_KEY", *["OPENAI_API_KEY"] * (parts.hostname == "api.openai.com")]
        key = next(filter(None, (os.environ.get(name, "").strip() for name in names)), "")
        if not (key.isascii() and key.isprintable()):
            raise EndpointError("the API key holds characters that no key has; copy it again")
        found = cls(url, model, key, Limits(**limits), price)
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
        self._client.close()

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
        for attempt in range(self.limits.retries + 1):
            self._limiter.enter(tokens, self.clock, stopped)
            self._count(requests=1, retries=int(attempt > 0))
            try:
                return self._attempt(path, data, tokens, read)
            except PassingFailure as problem:
                failure = problem
            if attempt < self.limits.retries:
                pause = min(self.limits.longest_backoff, self.limits.backoff * 2**attempt) * chance.uniform(0.5, 1.0)
                self._limiter.hold(failure.pause, self.clock)
                self.clock.wait(max(pause, failure.pause), stopped)
        if not failure.reached and not self._answered:
            self._count(failed=1)
            raise EndpointError(f"{self.url} cannot be reached ({failure}); is the server running, is the URL right?")
        raise NoAnswer(f"no answer after {attempt + 1} attempts; the last one: {failure}")

    def _attempt(self, path: str, data: str, tokens: int, read: Callable[[Any], T]) -> T:
        deadline = time.monotonic() + self.limits.timeout
        content = bytearray()
        try:
            key = hashlib.sha256(data.encode()).hexdigest()  # a server that knows such keys answers, and charges, once
            headers = {"Content-Type": "application/json", "Idempotency-Key": key}
            with self._client.stream("POST", path, content=data, headers=headers) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout(f"the answer was not whole after {self.limits.timeout:g} s")
        except httpx2.RequestError as error:
            away = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise PassingFailure(f"{type(error).__name__}: {error}", reached=not away) from error
        self._answered = True
        text = content.decode("utf-8", errors="replace")
        self._check(path, response, text)
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PassingFailure(f"expected JSON, got {text!r:.120}") from error
        self._settle(reply, tokens)
        try:
            return read(reply)
        except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
            raise PassingFailure(f"the reply has another shape than the protocol's ({error!r}): {text:.120}") from error

    def _check(self, path: str, response: httpx2.Response, text: str) -> None:
        status = response.status_code
        if 200 <= status < 300:
            return
        message = f"{self.url}{path} answered {status}: {payloads.error_text(text)}"
        if status in HOPELESS or (status == 429 and "insufficient_quota" in text):
            raise EndpointError(
                f"{self._hidden(message)}; {HOPELESS.get(status, HOPELESS[402])} (model {self.model!r})"
            )
        if status in PASSING or status >= 500:
            raise PassingFailure(message, payloads.retry_after(response.headers.get("Retry-After", "")))
        raise RequestRefused(message, payloads.error_param(text))

    def _settle(self, reply: Any, tokens: int) -> None:
        """Count what the server says it read and wrote, and give back what was reserved too much."""
        usage = reply.get("usage") if isinstance(reply, dict) else None
        if isinstance(usage, dict):
            read, wrote = (payloads.count_of(usage, key) for key in ("prompt_tokens", "completion_tokens"))
            self._count(prompt_tokens=read, completion_tokens=wrote)
            self._limiter.settle(tokens - read - wrote)

    def _hidden(self, text: str) -> str:
        """An error text in which a server repeats no key; a stand-in such as `EMPTY` is no secret."""
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self._usage, name, getattr(self._usage, name) + number)


class RateLimiter:
    """Keeps requests and tokens so far apart that no minute holds more of them than allowed."""

    def __init__(self, limits: Limits) -> None:
        self._per_request = 60.0 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._per_token = 60.0 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self._next_request = self._next_token = -math.inf
        self._lock = threading.Lock()

    def enter(self, tokens: int, clock: Clock, stopped: threading.Event) -> None:
        """Wait until a request of about so many tokens may be sent, and take its place."""
        while not stopped.is_set():
            with self._lock:
                now = clock.now()
                early = max(self._next_request, self._next_token) - now
                if early <= 0:
                    self._next_request = now + self._per_request
                    self._next_token = now + tokens * self._per_token
                    return
            clock.wait(early, stopped)
        raise NoAnswer("not sent: the run was stopped")

    def settle(self, tokens: int) -> None:
        """Give back tokens that were reserved and not used."""
        with self._lock:
            self._next_token -= tokens * self._per_token

    def hold(self, seconds: float, clock: Clock) -> None:
        """Send nothing for a while: the server asked for it."""
        with self._lock:
            if seconds:
                self._next_request = max(self._next_request, clock.now() + seconds)
