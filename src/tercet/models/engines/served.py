"""An engine that runs already and answers over HTTP: what the servers of vLLM and SGLang have in common.

Prompts travel as token ids and come back as token ids with log-probabilities, one request for each prompt. What the
server sends is bounded in size and time (`models/openai/wire.py`). A server that does not answer, or that was started
anew and has lost the weights it was given, is a replica that died; what it refuses is an error of what was asked.
"""

from __future__ import annotations

import json
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from tercet.models.access import AccessError, read_key
from tercet.models.chat import Chat
from tercet.models.engines.replica import EngineError, ReplicaDiedError, WrittenGroup
from tercet.models.engines.replies import answered, completions_of
from tercet.models.openai.payloads import PassingFailure
from tercet.models.openai.wire import HttpAnswer, Wire
from tercet.outside import has_userinfo, without_userinfo
from tercet.rows import Completion, Likelihood, Sampling

T = TypeVar("T")
CONNECTIONS = 1024  # at once; each takes a thread here
ABOUT_SECONDS = 10.0  # for what a server says about itself
ANSWER_SECONDS = 3600.0  # for all completions of a prompt
CONTROL_SECONDS = 1800.0  # for one step of an update of weights
MOST_TOKENS = 1 << 16  # that an answer of the control plane may be as long as
UNSENT = -1  # version of the weights that a server began with


class FromServer(NamedTuple):
    """One completion as a server wrote it: tokens, their log-probabilities, why it ended, first and last version."""

    token_ids: list[int]
    logps: list[float]
    reason: str
    first: int | None = None  # where the server says so
    last: int | None = None


