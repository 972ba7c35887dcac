"""A Hub on this machine: it speaks as much of the real protocol as huggingface_hub asks for, and keeps the files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

from hub_rules import faults

COMMIT = "c0ffee" * 6 + "c0ff"  # the only one of each repository
TOKEN = "hf_a_secret_that_nobody_prints"
PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LARGE = (".safetensors", ".parquet", ".gguf")


class Hub:
    """What it holds; `failing` maps the beginning of a path to how often a request for it is answered by 503.

    `cuts` has after how many bytes the next downloads end, `gated` the data sets whose owner lets only some in.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, dict] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.failing: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.cuts: list[int] = []
        self.gated: set[str] = set()

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict]:
        self.requests.append((method, path))
        for start, left in self.failing.items():
            if path.startswith(start) and left:
                self.failing[start] = left - 1
                return 503, {"error": "busy"}
        if path.startswith("/lfs/"):
            return self.put(path.rpartition("/")[2], body)
        if token != f"Bearer {TOKEN}" and path != "/api/validate-yaml":  # which the library asks without one
            return 401, {"error": "Invalid credentials"}
        given = [json.loads(line) for line in body.splitlines() if line]
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self.action(one) for one in given[0]["objects"]]}
        own = {"/api/whoami-v2": self.whoami, "/api/repos/create": self.create, "/api/validate-yaml": self.validate}
        return own[path](given) if path in own else self.of_repository(path.strip("/").split("/"), given)

    def file(self, method: str, path: str, asked: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        """A file of a data set: with its digest and commit, and from where a broken download is taken up."""
        self.requests.append((method, path))
        name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        token, files = asked["Authorization"], self.files.get(f"datasets/{name}", {})
        if token not in (None, f"Bearer {TOKEN}"):
            return 401, {}, b""
        code = (
            "GatedRepo" if name in self.gated else
            "RepoNotFound" if not self.open_to(token, name) else
            "RevisionNotFound" if revision not in ("main", COMMIT) else
            "EntryNotFound" if file not in files else ""
        )  # fmt: skip
        commit = {"X-Repo-Commit": COMMIT} if code in ("", "EntryNotFound") else {}
        if code:
            return 403 if code == "GatedRepo" else 404, commit | {"X-Error-Code": code}, b""
        body = files[file]
        digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
        start = int((asked["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        return (206 if start else 200), commit | span | {"ETag": f'"{digest}"'}, body[start:]

    def open_to(self, token: str | None, name: str) -> bool:
        return bool(self.files.get(f"datasets/{name}")) and not (
            token is None and self.repositories[f"datasets/{name}"].get("private")
        )

    def whoami(self, _given: list[dict]) -> tuple[int, dict]:
        return 200, {"name": "me", "type": "user"}

    def validate(self, given: list[dict]) -> tuple[int, dict]:
        wrong = faults(given[0]["content"], given[0]["repoType"])
        return (400 if wrong else 200), {"errors": [{"message": one} for one in wrong], "warnings": []}

    def of_repository(self, words: list[str], given: list[dict]) -> tuple[int, dict]:
        name = "/".join(words[2:4])
        if f"{words[1]}/{name}" not in self.repositories:
            return 404, {"error": "Repository not found"}
        if words[4:5] == ["preupload"]:
            return 200, {"files": [self.mode(one) for one in given[0]["files"]]}
        if words[4:5] == ["commit"]:
            return self.commit(words[1], name, given)
        return 200, {"id": name, "sha": "0" * 40, "siblings": []}

    def create(self, given: list[dict]) -> tuple[int, dict]:
        asked = given[0]
        kind = f"{asked.get('type', 'model')}s"
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return 403, {"error": "You don't have the rights to create a repository under this namespace"}
        known = f"{kind}/{name}" in self.repositories
        self.repositories.setdefault(f"{kind}/{name}", asked)
        return (409 if known else 200), {"url": f"{self.url}/{PREFIX[kind]}{name}"}

    def mode(self, file: dict) -> dict:
        return {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
        }

    def action(self, one: dict) -> dict:
        has = one["oid"] in self.objects
        upload = {"upload": {"href": f"{self.url}/lfs/{one['oid']}?X-Signature=secret-of-this-address"}}
        return {"oid": one["oid"], "size": one["size"], **({} if has else {"actions": upload})}

    def put(self, oid: str, body: bytes) -> tuple[int, dict]:
        if hashlib.sha256(body).hexdigest() != oid.partition("?")[0]:
            return 400, {"error": "not what was announced"}
        self.objects[oid.partition("?")[0]] = body
        return 200, {}

    def commit(self, kind: str, name: str, lines: list[dict]) -> tuple[int, dict]:
        files = self.files.setdefault(f"{kind}/{name}", {})
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"{value['path']} was not uploaded"}
                files[value["path"]] = self.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        return 200, {"commitUrl": f"{self.url}/{PREFIX[kind]}{name}/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextmanager
def running():
    """A hub that listens until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            if "/resolve/" in self.path:
                self.file()
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, found = hub.answer(self.command, self.path.partition("?")[0], body, self.headers["Authorization"])
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def file(self) -> None:
            status, headers, body = hub.file(self.command, self.path, self.headers)
            sent = body[: hub.cuts.pop(0)] if self.command == "GET" and hub.cuts else body
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent if self.command == "GET" else b"")
            self.close_connection = len(sent) < len(body)

        do_GET = do_POST = do_PUT = do_HEAD = respond

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def in_the_hubs_place(monkeypatch):
    """A hub that listens until the block ends, and that is asked instead of the real one."""
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub
