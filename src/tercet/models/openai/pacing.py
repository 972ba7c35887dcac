"""How fast and how long a server is asked: limits, a clock, and what keeps requests apart."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

from tercet.models.openai import payloads
from tercet.models.openai.payloads import EndpointError, NoAnswer


@dataclass(frozen=True)
class Limits:
    """How much a server is asked: requests at once and per minute, tokens per minute, patience and pauses in seconds.

    A pause grows from `backoff` by doubling to `longest_backoff`; chance, fixed by the request, takes up to half off.
    `deadline` is over all attempts at one question, with their pauses, whatever a server asks for.
    """

    concurrency: int = 16
    retries: int = 6
    timeout: float = 300.0  # for a whole answer; connecting may take ten seconds of it
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    backoff: float = 1.0
    longest_backoff: float = 60.0
    deadline: float = 3600.0

    def __post_init__(self) -> None:
        rates = [rate for rate in (self.requests_per_minute, self.tokens_per_minute) if rate is not None]
        if self.concurrency < 1 or self.retries < 0 or min([self.timeout, self.deadline, *rates]) <= 0:
            raise EndpointError(f"expected positive limits (retries may be 0), got {self}")


class Clock:
    """The machine's time; tests replace it by a clock that does not wait."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, seconds: float, stopped: threading.Event) -> None:
        """Return after that long, or as soon as `stopped` is set."""
        stopped.wait(seconds)


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

    def settle(self, tokens: int, clock: Clock) -> None:
        """Give back tokens that were reserved and not used; what was used beyond them delays no request for long."""
        with self._lock:
            latest = max(self._next_token, clock.now() + payloads.LONGEST_PAUSE)
            self._next_token = min(self._next_token - tokens * self._per_token, latest)

    def hold(self, seconds: float, clock: Clock) -> None:
        """Send nothing for a while: the server asked for it."""
        with self._lock:
            if seconds:
                self._next_request = max(self._next_request, clock.now() + seconds)
