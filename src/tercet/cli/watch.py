"""The verb `watch`: the stages of a store as a page that keeps itself up to date, or once as a table."""

from __future__ import annotations

import argparse
import os
import sys
import webbrowser
from contextlib import suppress
from typing import Any

from tercet.cli.listening import address, check_packages, listening, own_key
from tercet.cli.output import emit, say, table
from tercet.recipe import RecipeError
from tercet.report.labels import number
from tercet.report.render import duration
from tercet.store import Store
from tercet.watch.load import MachineLoad
from tercet.watch.snapshot import StoreView


def watch(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; with --once or --json print what stands there now."""
    store = Store(args.folder)
    if not store.root.is_dir():
        raise RecipeError(f"{args.folder}: no such folder; expected a store of artifacts, e.g. runs")
    if args.once or args.json:
        return _once(store, as_json=args.json)
    check_packages("watch", "h11", "uvicorn", more="; or take --once")
    from tercet.models.access import access
    from tercet.watch.server import WatchSite, web_server

    key = own_key(args)
    clients = access(args.host, args.allow_host, key)
    with listening(args.host, args.port) as listener:
        listener.listen()
        where = address(args.host, listener)
        say(f"watching {store.root} at {where}{'?key=KEY (once, with your key)' if key else ''}; Ctrl-C ends it")
        sys.stdout.flush()
        if args.open:
            webbrowser.open(where)
        os.nice(10)  # a run on this machine goes first
        with suppress(KeyboardInterrupt):  # which the web server raises again when it has ended
            web_server(WatchSite(store, clients)).run(sockets=[listener])
    return 0


def _once(store: Store, *, as_json: bool) -> int:
    stages = StoreView(store).stages()
    if as_json:
        return emit({"store": str(store.root), "stages": stages, "machine": MachineLoad(store.root).read()})
    table(("stage", "kind", "state", "done", "left", "time", "figures"), map(_row, stages))
    running = sum(one["state"] == "running" for one in stages)
    say(f"{len(stages)} stages in {store.root}, {running} running")
    return 0


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    figures = "  ".join(f"{name} {'nan' if value is None else number(value)}" for name, value in one["figures"].items())
    early = one["note"] if one["state"] not in ("running", "done") else ""
    return (
        one["name"],
        one["kind"],
        one["state"],
        f"{one['done']}/{one['of']}" if one["of"] else "",
        "" if one["left"] is None else duration(one["left"]),
        "" if one["seconds"] is None else duration(one["seconds"]),
        early or figures,
    )
