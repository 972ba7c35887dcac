"""The server of `tercet watch`: one page, and what it asks for every few seconds. It only answers, and only reads.

    GET /                     the page               GET /store             every stage, and the machine's load
    GET /stage/FOLDER         one stage              GET /page/FOLDER       the page of a report
    GET /rollouts/FOLDER      a page of rollouts     GET /data/FOLDER       the page of a data stage

All clients share one reading of the store, made at most once a second and only when somebody asks, and they are told
to ask less often the more they are: a hundred of them cost a run no more than ten. Who may ask is `models/access.py`'s
to say. Where a key is needed, `/?key=KEY` once gives a browser a cookie with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote

from tercet.folders import FolderError
from tercet.models.access import HEAD_BYTES, Access, internal_error
from tercet.recipe import RLSpec, kinds_of
from tercet.report import charts, data_page, monitors, rollouts, unfinished
from tercet.report.collect import Stage
from tercet.report.data import summary
from tercet.report.render import render
from tercet.rows import RowError
from tercet.store import Artifact, Store
from tercet.watch.load import MachineLoad
from tercet.watch.snapshot import StoreView, live_alerts, log_tail, recent

if TYPE_CHECKING:
    from uvicorn import Server

HERE = Path(__file__).parent
EVERY = 2.0  # seconds between two questions of a page, where few ask
CLIENTS = 10  # so many ask at that pace; more share what they may
MOST_LISTED = 500  # stages on the page, those that run and the newest
KEPT = 1.0  # seconds for which one reading of the store answers everybody
PAGE_SECONDS = 20.0  # for which a page of rollouts, which is costly, answers everybody
COOKIE = "tercet-watch"
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class SiteAnswer(NamedTuple):
    """Status, type and content of an answer, and more headers."""

    status: int
    kind: str
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012  never changed


class WatchSite:
    """The web application (ASGI)."""

    def __init__(self, store: Store, access: Access) -> None:
        self.store, self.access = store, access
        self.view, self.load = StoreView(store), MachineLoad(store.root)
        self._kept: dict[str, tuple[float, SiteAnswer]] = {}  # path -> until when it is good
        self._reading = asyncio.Lock()
        self._asked: deque[float] = deque(maxlen=1000)  # when somebody asked for the store
        page = {"store": store.root.name}
        html = render("watch.html.j2", page, "page", "watch", folder=HERE, allow="; connect-src 'self'")
        self._page = SiteAnswer(200, "text/html; charset=utf-8", html.encode())

    async def __call__(self, scope: Message, _receive: object, send: Send) -> None:
        """SiteAnswer one request; its body, if it has one, is not read."""
        try:
            answer = self._refusal(scope) or await self._answer(scope)
        except Exception as error:
            answer = _failed(500, internal_error(error))
        tag = f'"{hashlib.sha256(answer.body).hexdigest()[:20]}"'
        given = dict(scope["headers"]).get(b"if-none-match", b"").decode("latin-1")
        if answer.status == 200 and given == tag:
            answer = answer._replace(status=304, body=b"")
        length = {} if answer.status == 304 else {"content-length": str(len(answer.body))}
        headers = HEADERS | {"content-type": answer.kind, "etag": tag} | length | answer.headers
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def _refusal(self, scope: Message) -> SiteAnswer | None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > HEAD_BYTES:
            return _failed(414, "the address is too long")
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        if key := asked or _cookie(headers):
            headers.append(("authorization", f"Bearer {key}"))
        reached = str((scope.get("server") or ("",))[0])
        if wrong := self.access.refusal(headers, reached):
            why = "a key is needed: open /?key=KEY once" if wrong[0] == 401 else wrong[1]
            return _failed(wrong[0], why)
        if scope["method"] not in ("GET", "HEAD"):
            return _failed(405, "this server is for reading: GET alone")
        if asked:  # the key moves from the address into a cookie that no script can read
            keep = f"{COOKIE}={asked}; HttpOnly; SameSite=Strict; Path=/"
            return SiteAnswer(303, "text/plain", b"", {"location": "/", "set-cookie": keep})
        return None

    async def _answer(self, scope: Message) -> SiteAnswer:
        what, _, rest = unquote(scope["path"]).lstrip("/").partition("/")
        if not what:
            return self._page
        if what == "store" and not rest:
            self._asked.append(time.monotonic())
            return await self._shared("store", self._store, KEPT)
        make = {"stage": self._stage, "rollouts": self._rollouts, "data": self._data, "page": self._report}.get(what)
        if make is None or not rest:
            return _failed(404, f"no {scope['path'][:200]} here")

        def made() -> SiteAnswer:
            found = self.view.stage(rest)
            return make(*found) if found else _failed(404, f"no stage {rest[:200]} in this store")

        return await self._shared(f"{what}/{rest}", made, KEPT if what == "stage" else PAGE_SECONDS)

    async def _shared(self, name: str, make: Callable[[], SiteAnswer], seconds: float) -> SiteAnswer:
        """What was made for somebody else a moment ago, or made now, one at a time."""
        async with self._reading:
            now = time.monotonic()
            self._kept = {key: one for key, one in self._kept.items() if one[0] > now}
            if name not in self._kept:
                try:
                    answer = await asyncio.to_thread(make)
                except (RowError, FolderError, OSError) as error:
                    answer = _failed(404, str(error))
                self._kept[name] = time.monotonic() + seconds, answer
            return self._kept[name][1]

    def every(self) -> float:
        """Seconds that a page should wait: so that at most CLIENTS / EVERY questions come in a second."""
        now = time.monotonic()
        lately = sum(now - at < 10 for at in self._asked) / 10  # questions in a second
        return EVERY * max(1.0, math.ceil(lately * EVERY / CLIENTS))

    def _store(self) -> SiteAnswer:
        stages = self.view.stages()
        more = {"more": len(stages) - len(stages[:MOST_LISTED]), "machine": self.load.read()}
        head = {"store": str(self.store.root), "every": self.every()}
        return _json(head | {"stages": stages[:MOST_LISTED]} | more)

    def _stage(self, about: dict[str, Any], stage: Stage) -> SiteAnswer:
        drawn = [
            {
                "title": curve.title,
                "main": curve.main,
                "last": curve.points[-1][1],
                "step": curve.points[-1][0],
                "svg": charts.curve(curve.points, label=curve.title, tone=1, bound=monitors.bound(stage, curve)),
            }
            for curve in self.view.curves(stage)
        ]
        pages = {
            "report": about["page"],
            "rollouts": stage.kind in kinds_of(RLSpec),
            "data": bool(stage.file("summary.json")) and bool(summary(stage.kind, stage.path / "payload")),
        }
        alerts = monitors.summary(stage) or {"raised": live_alerts(stage.path) if pages["rollouts"] else []}
        more = {"log": log_tail(stage.path), "recent": recent(self.view, stage), "alerts": alerts}
        return _json({"stage": about, "inputs": stage.inputs, "curves": drawn, "pages": pages, **more})

    def _rollouts(self, about: dict[str, Any], stage: Stage) -> SiteAnswer:
        with tempfile.TemporaryDirectory() as scratch:
            draft = unfinished.is_draft(stage.path)
            made = unfinished.unfinished(stage.path, Path(scratch, "made")) if draft else stage
            rollouts.write([made], Path(scratch, "page.html"), title=about["name"], most=200)
            return _html(Path(scratch, "page.html"))

    def _data(self, _about: dict[str, Any], stage: Stage) -> SiteAnswer:
        with tempfile.TemporaryDirectory() as scratch:
            data_page.write_page(Artifact.read(stage.path), Path(scratch, "page.html"))
            return _html(Path(scratch, "page.html"))

    def _report(self, _about: dict[str, Any], stage: Stage) -> SiteAnswer:
        return _html(stage.path / "payload" / "index.html")


def web_server(site: WatchSite) -> Server:
    """What runs the site, with limits on connections."""
    from tercet.models.openai.connections import limited_server

    return limited_server(site)


def _cookie(headers: list[tuple[str, str]]) -> str:
    """The key in a browser's cookie."""
    for name, value in headers:
        if name.lower() == "cookie":
            try:
                found = SimpleCookie(value).get(COOKIE)
            except CookieError:
                return ""
            return found.value if found else ""
    return ""


def _json(value: Any) -> SiteAnswer:
    return SiteAnswer(200, "application/json", json.dumps(_finite(value), separators=(",", ":"), default=str).encode())


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _html(file: Path) -> SiteAnswer:
    return SiteAnswer(200, "text/html; charset=utf-8", file.read_bytes())


def _failed(status: int, why: str) -> SiteAnswer:
    return SiteAnswer(status, "application/json", json.dumps({"error": why}).encode())
