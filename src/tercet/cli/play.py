"""`tercet play`: a page on which the stages of a run, or any models, answer side by side."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tercet.cli.listening import address, check_packages, listening
from tercet.cli.models import base_of
from tercet.cli.output import say
from tercet.cli.run_models import NamedModel, distinct, named, of_stage, run_of
from tercet.play import columns
from tercet.play.columns import Column
from tercet.play.items import ItemBook, evaluations
from tercet.play.kept import Kept
from tercet.play.routes import Playground
from tercet.play.servers import RemoteServer
from tercet.play.verdicts import Verdicts
from tercet.precision import resolve
from tercet.recipe import URL, RecipeError
from tercet.store import Store

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
    """What the command line names: models of runs, other models, servers; in its order, each once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.store, self.title = args, Store(args.store), ""
        self.servers: list[RemoteServer] = []
        found: dict[str, NamedModel | str] = {}
        for word in args.models or [args.store]:
            found |= self._named(word)
        if args.name and len(args.name) != len(found):
            raise RecipeError(f"--name: expected a name for each of {len(found)} columns, got {len(args.name)}")
        names = distinct(
            [(name, name) for name in args.name]
            or [_server_name(one) if isinstance(one, str) else one[1:] for one in found.values()]
        )
        both = list(zip(names, found.values(), strict=True))
        self.artifacts = {name: one.artifact for name, one in both if isinstance(one, NamedModel)}
        self.folders = {name: artifact.payload for name, artifact in self.artifacts.items()}
        self.columns = columns.labelled([self._column(*one) for one in both])

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

    def _named(self, word: str) -> dict[str, NamedModel | str]:
        """What one word names, by the place that it stands at."""
        if word.startswith(URL):
            base_of(argparse.Namespace(**{**vars(self.args), "model": word}), self.store, word)  # says what is wrong
            return {word: word}
        if (run := run_of(self.args, word)) is None:
            model = named(self.args, self.store, word)
            return {str(model.artifact.path): model}
        self.store, self.title = run.store, self.title or run.title
        return {str(artifact.path): of_stage(artifact) for artifact in run.models}

    def _column(self, name: str, one: NamedModel | str) -> Column:
        if isinstance(one, NamedModel):
            folder = one.artifact.path.name
            kind = one.artifact.kind if one.whole == folder else ""  # of other models nobody knows
            return columns.local(name, one.artifact.payload, kind, folder)
        from tercet.models.openai.endpoint import key_of

        url, _, model = one.partition("#")
        column = columns.server(name, url, model, len(self.servers))
        self.servers.append(RemoteServer(column, key_of(url)))
        return column

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


def _server_name(url: str) -> tuple[str, str]:
    """The name of a server's model, as `distinct` takes it."""
    name = url.partition("#")[2].rpartition("/")[2]
    return name, name
