"""The engine of a stage, as `[placement.engine]` says: in this process, or a pool of replicas apart."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tercet.models.chat import ChatGenerator, open_chat
from tercet.models.engines.pool import EnginePool
from tercet.models.engines.replica import Replica
from tercet.recipe.placement import EnginePlacement

APART = 0.9  # share of a card for an engine that has it for itself


def opened(folder: Path, dtype: str, engine: EnginePlacement, taken: int = 0) -> ChatGenerator:
    """vLLM with the model of a folder; `taken` are the cards of this machine that train.

    A pool is closed when the process ends, at the latest.
    """
    if engine.placement == "colocated":
        from tercet.models.vllm.generator import VllmGenerator

        return VllmGenerator.open(folder, dtype, **settings_of(engine))
    from tercet.models.vllm import ray_replicas

    ranks = engine.tensor_parallel_size
    ray_replicas.reach(dtype, engine.ray_address, taken, engine.replicas * ranks)
    options = {"gpu_memory_utilization": APART, **settings_of(engine)}
    kind = ray_replicas.Replicas(folder, dtype, ranks, options, open_chat(folder))
    names = [f"replica {number}" for number in range(engine.replicas)]
    with ThreadPoolExecutor(len(names)) as threads:  # each takes minutes
        waiting = [threads.submit(kind.start, name) for name in names]
    made = _all(waiting)
    pool = EnginePool(made, kind.chat, at_once=engine.max_num_seqs, ranks=ranks, again=kind.start)
    atexit.register(pool.close)
    return pool


def settings_of(engine: EnginePlacement) -> dict[str, Any]:
    """What a placement says of vLLM's own settings."""
    named = ("gpu_memory_utilization", "max_model_len", "max_num_seqs")
    return {name: value for name in named if (value := getattr(engine, name)) is not None} | dict(engine.options)


def _all(waiting: Sequence[Any]) -> list[Replica]:
    """All replicas, or the error of the first that could not start, with the others ended."""
    failed = next((error for one in waiting if (error := one.exception()) is not None), None)
    if failed is None:
        return [one.result() for one in waiting]
    for one in waiting:
        with suppress(Exception):
            one.result().close()
    raise failed
