"""`tercet play`: a page on which the stages of a run, or any models, answer side by side."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from tercet.cli.listening import address, check_packages, listening
from tercet.cli.models import base_of, model_folder
from tercet.cli.output import say
from tercet.cli.serving import served_name
from tercet.play import columns
from tercet.play.columns import Column
from tercet.play.items import ItemBook, evaluations
from tercet.play.kept import Kept
from tercet.play.routes import Playground
from tercet.play.run import distinct, run_models, run_of
from tercet.play.servers import RemoteServer
from tercet.play.verdicts import Verdicts
from tercet.precision import resolve
from tercet.recipe import URL, RecipeError
from tercet.store import Artifact, Store, StoreError

FOLDER = "play"  # beside the artifacts: what is kept


def play(args: argparse.Namespace) -> int:
    """Serve the page and the models of its columns until Ctrl-C."""
    check_packages("play", "fastapi", "uvicorn")
    from tercet.models.access import Access
    from tercet.models.openai import serve
    from tercet.models.openai.served import ServedModel
    from tercet.play.routes import free, routes

    clients: Access = _clients(args)
    with listening(args.host, args.port) as listener:
        where = address(args.host, listener)
        shown = _Shown(args)
        page = shown.page(f"{where}v1", clients.key)
        dtype = resolve(args.dtype)
        models = [ServedModel.at([name], folder, dtype, rows=args.rows) for name, folder in shown.folders.items()]
        settings = serve.Settings(args.rows, args.models_kept, clients, args.log, free=free())
        listener.listen()
        labels = ", ".join(column.label for column in page.columns)
        say(f"{labels} at {where}{' (with a key)' if clients.key else ''}; Ctrl-C ends it")
        sys.stdout.flush()
        if args.open:
            webbrowser.open(where)
        serve.run(models, settings, listener, routes(page))
    return 0


def _clients(args: argparse.Namespace) -> Any:
    """Who may ask. A key in the environment is that of servers elsewhere where the page asks some, else its own."""
    from tercet.models.access import Access, access, read_key

    if args.public:
        if not (args.read_only and args.allow_host):
            raise RecipeError("--public: whoever reaches the page may ask; it needs --read-only and --allow-host NAME")
        return Access("", tuple(name.strip().lower() for name in args.allow_host))
    elsewhere = any(name.startswith(URL) for name in [*args.models, args.judge])
    key = read_key(args.key_file) if args.key_file else "" if elsewhere else os.environ.get("TERCET_API_KEY", "")
    return access(args.host, args.allow_host, key.strip())


class _Shown:
    """What the command line names: stages of runs, other models, servers; in its order, each once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.store, self.title = args, Store(args.store), ""
        self.artifacts: dict[str, Artifact] = {}
        self.folders: dict[str, Path] = {}
        self.columns: list[Column] = []
        self.servers: list[RemoteServer] = []
        for name in args.models or [args.store]:
            self._add(name)
        self.columns = columns.labelled(self.columns)

    def page(self, own_url: str, key: str) -> Playground:
        """The page; a judge that is one of its columns is asked at its own URL."""
        args, names = self.args, {name: artifact.path.name for name, artifact in self.artifacts.items()}
        return Playground(
            args.title or self.title or "play",
            self.columns,
            ItemBook(evaluations(self.store, names)),
            Verdicts("off" if args.no_programs else "auto", self._judge(own_url, key)),
            None if args.read_only else Kept(self.store.root / FOLDER, names),
            self._tracers(),
            self.servers,
        )

    def _add(self, name: str) -> None:
        if name.startswith(URL):
            self._add_server(name)
        elif (run := run_of(Path(name))) is not None:
            self.store = run[0]
            self.title = self.title or (run[0].root.parent.name if run[0].root.name == "runs" else run[0].root.name)
            for own, artifact in distinct(run_models(*run)).items():
                self._add_artifact(own, artifact)
        else:
            artifact = self._artifact(name)
            own = artifact.name if artifact.kind != "base" else served_name(name)
            self._add_artifact(self._free(own), artifact)

    def _artifact(self, name: str) -> Artifact:
        """An artifact of the store, or one made of another model."""
        with suppress(StoreError):
            return self.store.open(name)
        return Artifact.read(model_folder(self._named(name)).parent)

    def _named(self, name: str) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(self.args), "model": name})

    def _add_artifact(self, name: str, artifact: Artifact) -> None:
        self.artifacts[name], self.folders[name] = artifact, artifact.payload
        self.columns.append(columns.local(name, artifact.payload, artifact.kind, artifact.path.name))

    def _add_server(self, name: str) -> None:
        from tercet.models.openai.endpoint import key_of

        base_of(self._named(name), self.store, name)  # says what is wrong with the URL
        url, _, model = name.partition("#")
        column = columns.server(self._free(model.rpartition("/")[2]), url, model, len(self.servers))
        self.servers.append(RemoteServer(column, key_of(url)))
        self.columns.append(column)

    def _free(self, name: str) -> str:
        """The name, or with a number behind it where a column has it."""
        taken = {column.name for column in self.columns}
        return next(one for one in (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))) if one not in taken)

    def _judge(self, own_url: str, key: str) -> Callable[[], Any] | None:
        from tercet.models.openai.endpoint import EndpointGenerator
        from tercet.models.openai.pacing import Limits

        judge = self.args.judge
        if judge in self.folders:
            return cache(lambda: EndpointGenerator(own_url, judge, key, Limits(), None))
        if judge and not judge.startswith(URL):
            raise RecipeError(f"--judge {judge}: expected http://HOST/v1#NAME or one of {', '.join(self.folders)}")
        url, _, model = judge.partition("#")
        return cache(lambda: EndpointGenerator.open(url, model)) if judge else None

    def _tracers(self) -> dict[str, Callable[[], Any]]:
        """How the rows of each model are searched; a base model's words are looked for in those of the last stage."""
        from tercet.trace import Tracer

        trained = [one for one in self.artifacts.values() if one.kind != "base"]
        return {
            name: partial(Tracer.open, self.store, one if one.kind != "base" else trained[-1])
            for name, one in self.artifacts.items()
            if trained
        }
