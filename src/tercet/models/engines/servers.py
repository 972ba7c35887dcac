"""The pool of the servers that `[placement.engine].urls` names."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tercet.models.chat import open_chat
from tercet.models.engines.pool import EnginePool
from tercet.models.engines.served import ServedEngine
from tercet.recipe.placement import EnginePlacement

PATIENCE = 600.0  # seconds that a server which went away has to come back


def served(folder: Path, dtype: str, engine: EnginePlacement, kind: str, *, sent: bool = False) -> EnginePool:
    """Servers of `kind` with the model of a folder; `sent`: a trainer will send it, so that none need load it.

    The folder of the model that a server was started with is compared by its path; where it is another, the server
    loads this one, which it must see under the same path.
    """
    chat, made = open_chat(folder), kind_of(kind)

    def start(url: str, patience: float = PATIENCE) -> ServedEngine:
        found = made.open(url, chat, dtype, key_file=engine.key_file, patience=patience)
        try:
            if not sent and Path(found.root).resolve() != folder.resolve():
                found.load(folder)
        except BaseException:
            found.close()
            raise
        return found

    with ThreadPoolExecutor(len(engine.urls)) as threads:
        waiting = [threads.submit(start, url, 0.0) for url in engine.urls]
    failed = next((error for one in waiting if (error := one.exception()) is not None), None)
    if failed is not None:
        for one in waiting:
            with suppress(Exception):
                one.result().close()
        raise failed
    replicas = [one.result() for one in waiting]
    return EnginePool(replicas, chat, at_once=engine.max_num_seqs, ranks=engine.tensor_parallel_size, again=start)


def kind_of(kind: str) -> type[ServedEngine]:
    """The replicas of a kind of server."""
    if kind == "sglang":
        from tercet.models.sglang.served import SglangServer

        return SglangServer
    from tercet.models.vllm.served import VllmServer

    return VllmServer
