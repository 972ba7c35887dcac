"""What the stages share that ask models and pay for it: one ledger, models that open late, and the account.

The ledger stands beside the artifacts, in `.ledgers/NAME.jsonl` of the store, under the name of the stage. So what was
answered stays when a draft goes: a raised budget, more rows or another rule continue from it and ask only for what is
new. A stage's budget holds for its ledger, that is for everything the stage ever asked in this store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from tercet.data.disk_list import batched
from tercet.data.synthesis.request_log import Done, LoggedModel, RequestLog, RequestLogError
from tercet.journal import write_json
from tercet.recipe import AskingSpec
from tercet.rows import Completion, Likelihood, Messages, Sampling, TableWriter
from tercet.store import endpoint

if TYPE_CHECKING:
    from tercet.store import Artifact, Context


T = TypeVar("T")
PIECE = 1024  # rows that are asked about, or written to a table, together


@runtime_checkable
class Closes(Protocol):
    """A model that holds connections."""

    def close(self) -> None:
        """Give them back."""
        ...


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
    """A model that is opened when it is first asked. Implements `tercet.rows.Generator`."""

    def __init__(self, open_model: Callable[[], Any]) -> None:
        self._open, self._model, self._lock = open_model, None, Lock()

    @property
    def model(self) -> Any:
        """The model itself."""
        with self._lock:
            if self._model is None:
                self._model = self._open()
            return self._model

    def close(self) -> None:
        """Give back connections, or memory."""
        if isinstance(self._model, Closes):
            self._model.close()
        self._model = None

    def used(self) -> tuple[int, int]:
        """Tokens read and written so far, as a server counts them."""
        if self._model is None:
            return 0, 0
        usage = self._model.usage
        return usage.prompt_tokens, usage.completion_tokens

    def complete(
        self, prompts: Sequence[Messages], sampling: Sampling, done: Done | None = None
    ) -> list[list[Completion]]:
        """See `tercet.rows.Generator`."""
        return list(self.model.complete(prompts, sampling, done))

    def likelihood(
        self, prompts: Sequence[Messages], options: Sequence[Sequence[str]], *, close: bool = False
    ) -> list[list[Likelihood]]:
        """See `tercet.rows.Generator`."""
        return list(self.model.likelihood(prompts, options, close=close))


def open_ledger(spec: AskingSpec, ctx: Context) -> RequestLog:
    """The ledger of a stage, under its name in the store."""
    return RequestLog(ctx.store.root / ".ledgers" / f"{ctx.name}.jsonl", spec.budget)


def title(model: Artifact) -> str:
    """What rows and pairs call a model: its stage and the beginning of its key."""
    return f"{model.name}-{model.key[:12]}"


@contextmanager
def behind(
    ledger: RequestLog, model: Artifact, spec: AskingSpec, ctx: Context, heard: Callable[[int], None]
) -> Iterator[LoggedModel]:
    """A model behind the ledger: a server is asked for as much at once as it may be, a local model in batches.

    The ledger knows a model by its key (and a local one by its precision), whatever the stage is called. A local model
    costs nothing; `placement.price` is that of every server. How a local model rounds depends a little on the batch,
    and a kill changes the next batch: what the ledger has stays as it is, and with `placement.gen_rows = 1` what is
    still to come is the same to the last bit, too.
    """
    late = LazyModel(lambda: ctx.open_model(model.payload, spec.precision, spec.engine))
    placement, server = ctx.recipe.placement, endpoint(model.payload) is not None
    if server and spec.budget is not None and placement.price is None:
        raise RequestLogError(
            f"stage {ctx.name!r} has a budget, and nobody knows what {model.name!r} costs; give "
            "`placement.price = [DOLLARS_PER_MILLION_READ, DOLLARS_PER_MILLION_WRITTEN]`"
        )
    try:
        if server:
            price, meter = placement.price or (0.0, 0.0), late.used
            lanes = [late] * placement.requests
            found = LoggedModel(ledger, model.key, lanes, price=price, meter=meter, at_once=1)
        else:
            how = spec.precision if spec.engine == "local" else f"{spec.precision}/{spec.engine}"
            found = LoggedModel(ledger, f"{model.key}/{how}", [late], at_once=placement.gen_rows)
        found.heard = heard
        yield found
    finally:
        late.close()


def account(ledger: RequestLog, models: Iterable[tuple[str, LoggedModel]], out: Path) -> dict[str, Any]:
    """What was asked, as the summary tells it; `requests.parquet` lists it, without the texts, in order of the keys.

    `spent` is the whole ledger, all variants of the stage included; `unknown` requests were cut off by a kill.
    """
    told: dict[str, dict[str, Any]] = {}
    with TableWriter(out / "requests.parquet", RequestRecord) as table:
        for name, model in models:
            sums: Counter[str] = Counter(asked=len(model.keys))
            for facts in pieces(_fact(ledger, name, key) for key in sorted(model.keys)):
                table.write(facts)
                for fact in facts:
                    sums.update({what: getattr(fact, what) for what in ("tokens", "read", "wrote", "cost")})
                    sums.update(failed=fact.stop == "error")
            told[name] = {"answered": sums["asked"] - sums["failed"], **sums}
    total = {what: sum(one.get(what, 0) for one in told.values()) for what in ("asked", "answered", "failed", "cost")}
    return {"requests": total | {"models": told}, "spent": asdict(ledger.spent), "budget": ledger.budget}


def _fact(ledger: RequestLog, model: str, key: str) -> RequestRecord:
    """What the ledger knows of a request; one that failed has no answer, and cost what the ledger's sum says."""
    line = ledger.find(key)
    if line is None:
        return RequestRecord(key, model, "error")
    return RequestRecord(key, model, line["stop"], line["tokens"], line["read"], line["wrote"], float(line["cost"]))


def pieces(rows: Iterable[T]) -> Iterator[list[T]]:
    """The same rows in lists of up to PIECE, as a table is written."""
    return batched(rows, PIECE)


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`."""
    write_json(out / "summary.json", summary)
