"""Exact checkpoints: master weights, optimiser, cursor and log positions, written by rename; the last two are kept."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from tercet.device.mesh import Mesh
from tercet.device.optim import prepare, state_of
from tercet.device.shard import Trainable
from tercet.journal import to_disk
from tercet.machine import available_memory

KEPT = 2
REST = 20.0  # pause between two saves over the time one takes: at most a twentieth of a run goes into them


class Snapshot(NamedTuple):
    """All that a checkpoint holds: tensors by name, and the text of the rest as it was at that moment."""

    step: int
    tensors: dict[str, Any]
    text: str

    @property
    def num_bytes(self) -> int:
        """What this rank's share of the tensors takes."""
        own = (value.to_local() if hasattr(value, "to_local") else value for value in self.tensors.values())
        return sum(tensor.nbytes for tensor in own)


def snapshot(
    step: int, trainable: Trainable, optimizer: Optimizer, extra: dict[str, Any], kept: dict[str, Tensor] | None = None
) -> Snapshot:
    """What a checkpoint would hold now; its tensors are the living ones.

    `extra` holds at least `updates`, how often the optimiser has stepped: fewer times than `step` where steps were
    empty. `kept` are further tensors, e.g. of a moving reference; `load` writes into the same ones.
    """
    moments, counts = state_of(optimizer, trainable)
    text = json.dumps({**extra, "step": step, "ranks": trainable.mesh.size, "counts": counts})
    return Snapshot(step, _state(trainable, moments, kept), text)


class Saver:
    """Writes the checkpoints of a run, on a card beside training, and only as often as their duration allows.

    On a card the state is copied to the host's memory first, so that a thread writes the state of that moment. The next
    save, and `finish`, wait for it and raise what went wrong.
    """

    def __init__(self, folder: Path, mesh: Mesh, *, beside: bool | None = None) -> None:
        """`beside`: in a thread, with a channel of its own between the ranks; by default on cards."""
        self.folder, self.mesh = folder, mesh
        self.beside = mesh.device.type == "cuda" if beside is None else beside
        self.channel = replace(mesh.twin(), device=torch.device("cpu")) if self.beside else mesh
        self.stager: DefaultStager | None = None
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.took, self.ended = 0.0, time.monotonic()

    def due(self, least: float) -> bool:
        """Whether any rank wants to save: `least` seconds and `REST` times the last save have passed; always at 0."""
        busy = self.thread is not None and self.thread.is_alive()
        rested = time.monotonic() - self.ended >= max(least, REST * self.took)
        return self.mesh.max([float(least == 0 or (rested and not busy))])[0] > 0

    def save(self, found: Snapshot) -> None:
        """Write a snapshot, or begin to."""
        self.finish()
        began = time.monotonic()
        if self.beside and self._fits(found):
            copied = found._replace(tensors=self._copied(found.tensors))
            self.thread = threading.Thread(target=self._work, args=(copied, began), name="checkpoint", daemon=True)
            self.thread.start()
        else:
            _write(self.folder, found, self.mesh)
            self._rest(began)

    def finish(self) -> None:
        """Wait for the save in flight."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.failure is not None:
            raise self.failure

    def _work(self, found: Snapshot, began: float) -> None:
        try:
            _write(self.folder, found, self.channel)
        except BaseException as error:
            self.failure = error
        self._rest(began)

    def _rest(self, began: float) -> None:
        self.ended = time.monotonic()
        self.took = self.ended - began

    def _copied(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The same tensors in the host's memory, which is kept for the next time."""
        if self.stager is None:
            card = self.mesh.device.type == "cuda"
            options = {"use_pinned_memory": card, "use_shared_memory": False, "use_async_staging": False}
            self.stager = DefaultStager(StagingOptions(**options, use_non_blocking_copy=card))
        copied: Any = self.stager.stage(tensors)
        return copied

    def _fits(self, found: Snapshot) -> bool:
        """Whether every rank's copy fits into the host's memory, with a tenth of them to spare."""
        if self.stager is not None:
            return True
        wanted = 1.1 * found.num_bytes * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self.mesh.max([float(wanted > available_memory())])[0] == 0


def _write(folder: Path, found: Snapshot, mesh: Mesh) -> None:
    """Write `folder/step-N`; a killed writer leaves only a draft, which the next one removes."""
    draft, final = folder / f".draft-{found.step}", folder / f"step-{found.step:08d}"
    if mesh.first:
        for stale in folder.glob(".draft-*"):
            shutil.rmtree(stale)
        draft.mkdir(parents=True)
    mesh.barrier()
    _alone_is_fine()
    try:
        dcp.save(found.tensors, checkpoint_id=str(draft), process_group=mesh.group, no_dist=mesh.size == 1)
    except CheckpointException as error:  # no Exception; what is behind it, such as a full disk, is one
        raise next((cause for cause, _ in error.failures.values()), error) from error
    mesh.barrier()
    if mesh.first:
        (draft / "extra.json").write_text(found.text)
        for path in draft.rglob("*"):
            to_disk(path)
        os.replace(draft, final)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
    mesh.barrier()


def load(
    folder: Path, trainable: Trainable, optimizer: Optimizer, kept: dict[str, Tensor] | None = None
) -> dict[str, Any] | None:
    """Restore the newest checkpoint; None when there is none. Returns what `extra` held, and the step."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    extra: dict[str, Any] = json.loads((found[-1] / "extra.json").read_text())
    prepare(optimizer, trainable, extra["counts"])
    state = _state(trainable, state_of(optimizer, trainable)[0], kept)
    _alone_is_fine()
    dcp.load(state, checkpoint_id=str(found[-1]), no_dist=trainable.mesh.size == 1)  # writes into these tensors
    trainable.published()
    return extra


def _state(trainable: Trainable, moments: dict[str, Tensor], kept: dict[str, Tensor] | None) -> dict[str, Any]:
    """Master weights, the optimiser's tensors and further ones by name."""
    state: dict[str, Any] = {f"kept.{name}": value for name, value in (kept or {}).items()}
    master_weights = zip(trainable.names, trainable.master_weights, strict=True)
    return state | {f"master.{name}": master.detach() for name, master in master_weights} | moments


def _alone_is_fine() -> None:
    """Silence the warning that torch gives whenever a single process saves or loads."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
