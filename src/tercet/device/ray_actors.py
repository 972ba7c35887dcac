"""Processes of Ray with cards of their own, for engines beside a trainer; they end with the process that asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import torch

FREE_WITHIN = 300.0  # seconds for cards to be free
CARDS = "CUDA_VISIBLE_DEVICES"


class ActorError(RuntimeError):
    """Ray is missing, or has no room; the message says what to do."""


class ActorLostError(ActorError):
    """The process of an actor is gone."""


def connect(address: str, taken: int, wanted: int) -> None:
    """Connect to a cluster: that of `address` or RAY_ADDRESS, or one of this machine's own, started for this process.

    Of this machine's cards, the first `taken` are the trainer's, and `wanted` others are needed.
    """
    try:
        import ray
    except ImportError as error:
        raise ActorError(
            "engines apart are placed by Ray, which is not installed: pip install 'tercet[ray]' on every machine; or "
            'set engine.placement = "colocated" for one engine in the stage\'s own process; or start `vllm serve` '
            "yourself and name it in engine.urls"
        ) from error
    if ray.is_initialized():
        return
    if address := address or os.environ.get("RAY_ADDRESS", ""):
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ActorError(
                f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or name another in "
                "engine.ray_address or RAY_ADDRESS, or leave both out for one of this machine's own"
            ) from error
        return
    with _own_cards(taken, wanted):
        ray.init(address="local", log_to_driver=False, include_dashboard=False)


class PlacedActor:
    """An actor in a placement group of its own, on one machine. Its methods may be called from any thread."""

    def __init__(self, kind: type, ranks: int, at_once: int) -> None:
        """`kind` is a plain class; `ranks` cards are its own, or cores in a cluster without cards."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        cards = ranks if ray.cluster_resources().get("GPU") else 0
        bundle = {"CPU": 1, "GPU": cards} if cards else {"CPU": ranks}
        self._group = placement_group([bundle], strategy="STRICT_PACK")
        if not self._group.wait(FREE_WITHIN):
            ray.util.remove_placement_group(self._group)
            raise ActorError(
                f"Ray has no machine with {bundle} free within {FREE_WITHIN:g} s; free are "
                f"{ray.available_resources()}: lower engine.replicas or engine.tensor_parallel_size, or wait for others"
            )
        self._actor = (
            ray.remote(kind)
            .options(
                num_cpus=bundle["CPU"],
                num_gpus=cards,
                max_concurrency=at_once,
                max_restarts=0,  # another is started by whoever knows which weights it must have
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0),
            )
            .remote()
        )

    def ask(self, method: str, *values: Any) -> Future[Any]:
        """What a method of the actor returns; an ActorLostError where its process is gone."""
        answer: Future[Any] = Future()
        found = getattr(self._actor, method).remote(*values).future()
        found.add_done_callback(lambda one: _settle(answer, one))
        return answer

    def end(self) -> None:
        """Kill it, with all that it started."""
        import ray

        with suppress(Exception):  # the cluster itself may be gone
            ray.kill(self._actor)
            ray.util.remove_placement_group(self._group)


def _settle(answer: Future[Any], found: Future[Any]) -> None:
    from ray.exceptions import RayActorError, RayTaskError

    error = found.exception()
    if error is None:
        answer.set_result(found.result())
    elif isinstance(error, RayActorError):
        lines = str(error).strip().splitlines()
        answer.set_exception(ActorLostError("; ".join(dict.fromkeys([lines[0], lines[-1].strip()]))))
    elif isinstance(error, RayTaskError):  # the cause alone, not with the lines of a traceback in its text
        answer.set_exception(error.cause if isinstance(error.cause, BaseException) else error)
    else:
        answer.set_exception(error)


@contextmanager
def _own_cards(taken: int, wanted: int) -> Iterator[None]:
    """While this machine's own Ray starts: show it the cards behind the trainer's alone."""
    cards = torch.cuda.device_count()
    if not cards:
        yield
        return
    before = os.environ.get(CARDS)
    left = (before.split(",") if before else [str(number) for number in range(cards)])[taken:]
    if len(left) < wanted:
        raise ActorError(
            f"engines apart need {wanted} cards beside the {taken} of the trainer, and this machine has {cards}; lower "
            'engine.replicas, engine.tensor_parallel_size or placement.gpus, or set engine.placement = "colocated"'
        )
    os.environ[CARDS] = ",".join(left)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CARDS]
        else:
            os.environ[CARDS] = before
