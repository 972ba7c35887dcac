"""Steps whose batches are known in advance, built and copied to the card by a thread while it works on earlier ones.

On a processor there is nothing to gain: building and training share the same cores, so steps are built when they are
asked for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch

from tercet.device.mesh import Mesh
from tercet.device.upload import Sent, Upload
from tercet.train.batch import Step

AHEAD = 2  # steps that wait for the card
CPU = torch.device("cpu")

Made = TypeVar("Made")


def prefetched(make: Callable[[Mesh], Iterator[Step]], ranks: Mesh) -> Iterator[Step]:
    """The steps of `make(mesh)` in order, on the device of `ranks`; every rank must begin at the same point.

    `make` builds them on the device of the mesh it is given. For a card that is the host, in a thread, where ranks talk
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


def _sent(step: Step, upload: Upload) -> tuple[Step, list[Sent]]:
    """The step with its tensors on their way, and what to wait for."""
    moved = [upload.send(batch.moved) for batch in step.batches]
    return replace(step, batches=[batch for batch, _ in moved]), [copies for _, copies in moved]


class _End(NamedTuple):
    """No more items, because of an error or because that was all."""

    error: BaseException | None


def in_thread(items: Iterator[Made], ahead: int) -> Iterator[Made]:
    """The same items, made by a thread that is at most `ahead` of whoever takes them.

    What it raises is raised here, after the items before it. When nobody takes any more, the thread makes no more.
    """
    ready: queue.Queue[Made | _End] = queue.Queue(ahead)
    closed = threading.Event()
    threading.Thread(target=_work, args=(items, ready, closed), name="batches", daemon=True).start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()


def _work(items: Iterator[Made], ready: queue.Queue[Made | _End], closed: threading.Event) -> None:
    end = _End(None)
    try:
        for item in items:
            if not _put(item, ready, closed):
                return
    except BaseException as error:
        end = _End(error)
    _put(end, ready, closed)


def _put(item: Made | _End, ready: queue.Queue[Made | _End], closed: threading.Event) -> bool:
    """Wait for room; False when nobody will take it."""
    while not closed.is_set():
        with suppress(queue.Full):
            ready.put(item, timeout=0.1)
            return True
    return False
