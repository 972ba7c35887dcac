"""Steps whose batches are known in advance, built and copied to the GPU by a thread while it works on earlier ones.

On a CPU there is nothing to gain, as building and training share the cores: steps are built when they are asked for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tercet.device.mesh import Mesh
from tercet.device.upload import Sent, Upload
from tercet.models.forest import Forest, Tree
from tercet.recipe import TrainSpec
from tercet.store import Context
from tercet.train.batch import Step, batches, chosen_rows, filling
from tercet.train.packing import Budget

AHEAD = 2  # steps that wait for the GPU
CPU = torch.device("cpu")

Made = TypeVar("Made")
Values = Callable[[list[int], Forest], dict[str, Tensor]]


def prefetched(make: Callable[[Mesh], Iterator[Step]], ranks: Mesh) -> Iterator[Step]:
    """The steps of `make(mesh)` in order, on the device of `ranks`; every rank must begin at the same point.

    `make` builds them on the device of the mesh it is given: with a GPU on the host, in a thread, whose collectives go
    over a channel of their own. An error there is raised here, at its step.
    """
    if ranks.device.type != "cuda":
        yield from make(ranks)
        return
    upload, channel = Upload(ranks.device), replace(ranks.twin(), device=CPU)
    sent = (_sent(step, upload) for step in make(channel))
    for step, copies in in_thread(sent, AHEAD):
        for one in copies:
            upload.receive(one)
        yield step


def tree_steps(
    trees: Sequence[Tree], spec: TrainSpec, ctx: Context, ranks: Mesh, numbers: range, values: Values | None = None
) -> Iterator[Step]:
    """The optimiser steps with these numbers, packed; `values(places, forest)` adds numbers of the trees there."""
    budget, multiple = Budget.of(ctx.recipe.placement, spec), filling(ranks.device)

    def make(mesh: Mesh) -> Iterator[Step]:
        for number in numbers:
            chosen = chosen_rows(number, len(trees), spec.batch, ctx.seed)

            def of_step(items: list[int], forest: Forest, chosen: list[int] = chosen) -> dict[str, Tensor]:
                return values([chosen[i] for i in items], forest) if values else {}

            yield Step(batches([trees[i] for i in chosen], budget, mesh, of_step, multiple))

    return prefetched(make, ranks)


def _sent(step: Step, upload: Upload) -> tuple[Step, list[Sent]]:
    """The step with its tensors on their way, and what to wait for."""
    moved = [upload.send(batch.moved) for batch in step.batches]
    return replace(step, batches=[batch for batch, _ in moved]), [copies for _, copies in moved]


class _End(NamedTuple):
    """No more items, because of an error or because that was all."""

    error: BaseException | None


def in_thread(items: Iterator[Made], ahead: int) -> Iterator[Made]:
    """The same items, made by a thread that has at most `ahead` waiting when it makes another.

    What it raises is raised here, after the items before it. When this generator is closed, the thread makes no more.
    """
    ready: queue.SimpleQueue[Made | _End] = queue.SimpleQueue()
    places, closed = threading.Semaphore(ahead), threading.Event()

    def work() -> None:
        end = _End(None)
        try:
            for item in items:
                ready.put(item)
                places.acquire()
                if closed.is_set():
                    return
        except BaseException as error:
            end = _End(error)
        ready.put(end)

    threading.Thread(target=work, name="batches", daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            places.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        places.release()
