"""A small run, and the page's routes over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from stored_run import write_run

from tercet.play.columns import labelled, local
from tercet.play.items import ItemBook, evaluations
from tercet.play.kept import Kept
from tercet.play.routes import Playground, routes
from tercet.play.verdicts import Verdicts
from tercet.store import Store

Asked = Callable[..., Any]


@pytest.fixture(scope="session")
def run_store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Store:
    """The store of a small run. Read-only."""
    return write_run(tmp_path_factory.mktemp("played") / "runs", tiny_folder)


@pytest.fixture
def book(run_store: Store) -> ItemBook:
    return ItemBook(evaluations(run_store, folders(run_store)))


@pytest.fixture
def playground(run_store: Store, book: ItemBook, tmp_path: Path) -> Playground:
    columns = [local(name, run_store.open(name).payload, name, folder) for name, folder in folders(run_store).items()]
    kept = Kept(tmp_path / "play", folders(run_store))
    return Playground("a run", labelled(columns), book, Verdicts(), kept)


def folders(store: Store) -> dict[str, str]:
    """The folders of the models by their names."""
    return {artifact.name: artifact.path.name for artifact in store if artifact.kind in ("base", "sft")}


@pytest.fixture
def asked(playground: Playground) -> Asked:
    """Asks the page's routes: `asked("/play/config")`, with a body as a POST; `page` changes what is shown."""

    async def ask(path: str, body: Any = None, **page: Any) -> httpx2.Response:
        from fastapi import FastAPI

        web = FastAPI()
        web.router.routes.extend(routes(replace(playground, **page)))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(web), base_url="http://localhost") as client:
            return await (client.get(path) if body is None else client.post(path, json=body))

    def run(path: str, body: Any = None, **page: Any) -> httpx2.Response:
        import asyncio

        return asyncio.run(ask(path, body, **page))

    return run
