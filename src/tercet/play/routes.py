"""What the page asks its own server beside the models: items, verdicts, traces, what is kept, a frozen page.

GET  /  /play/FILE                      the page and its files, free of the key
GET  /play/config                       columns, verifiers, tasks
GET  /play/items?task=&change=&number=  an item of the evaluations
POST /play/grade  /play/trace  /play/keep  /play/frozen
POST /play/servers/N/chat/completions   a server elsewhere
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tercet import machine
from tercet.outside import read_json
from tercet.play import assets
from tercet.play.columns import MOST, Column
from tercet.play.items import CHANGES, ItemBook, NoItemError
from tercet.play.kept import Kept, KeptError, KeptTurn, Text
from tercet.play.servers import PATHS, RemoteServer
from tercet.play.verdicts import Verdicts
from tercet.records import Result, Sample, TaskCard
from tercet.rows import Message

if TYPE_CHECKING:
    from fastapi import Request, Response
    from fastapi.routing import BaseRoute

    Handler = Callable[[Request], Awaitable[Response]]

MOST_ANSWERS = 128
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


class Tracing(Protocol):
    """Finds the spans of a text that stand in the rows that one model was trained on."""

    def trace(self, text: str, prompt: str = "") -> Any:
        """The spans, with a `to_json`."""


@dataclass(frozen=True)
class Playground:
    """All that the page shows. `tracers` open the tracing of a column when it is first asked; None: read-only."""

    title: str
    columns: Sequence[Column]
    items: ItemBook
    verdicts: Verdicts
    kept: Kept | None = None
    tracers: Mapping[str, Callable[[], Tracing]] = field(default_factory=dict)
    servers: Sequence[RemoteServer] = ()

    def config(self) -> dict[str, Any]:
        """What the page must know before it asks anything."""
        return {
            "title": self.title,
            "columns": [one.to_json() | {"trace": one.name in self.tracers} for one in self.columns],
            "most": MOST,
            "verifiers": self.verdicts.names(),
            "tasks": self.items.tasks(),
            "changes": CHANGES,
            "read_only": self.kept is None,
            "sources": {} if self.kept is None else {kind: self.kept.source(kind) for kind in ("pair", "mark", "row")},
        }


class WrittenAnswer(BaseModel):
    """An answer to be graded: its text and how it ended."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Text
    stop: Literal["eos", "stop", "length"] = "eos"
    tokens: int = Field(0, ge=0)


class GradeRequest(BaseModel):
    """Answers of one model to one prompt; of an item of the evaluations where `task` and `item` name it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    verifier: str = Field(max_length=200)
    reference: Text = ""
    prompt: list[KeptTurn] = Field([], max_length=256)
    answers: list[WrittenAnswer] = Field(min_length=1, max_length=MOST_ANSWERS)
    task: str = ""
    item: str = ""


class TraceRequest(BaseModel):
    """A text whose spans are looked for in the rows that a column's model was trained on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    column: str
    text: str = Field(max_length=1 << 17)
    prompt: str = Field("", max_length=1 << 17)


def free() -> tuple[str, ...]:
    """The paths that need no key: a browser cannot send it before the page is there to ask for it."""
    return ("/", *(f"/play/{name}" for name in assets.assets()))


def routes(playground: Playground) -> list[BaseRoute]:
    """The routes of the page, to be mounted beside those of the models."""
    from fastapi import APIRouter

    about, found = _Handlers(playground), APIRouter()
    gets: dict[str, Handler] = {"/": about.page, "/play/config": about.config, "/play/items": about.item}
    gets |= {f"/play/{name}": about.asset for name in assets.assets()}
    posts: dict[str, Handler] = {"grade": about.grade, "trace": about.trace, "keep": about.keep, "frozen": about.frozen}
    posts |= {f"servers/{number}/{path}": about.remote for number in range(len(playground.servers)) for path in PATHS}
    for path, handler in gets.items():
        found.add_route(path, handler, methods=["GET"])
    for path, handler in posts.items():
        found.add_route(f"/play/{path}", handler, methods=["POST"])
    return list(found.routes)