class ServedEngine(ABC):
    """A `Replica` behind a URL. Its methods may be called from any thread."""

    engine = ""  # "vLLM"
    start = ""  # how such a server is started

    def __init__(self, url: str, chat: Chat, wire: Wire) -> None:
        """`open` makes one."""
        self.url = self.name = url
        self.chat, self.context, self.version, self.root = chat, 0, UNSENT, ""
        self._wire = wire
        self._waiting: set[Future[Any]] = set()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str, chat: Chat, dtype: str, *, key_file: str = "", patience: float = 0.0) -> Self:
        """The server at `http://HOST:PORT`, which computes in `dtype`; `patience` are seconds for one that still loads.

        `chat` is that of the model it serves; `key_file` has the key that it was started with, if any.
        """
        url = url.rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or has_userinfo(url):
            raise EngineError(
                f"engine.urls: {without_userinfo(url)!r:.200} is no address of a server; expected http://HOST:PORT"
            )
        try:
            key = read_key(Path(key_file).expanduser()) if key_file else ""
        except AccessError as error:
            raise EngineError(f"engine.key_file: {error}") from None
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        found = cls(url, chat, Wire(url, headers, CONNECTIONS + 8))
        end = time.monotonic() + patience
        while True:
            try:
                found.context = found._look(dtype)
                return found
            except ReplicaDiedError:
                if time.monotonic() >= end:
                    found.close()
                    raise
            except BaseException:
                found.close()
                raise
            time.sleep(0.5)

    def submit(self, prompt: Sequence[int], sampling: Sampling, stream: int) -> Future[WrittenGroup]:
        """See `Submits`. A prompt beyond the server's context gives completions with `error`."""
        if 0 < len(prompt) < self.context:
            return self._later(lambda: self._written(list(prompt), sampling, stream))
        error = f"a prompt of {len(prompt)} tokens does not fit into the engine's context of {self.context}"
        unfit, now = Completion("", (), (), "error", error), max(self.version, 0)
        return answered(WrittenGroup([unfit] * sampling.n, now, now, self.name))

    def score(self, context: Sequence[int], ids: Sequence[int]) -> Future[Likelihood]:
        """See `Replica`."""
        if len(context) and len(context) + len(ids) < self.context:
            return self._later(lambda: self._scored(list(context), list(ids)))
        error = f"{len(context)} and {len(ids)} tokens do not fit into the engine's context of {self.context}"
        return answered(Likelihood(math.nan, len(ids), error=error))

    @abstractmethod
    def control(self, verb: str, **values: Any) -> Any:
        """See `Replica`."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take the weights of a folder, which the server must see under the same path."""

    def close(self) -> None:
        """Leave the server, which goes on; what it was asked ends with a ReplicaDiedError."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            with suppress(InvalidStateError):
                future.set_exception(ReplicaDiedError(f"{self.url} was left before it answered"))
        self._wire.close()

    @abstractmethod
    def _look(self, dtype: str) -> int:
        """Check that the server can do what it will be asked for; its context in tokens."""

    @abstractmethod
    def _write(self, prompt: list[int], sampling: Sampling, stream: int) -> list[FromServer]:
        """What the server writes; of a greedy prompt one completion is enough."""

    @abstractmethod
    def _scored(self, context: list[int], ids: list[int]) -> Likelihood:
        """See `score`."""

    def _written(self, prompt: list[int], sampling: Sampling, stream: int) -> WrittenGroup:
        asked_of = self.version
        fitted = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, self.context - len(prompt)))
        found = self._write(prompt, fitted, stream)
        first = min((one.first for one in found if one.first is not None), default=asked_of)
        last = max((one.last for one in found if one.last is not None), default=self.version)
        if first < asked_of:
            raise ReplicaDiedError(
                f"{self.url}: {self.engine} wrote with weights of version {first} after it had been given {asked_of}: "
                "it was started again and holds its first weights"
            )
        replies = [(one.token_ids, one.logps, one.reason) for one in found]
        written = completions_of(self.chat, prompt, replies, sampling, self.engine)
        if len(written) != sampling.n:
            raise EngineError(f"{self.url}: {self.engine} gave {len(written)} of {sampling.n} completions")
        return WrittenGroup(written, max(first, 0), max(last, 0), self.name)

    def _later(self, work: Callable[[], T]) -> Future[T]:
        """What `work` returns, in a thread of its own: one that waits for a hung server keeps nobody from ending."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.add(future)
        threading.Thread(target=self._settle, args=(future, work), daemon=True, name="engine request").start()
        return future

    def _settle(self, future: Future[T], work: Callable[[], T]) -> None:
        try:
            found = work()
        except Exception as error:
            with suppress(InvalidStateError):  # it was closed meanwhile
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):
                future.set_result(found)
        with self._lock:
            self._waiting.discard(future)

    def _get(self, path: str) -> Any:
        return self._read(path, self._sent(lambda: self._wire.get(path, seconds=ABOUT_SECONDS)))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """One step of the control plane, which is never asked for twice."""
        data = json.dumps(body).encode()

        def ask() -> HttpAnswer:
            return self._wire.post(path, data, {}, seconds=CONTROL_SECONDS, tokens=MOST_TOKENS)

        return self._read(path, self._sent(ask))

    def _ask(self, path: str, body: Mapping[str, Any], tokens: int) -> Any:
        """Completions or scores of about so many tokens; asked again where a connection broke and the server lives."""
        data = json.dumps(body).encode()

        def ask() -> HttpAnswer:
            return self._wire.post(path, data, {}, seconds=ANSWER_SECONDS, tokens=tokens)

        try:
            return self._read(path, ask())
        except PassingFailure as error:
            if self._gone():
                raise self._died(str(error)) from error
        except RuntimeError as error:  # it was closed meanwhile
            raise self._died(str(error)) from error
        return self._read(path, self._sent(ask))

    def _sent(self, ask: Callable[[], HttpAnswer]) -> HttpAnswer:
        try:
            return ask()
        except (PassingFailure, RuntimeError) as error:
            raise self._died(str(error)) from error

    def _read(self, path: str, answer: HttpAnswer) -> Any:
        """The JSON of an answer, or one error that says what the server refused."""
        text = answer.content.decode("utf-8", errors="replace")
        try:
            body = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError):
            body = None
        if answer.status == 200 and body is not None:
            return body
        said = " ".join(_error(body).split()) or f"HTTP {answer.status}, {text.strip()[:80]!r}"
        if answer.status in (401, 403) and "key" not in said.lower():
            said += "; name the file with its key in engine.key_file"
        if answer.status >= 500 and self._gone():
            raise self._died(said)
        raise EngineError(f"{self.url}{path.partition('?')[0]}: {self.engine} refuses ({said:.400}); {self.start}")

    def _gone(self) -> bool:
        """Whether the engine behind a server that answers has ended."""
        try:
            return self._wire.get("/health", seconds=ABOUT_SECONDS).status != 200
        except (PassingFailure, RuntimeError):
            return True

    def _died(self, why: str) -> ReplicaDiedError:
        return ReplicaDiedError(
            f"{self.url}: {self.engine} does not answer ({why:.300}). It was killed, ran out of memory or never ran: "
            f"see its log; {self.start}; then run the same command again, which goes on from the last checkpoint"
        )

    def _strange(self, error: Exception) -> EngineError:
        return EngineError(f"{self.url}: an answer of another shape than {self.engine}'s ({error!r:.120})")


def version(label: object) -> int:
    """The number of a label of weights; those that a server began with have none."""
    return int(label) if isinstance(label, str) and label.isdecimal() else UNSENT


def versions(spans: Sequence[Mapping[str, Any]] | None) -> tuple[int, int] | tuple[None, None]:
    """The first and the last of the versions that the parts of a completion were written with, where they are told."""
    return (version(spans[0]["version"]), version(spans[-1]["version"])) if spans else (None, None)


def _error(body: Any) -> str:
    """What an answer calls its error, in the forms that servers use."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            found = body[name]
            return _error(found) if isinstance(found, dict) else str(found)
    return ""
