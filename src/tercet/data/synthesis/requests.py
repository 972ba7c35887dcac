"""What the stages share that ask models and pay for it: one request log, models that load late, and the cost.

The log of a stage is `.requests/NAME.jsonl` in the store, not in the artifact, and is named after the stage. So what
was answered stays when an unfinished artifact is removed: a raised budget, more rows or another rule continue from it
and ask only for what is new. A stage's budget holds for its log, that is for everything the stage ever asked in this
store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tercet.data.disk_list import batched
from tercet.data.synthesis.request_log import LoggedModel, RequestLog, RequestLogError
from tercet.journal import mend
from tercet.recipe import AskingSpec
from tercet.rows import Completions, Done, Likelihoods, Options, Prompts, Sampling
from tercet.rows_table import TableWriter
from tercet.store import Artifact, Context, endpoint

PIECE = 1024  # rows that are asked about, or written to a table, together
AHEAD, SERVED = 8, 2  # chunks that an engine, or a server, is asked at once: none waits for the last of another


@dataclass(frozen=True)
class RequestRecord:
    """One request: tokens of the answer where it has some, tokens read and written as the server counts them."""

    key: str
    model: str
    stop: str
    tokens: int = 0
    read: int = 0
    wrote: int = 0
    cost: float = 0.0


class LazyModel:
    """A model that is loaded when it is first asked. Implements `tercet.rows.Generator`."""

    _model: Any = None
    _closed = False

    def __init__(self, open_model: Callable[[], Any]) -> None:
        self._open, self._lock = open_model, Lock()

    @property
    def model(self) -> Any:
        """The model itself."""
        with self._lock:
            if self._closed:
                raise RequestLogError("the model was given back; run again")
            if self._model is None:
                self._model = self._open()
            return self._model

    def close(self) -> None:
        """Give back connections, replicas or memory, for good: threads that still ask begin nothing."""
        with self._lock:
            model, self._model, self._closed = self._model, None, True
        if hasattr(model, "close"):
            model.close()

    def used(self) -> tuple[int, int]:
        """Tokens read and written so far, as a server counts them."""
        model = self._model
        return (0, 0) if model is None else (model.usage.prompt_tokens, model.usage.completion_tokens)

    def complete(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> Completions:
        """See `tercet.rows.Generator`."""
        return list(self.model.complete(prompts, sampling, done))

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """See `tercet.rows.Generator`."""
        return list(self.model.likelihood(prompts, options, close=close))


def open_log(spec: AskingSpec, ctx: Context) -> RequestLog:
    """The request log of a stage, under its name in the store."""
    path = ctx.store.root / ".requests" / f"{ctx.name}.jsonl"
    mend(path, ctx.track.note)
    return RequestLog(path, spec.budget)


def title(model: Artifact) -> str:
    """What rows and pairs call a model: its stage and the beginning of its key."""
    return f"{model.name}-{model.key[:12]}"


@contextmanager
def logged_model(
    log: RequestLog, model: Artifact, spec: AskingSpec, ctx: Context, on_answers: Callable[[int], None]
) -> Iterator[LoggedModel]:
    """A model behind the log: a server gets as many requests at once as it may, a local model gets batches.

    The log knows a model by its key (and a local one by its precision), whatever the stage is called. A local model
    costs nothing; `placement.price` is that of every server. An engine gets whole calls, as many as callers make; each
    answer of them is kept as it comes. How a local model rounds depends a little on the batch,
    and a kill changes the next batch: what is in the log stays as it is, and with `placement.gen_rows = 1` what is
    still to come is the same to the last bit, too.
    """
    lazy = LazyModel(lambda: ctx.open_model(model.payload, spec.precision, spec.engine))
    placement, server = ctx.recipe.placement, endpoint(model.payload) is not None
    if server and spec.budget is not None and placement.price is None:
        raise RequestLogError(
            f"stage {ctx.name!r} has a budget, and nobody knows what {model.name!r} costs; give "
            "`placement.price = [DOLLARS_PER_MILLION_READ, DOLLARS_PER_MILLION_WRITTEN]`"
        )
    try:
        if server:
            price, calls = placement.price or (0.0, 0.0), (placement.requests, 1)
            found = LoggedModel(log, model.key, lazy, price=price, meter=lazy.used, at_once=calls)
            found.ahead = SERVED
        elif spec.engine == "local":
            found = LoggedModel(log, f"{model.key}/{spec.precision}", lazy, at_once=(1, placement.gen_rows))
        else:
            found = LoggedModel(log, f"{model.key}/{spec.precision}/{spec.engine}", lazy, at_once=(AHEAD, PIECE))
            found.ahead = AHEAD
        found.on_answers = on_answers
        yield found
    finally:
        lazy.close()


def write_requests(log: RequestLog, models: Iterable[tuple[str, LoggedModel]], out: Path) -> dict[str, Any]:
    """Write `requests.parquet`, every request without its texts in the order of keys; their sums for the summary.

    `spent` is the whole log, all variants of the stage included; `unknown` requests were cut off by a kill.
    """
    by_model: dict[str, dict[str, Any]] = {}
    with TableWriter(out / "requests.parquet", RequestRecord) as table:
        for name, model in models:
            sums: Counter[str] = Counter(asked=len(model.keys))
            for records in batched((_record(log, name, key) for key in sorted(model.keys)), PIECE):
                table.write(records)
                for record in records:
                    sums.update({what: getattr(record, what) for what in ("tokens", "read", "wrote", "cost")})
                    sums.update(failed=record.stop == "error")
            by_model[name] = {"answered": sums["asked"] - sums["failed"], **sums}
    total = {key: sum(one.get(key, 0) for one in by_model.values()) for key in ("asked", "answered", "failed", "cost")}
    return {"requests": total | {"models": by_model}, "spent": asdict(log.spent), "budget": log.budget}


def _record(log: RequestLog, model: str, key: str) -> RequestRecord:
    """What the log holds of a request; one that failed has no answer, and its cost is only in the log's sum."""
    line = log.find(key)
    if line is None:
        return RequestRecord(key, model, "error")
    return RequestRecord(key, model, line["stop"], line["tokens"], line["read"], line["wrote"], float(line["cost"]))
