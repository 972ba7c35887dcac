from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from fake_run import SCRIPT, FakeRun

from tercet.cli.main import main
from tercet.models.access import Access
from tercet.store import Store
from tercet.watch import server
from tercet.watch.server import WatchSite, web_server

LOCAL = {"host": "127.0.0.1:8002"}


def ask(site: WatchSite, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request as the web server would hand it over."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(dict(message))

    address, _, query = path.partition("?")
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in (LOCAL | headers).items()]
    scope = {"type": "http", "method": method, "path": address, "raw_path": address.encode(), "headers": pairs}
    asyncio.run(site(scope | {"query_string": query.encode(), "server": ("127.0.0.1", 8002)}, None, send))
    start, body = sent
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body["body"]


@pytest.fixture
def site(made: FakeRun) -> WatchSite:
    return WatchSite(Store(made.store), Access())


def test_the_page_has_a_strict_policy_and_loads_nothing(site: WatchSite) -> None:
    status, headers, body = ask(site, "/")
    html = body.decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert status == 200
    assert policy is not None
    assert policy[1].startswith(
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-"
    )
    assert policy[1].endswith("; connect-src 'self'")
    assert "unsafe" not in policy[1]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", html)
    assert (headers["x-frame-options"], headers["cache-control"]) == ("DENY", "no-store")
    assert len(body) < 60_000


def test_every_stage_of_the_store_is_told_with_the_machines_load(site: WatchSite, made: FakeRun) -> None:
    found = json.loads(ask(site, "/store")[2])
    assert {one["name"] for one in found["stages"]} == set(made.recipe.order()) - {"page"}
    assert found["machine"]["cores"] >= 1
    assert found["every"] == 2.0


