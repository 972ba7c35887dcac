"""What a server refuses, remembered for as long as this process asks it.

A parameter that it does not take is left out from then on, and said once; a request that it refuses in the same words
again and again is not sent for every item of a benchmark.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Mapping
from typing import Any

from tercet.models.openai import payloads
from tercet.outside import printable

PATIENCE = 24  # the same refusal so often in a row, and nothing answered between, is one of everything
REASONING = "reasoning_content"  # of turns, not of the request
FIXED = {"model", "messages", "prompt", "tools", "echo", "logprobs", "top_logprobs"} | {
    *payloads.LIMITS
}  # never left out
_UNSUPPORTED = re.compile(
    r"unsupported|not support|only .{0,40}support|not permitted|not allowed|not accept|unrecogni[sz]ed|unknown"
    r"|unexpected|forbidden",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"content.{0,12}(?:filter|policy|management)|moderation|flagged|safety", re.IGNORECASE)


class Refusals:
    """Shared by all requests to one server."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._left_out: set[str] = set()
        self._last: dict[str, tuple[str, int]] = {}  # path -> the refusal that came last, and how often in a row
        self._lock = threading.Lock()

    def fitted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as this server takes it."""
        fit = dict(body)
        with self._lock:
            left_out = set(self._left_out)
        if "max_tokens" in left_out and "max_tokens" in fit:
            fit["max_completion_tokens"] = fit.pop("max_tokens")
        for name in left_out & fit.keys():
            del fit[name]
        if REASONING in left_out and "messages" in fit:
            fit["messages"] = [{k: v for k, v in turn.items() if k != REASONING} for turn in fit["messages"]]
        return fit

    def learn(self, message: str, param: str, sent: Mapping[str, Any]) -> bool:
        """Whether a refusal names a parameter that was sent and can be done without; it is, from now on."""
        name = _unsupported(message, param, sent)
        if name:
            self.leave_out(name, f"it answered: {message}")
        return bool(name)

    def leave_out(self, name: str, why: str) -> None:
        """Never send this parameter again; said once, on standard error (the log of a stage)."""
        with self._lock:
            said = name in self._left_out
            self._left_out.add(name)
        if not said:
            instead = "sent as max_completion_tokens" if name == "max_tokens" else "left out"
            line = f"tercet: {self.server}: {name!r} is {instead} of every further request; {why}"
            sys.stderr.write(printable(line) + "\n")

    def count(self, path: str, message: str) -> int:
        """How often in a row this path was refused in these words; filters judge single prompts and never count."""
        if _FILTERED.search(message):
            return 0
        with self._lock:
            before, times = self._last.get(path, ("", 0))
            self._last[path] = (message, times + 1 if message == before else 1)
            return self._last[path][1]

    def answered(self, path: str) -> None:
        """A request to this path was answered."""
        with self._lock:
            self._last.pop(path, None)


def _unsupported(message: str, param: str, sent: Mapping[str, Any]) -> str:
    """The parameter that a refusal names as unknown to the server; nothing where none can be done without."""
    message = message.partition(" answered ")[2] or message  # an address may hold any word
    if "max_tokens" in sent and "max_completion_tokens" in message:
        return "max_tokens"
    if not _UNSUPPORTED.search(message):
        return ""
    thoughts = any(REASONING in turn for turn in sent.get("messages", ()))
    known = [name for name in (*sent, *[REASONING] * thoughts) if name not in FIXED]
    if param in known:
        return param
    named = [name for name in known if re.search(rf"\b{re.escape(name)}\b", message)]
    return next((name for name in named if re.search(rf"[\"'`]{re.escape(name)}[\"'`]", message)), (*named, "")[0])