class _Handlers:
    """The answers. What takes time is done in threads, so many at once as there are cores."""

    def __init__(self, playground: Playground) -> None:
        self.playground = playground
        self._threads = ThreadPoolExecutor(max(1, machine.cores()), "play")
        self._tracers: dict[str, Tracing] = {}
        self._opening = threading.Lock()

    async def page(self, _request: Request) -> Response:
        """The page."""
        from fastapi.responses import Response

        return Response(
            assets.page(), media_type="text/html", headers={**HEADERS, "Content-Security-Policy": assets.POLICY}
        )

    async def asset(self, request: Request) -> Response:
        """A style or a module of the page."""
        from fastapi.responses import Response

        data, kind = assets.assets()[request.url.path.rpartition("/")[2]]
        return Response(data, headers={**HEADERS, "Content-Type": kind})

    async def config(self, _request: Request) -> Response:
        """What the page must know before it asks anything."""
        return await self._do(self.playground.config)

    async def item(self, request: Request) -> Response:
        """An item of the evaluations, by its number among those of a task and a change, or by its name."""
        given = request.query_params
        models = [name for name in given.get("columns", "").split(",") if name]
        if given.get("item"):
            return await self._do(lambda: self.playground.items.item(given.get("task", ""), given["item"]))
        number, how = given.get("number", "0"), {key: given[key] for key in ("task", "change") if given.get(key)}
        if not number.isascii() or not number.isdecimal() or len(number) > 9:
            return _refused(400, f"number: expected a whole number from 0, got {number!r:.40}")
        return await self._do(lambda: self.playground.items.pick(models, number=int(number), **how))

    async def grade(self, request: Request) -> Response:
        """The verdict on each answer, and the share that is right of those that were graded."""

        def work(asked: GradeRequest) -> dict[str, Any]:
            grades = self.playground.verdicts.grade(*self._to_grade(asked))
            marks = [one["right"] for one in grades if one["right"] is not None]
            return {"grades": grades, "right": sum(marks), "graded": len(marks)}

        return await self._posted(request, GradeRequest, work)

    def _to_grade(self, asked: GradeRequest) -> tuple[Result, TaskCard]:
        """The answers as an evaluation has them: under the card of their item, or under one of their own."""
        samples = [Sample(one.text, one.tokens, one.stop) for one in asked.answers]
        prompt = tuple(Message(turn.role, turn.content) for turn in asked.prompt)
        own = Result(task="play", item="", messages=prompt, reference=asked.reference, samples=samples)
        judge = asked.verifier in [one["name"] for one in self.playground.verdicts.names() if one["judge"]]
        card = TaskCard("play", judge=asked.verifier) if judge else TaskCard("play", verifier=asked.verifier)
        if not asked.item:
            return own, card
        stored = next(iter(self.playground.items.stored(asked.task, asked.item).values()))
        known = self.playground.items.cards[asked.task]
        if asked.verifier not in (known.verifier, known.judge) or asked.reference != stored.reference:
            return own, card
        return Result(**{**vars(stored), "samples": samples}), known

    async def trace(self, request: Request) -> Response:
        """The spans of a text that stand in training rows."""

        def work(asked: TraceRequest) -> dict[str, Any]:
            if asked.column not in self.playground.tracers:
                raise NoItemError(f"{asked.column!r:.80} was trained on no rows of this store")
            with self._opening:
                if asked.column not in self._tracers:
                    self._tracers[asked.column] = self.playground.tracers[asked.column]()
            found: dict[str, Any] = self._tracers[asked.column].trace(asked.text, asked.prompt).to_json()
            return found

        return await self._posted(request, TraceRequest, work)

    async def keep(self, request: Request) -> Response:
        """Append a pair, a mark or a row."""
        if (kept := self.playground.kept) is None:
            return _refused(403, "this page is read-only; nothing is kept")
        return await self._posted(request, None, kept.keep)

    async def frozen(self, request: Request) -> Response:
        """The page of a state, as a file."""
        from fastapi.responses import Response

        try:
            state = read_json((await request.body()).decode())
            if not isinstance(state, dict):
                raise ValueError("expected the state of a page, a JSON object")
            html = assets.frozen(state)
        except ValueError as error:
            return _refused(400, str(error))
        about = {**HEADERS, "Content-Disposition": 'attachment; filename="play.html"'}
        return Response(html.encode("utf-8", "backslashreplace"), media_type="text/html", headers=about)

    async def remote(self, request: Request) -> Response:
        """What a server elsewhere answers."""
        _, _, _, number, path = request.url.path.split("/", 4)
        try:
            body = read_json((await request.body()).decode())
        except ValueError as error:
            return _refused(400, str(error))
        if not isinstance(body, dict):
            return _refused(400, "expected a JSON object")
        return await self.playground.servers[int(number)].answer(path, body)

    async def _posted(self, request: Request, kind: type[BaseModel] | None, work: Callable[[Any], Any]) -> Response:
        """Read a JSON body, checked as `kind`, and answer it with what `work` makes of it."""
        try:
            value = read_json((await request.body()).decode())
            given = value if kind is None else kind.model_validate(value)
        except ValidationError as error:
            return _refused(400, _first(error))
        except ValueError as error:
            return _refused(400, f"the body is not JSON: {error}")
        return await self._do(lambda: work(given))

    async def _do(self, work: Callable[[], Any]) -> Response:
        from fastapi.responses import JSONResponse

        try:
            return JSONResponse(await asyncio.wrap_future(self._threads.submit(work)), headers=HEADERS)
        except ValidationError as error:
            return _refused(400, _first(error))
        except NoItemError as error:
            return _refused(404, str(error))
        except KeptError as error:
            return _refused(413, str(error))
        except ValueError as error:  # a verifier that is unknown, a reference that it cannot read
            return _refused(400, str(error))


def _first(error: ValidationError) -> str:
    one = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, one['loc']))[:100]}: {one['msg'].removeprefix('Value error, ')}".removeprefix(": ")


def _refused(status: int, message: str) -> Response:
    from fastapi.responses import JSONResponse

    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status, headers=HEADERS)