def test_a_store_of_very_many_stages_is_told_in_part(site: WatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_LISTED", 3)
    found = json.loads(ask(site, "/store")[2])
    assert (len(found["stages"]), found["more"]) == (3, len(site.view.stages()) - 3)


def test_a_stage_is_told_with_curves_alerts_answers_and_pages(site: WatchSite, made: FakeRun) -> None:
    found = json.loads(ask(site, f"/stage/{made.folder('ppo').name}")[2])
    lines = [json.loads(line) for line in (made.folder("ppo") / "metrics.jsonl").read_text().splitlines()]
    (reward,) = [curve for curve in found["curves"] if curve["title"] == "Reward"]
    assert (reward["last"], reward["step"]) == (lines[-1]["reward"], lines[-1]["step"])
    assert reward["svg"].startswith("<svg ")
    assert [one["name"] for one in found["alerts"]["raised"]] == ["hollow", "entropy"]
    assert found["pages"] == {"report": False, "rollouts": True, "data": False}
    told = json.loads(ask(site, f"/stage/{made.folder('sft-data').name}")[2])
    assert told["pages"]["data"]
    assert len(json.loads(ask(site, f"/stage/{made.folder('eval-sft').name}")[2])["recent"]) == 6


def test_pages_of_rollouts_and_data_are_made_when_asked_for(site: WatchSite, made: FakeRun) -> None:
    for path, title in (
        (f"/rollouts/{made.folder('ppo').name}", "Rollouts of ppo"),
        (f"/data/{made.folder('sft-data').name}", "Data of sft-data"),
    ):
        status, headers, body = ask(site, path)
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert f"<title>{title}</title>" in body.decode()
        assert SCRIPT not in body.decode()


@pytest.mark.parametrize(
    "path", ["/nothing", "/stage/", "/stage/..", "/stage/..%2f..", "/stage/.locks", "/page/sft-0", "/store/x"]
)
def test_what_is_not_there_is_404(site: WatchSite, path: str) -> None:
    status, _, body = ask(site, path)
    assert status == 404
    assert json.loads(body)["error"]


def test_a_stage_without_rollouts_says_so(site: WatchSite, made: FakeRun) -> None:
    status, _, body = ask(site, f"/rollouts/{made.folder('sft').name}")
    assert status == 404
    assert "no tercet/rollouts.parquet" in json.loads(body)["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_reading_is_allowed(site: WatchSite, method: str) -> None:
    assert ask(site, "/store", method)[0] == 405
    status, headers, body = ask(site, "/store", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 100


def test_what_has_not_changed_is_not_sent_again(site: WatchSite, made: FakeRun) -> None:
    path = f"/stage/{made.folder('sft').name}"
    _, headers, _ = ask(site, path)
    assert ask(site, path, if_none_match=headers["etag"])[::2] == (304, b"")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8002"}, 200),
        ({"x": "y" * 20_000}, 431),
    ],
)
def test_other_pages_and_other_names_are_refused(site: WatchSite, headers: dict[str, str], status: int) -> None:
    assert ask(site, "/store", **headers)[0] == status


def test_a_key_is_asked_for_and_moves_into_a_cookie(made: FakeRun) -> None:
    site = WatchSite(Store(made.store), Access("secret"))
    assert ask(site, "/")[0] == ask(site, "/store")[0] == ask(site, "/?key=wrong")[0] == 401
    assert ask(site, "/store", cookie="tercet-watch=wrong")[0] == 401
    assert ask(site, "/store", authorization="Bearer secret")[0] == 200
    status, headers, _ = ask(site, "/?key=secret")
    assert (status, headers["location"]) == (303, "/")
    assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
    assert ask(site, "/store", cookie=headers["set-cookie"].split(";")[0])[0] == 200


def test_the_more_ask_the_less_often_each_is_told_to(site: WatchSite) -> None:
    assert site.every() == 2.0
    site._asked.extend([time.monotonic()] * 500)  # of a hundred pages in ten seconds
    assert site.every() == 20.0


def test_a_fault_of_ours_is_a_number_in_the_log(site: WatchSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.load, "read", lambda: 1 / 0)
    status, _, body = ask(site, "/store")
    assert status == 500
    assert re.fullmatch(r"ZeroDivisionError; the server's log says more under error \w+", json.loads(body)["error"])


@contextmanager
def served(site: WatchSite) -> Iterator[int]:
    """The site behind its web server, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = web_server(site)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join()


def test_a_hundred_clients_at_once_get_answers_of_one_reading_a_second(site: WatchSite, monkeypatch) -> None:
    readings: list[float] = []
    read = site.view.stages
    monkeypatch.setattr(site.view, "stages", lambda: readings.append(time.monotonic()) or read())

    def client(port: int) -> list[int]:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        found = []
        for _ in range(3):
            connection.request("GET", "/store")
            answer = connection.getresponse()
            found.append(len(json.loads(answer.read())["stages"]))
        connection.close()
        return found

    began = time.monotonic()
    with served(site) as port, ThreadPoolExecutor(100) as pool:
        counts = list(pool.map(client, [port] * 100))
    assert len({count for found in counts for count in found}) == 1
    assert len(readings) <= 1 + (time.monotonic() - began) / server.KEPT


RECIPE = """
name = "watched"
[base]
model = "tiny:"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 24
[stage.sft]
kind = "sft"
model = "base"
rows = "words"
batch = 4
num_epochs = 2
learning_rate = 1e-3
max_length = 512
"""


@pytest.mark.slow
def test_a_run_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    store = tmp_path / "runs"
    store.mkdir()
    call = [sys.executable, "-m", "tercet", "run", "recipe.toml", "--store", str(store)]
    seen: dict[str, list[str]] = {}
    live = 0
    with served(WatchSite(Store(store), Access())) as port:
        run = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.DEVNULL)
        ended = False
        while not ended:
            ended = run.poll() is not None
            for one in get(port, "/store")["stages"]:
                states = seen.setdefault(one["name"], [])
                states += [one["state"]] * (states[-1:] != [one["state"]])
                with suppress(KeyError):  # it was committed in this moment
                    curves = get(port, f"/stage/{one['folder']}")["curves"]
                    live += one["name"] == "sft" and one["state"] == "running" and bool(curves)
            time.sleep(0.3 if not ended else server.KEPT)
        found = {one["name"]: one for one in get(port, "/store")["stages"]}
        curves = {curve["title"]: curve for curve in get(port, f"/stage/{found['sft']['folder']}")["curves"]}
    assert run.returncode == 0
    assert {name: states[-1] for name, states in seen.items()} == {"base": "done", "words": "done", "sft": "done"}
    assert seen["sft"] == ["running", "done"]
    assert live > 0  # curves were there before the stage ended
    lines = [json.loads(line) for line in (store / found["sft"]["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert (curves["Loss"]["last"], curves["Loss"]["step"]) == (lines[-1]["loss"], lines[-1]["step"])


def get(port: int, path: str) -> dict[str, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def listing(store: Path) -> dict[str, tuple[int, int, int]]:
    return {str(p): ((about := p.lstat()).st_mtime_ns, about.st_size, about.st_mode) for p in store.rglob("*")}


def test_nothing_is_written_into_the_store(site: WatchSite, made: FakeRun) -> None:
    before = listing(made.store)
    for path in ("/store", *(f"/stage/{made.folder(name).name}" for name in ("ppo", "sft-data", "eval-sft"))):
        assert ask(site, path)[0] == 200
    assert ask(site, f"/rollouts/{made.folder('ppo').name}")[0] == 200
    assert ask(site, f"/data/{made.folder('sft-data').name}")[0] == 200
    assert main(["watch", str(made.store), "--once"]) == 0
    assert listing(made.store) == before


def test_the_terminal_shows_a_table_or_json(made: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(made.store), "--once"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"ppo +ppo +done +5 min 13 s", table)
    assert "0 running" in table
    assert main(["watch", str(made.store), "--json"]) == 0
    assert {one["name"] for one in json.loads(capsys.readouterr().out)["stages"]} >= {"sft", "ppo"}


def test_a_store_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "nowhere"), "--once"]) == 2
    assert "nowhere: no such folder; expected a store of artifacts" in capsys.readouterr().err


def test_others_may_only_watch_with_a_key(made: FakeRun, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERCET_API_KEY", raising=False)
    assert main(["watch", str(made.store), "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "set a key in TERCET_API_KEY or --key-file FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(made: FakeRun) -> None:
    call = [sys.executable, "-m", "tercet", "watch", str(made.store), "--port", "0"]
    env = os.environ | {"TERCET_API_KEY": ""}
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        port = re.search(r"http://127\.0\.0\.1:(\d+)/", child.stdout.readline())
        assert port is not None
        assert len(get(int(port[1]), "/store")["stages"]) > 10
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 0
