"""The engine of a stage, as `[placement.engine]` says: in this process, or a pool of replicas apart."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tercet.models.chat import Chat, ChatGenerator, open_chat
from tercet.models.engines.pool import EnginePool
from tercet.models.engines.replica import EngineError, Replica
from tercet.models.engines.served import ServedEngine
from tercet.models.vllm.sender import backend_of
from tercet.recipe.placement import EnginePlacement

PATIENCE = 900.0  # seconds for a server that died to be started again by whoever runs it
Start = Callable[[str], Replica]


def opened(
    folder: Path, dtype: str, engine: EnginePlacement, kind: str = "vllm", *, taken: int | None = None
) -> ChatGenerator:
    """An engine of a kind with the model of a folder.

    `taken` are the cards of this machine that train; None says that nothing does, so that servers which run already
    must read the folder now. A pool is closed when the process ends, at the latest.
    """
    if engine.placement == "colocated":
        if kind != "vllm":
            raise EngineError(f'engine = "{kind}" runs as servers: name them in engine.urls, with placement = "apart"')
        from tercet.models.vllm.generator import VllmGenerator

        own = {"tensor_parallel_size": engine.tensor_parallel_size}  # one beside a trainer: `Recipe.order` says so
        return VllmGenerator.open(folder, dtype, **(own | settings_of(engine, taken is not None)))
    chat = open_chat(folder)
    names: Sequence[str] = engine.urls or [f"replica {number}" for number in range(engine.replicas)]
    start, again = _starts(folder, dtype, engine, kind, chat, taken)
    pool = EnginePool(
        _all(start, names), chat, at_once=engine.max_num_seqs, ranks=engine.tensor_parallel_size, again=again
    )
    atexit.register(pool.close)
    return pool


def settings_of(engine: EnginePlacement, beside: bool = False) -> dict[str, Any]:
    """What a placement says of vLLM's own settings; `beside` a trainer on the same card."""
    named = ("max_model_len", "max_num_seqs")
    given = {name: value for name in named if (value := getattr(engine, name)) is not None}
    own: dict[str, Any] = {"gpu_memory_utilization": engine.share(beside=beside)}
    own["weight_transfer_config"] = {"backend": backend_of(engine)}
    return own | given | dict(engine.options)


def _starts(
    folder: Path, dtype: str, engine: EnginePlacement, kind: str, chat: Chat, taken: int | None
) -> tuple[Start, Start]:
    """What starts a replica, and another in its place; all that can be known before is checked here."""
    if engine.urls:
        servers = _Servers(dtype, kind, engine.key_file, chat, folder if taken is None else None)
        return servers.start, servers.again
    if kind != "vllm":
        raise EngineError(f'engine = "{kind}" runs as servers, which Ray does not start here: name them in engine.urls')
    from tercet.models.vllm import ray_replicas

    ranks = engine.tensor_parallel_size
    ray_replicas.reach(dtype, engine.ray_address, taken or 0, engine.replicas * ranks)
    options = settings_of(engine)
    placed = ray_replicas.Replicas(folder, dtype, ranks, options, chat)
    return placed.start, placed.start


class _Servers(NamedTuple):
    """Servers that run already, one per URL."""

    dtype: str
    kind: str
    key_file: str
    chat: Chat
    folder: Path | None  # whose weights they must read

    def start(self, url: str, patience: float = 0.0) -> Replica:
        """One of them; `patience` are seconds for one that somebody starts again."""
        found = self._class().open(url, self.chat, self.dtype, key_file=self.key_file, patience=patience)
        if self.folder is not None:
            found.load(self.folder)
        return found

    def again(self, url: str) -> Replica:
        """One that died, once it runs again."""
        return self.start(url, PATIENCE)

    def _class(self) -> type[ServedEngine]:
        if self.kind == "sglang":
            from tercet.models.sglang.served import SglangServer

            return SglangServer
        from tercet.models.vllm.served import VllmServer

        return VllmServer


def _all(start: Start, names: Sequence[str]) -> list[Replica]:
    """All replicas at once, as each may take minutes; or the error of the first that failed, with the others ended."""
    with ThreadPoolExecutor(len(names)) as threads:
        waiting: list[Future[Replica]] = [threads.submit(start, name) for name in names]
    failed = next((error for one in waiting if (error := one.exception()) is not None), None)
    if failed is None:
        return [one.result() for one in waiting]
    for one in waiting:
        if one.exception() is None:
            one.result().close()
    raise failed
