"""Exact checkpoints: master weights, optimiser, cursor and log positions, written by rename; the last two are kept.

`step-00000012/` holds a safetensors file per rank and `checkpoint.json`: the numbers, and the size and digest of every
file. Nothing in it is unpickled, and nothing is used before all of it is found to be what was written: a checkpoint
that is torn, altered or another run's is taken away, and the older one, or a new beginning, takes its place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from tercet.device.mesh import Mesh
from tercet.device.optim import prepare, state_of
from tercet.device.shard import Trainable
from tercet.device.shares import Shares, Stamp, check_file, write_shares
from tercet.journal import DamagedError, seal, to_disk, unseal
from tercet.machine import available_memory

KEPT = 2
FACTS = "checkpoint.json"
STEP = re.compile(r"step-(\d{8,})")
REST = 20.0  # pause between two saves over the time training stands for one: at most a twentieth of a run is lost so


class Snapshot(NamedTuple):
    """All that a checkpoint holds: tensors by name, and the text of the rest as it was at that moment."""

    step: int
    tensors: dict[str, Any]
    text: str

    @property
    def num_bytes(self) -> int:
        """What this rank has of the tensors."""
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
    save, and `finish`, wait for it. What goes wrong there is raised at the next step, by `due`, on every rank.
    """

    def __init__(self, folder: Path, mesh: Mesh, *, beside: bool | None = None) -> None:
        """`beside`: in a thread, with a channel of its own between the ranks; by default on cards."""
        self.folder, self.mesh = folder, mesh
        self.beside = mesh.device.type == "cuda" if beside is None else beside
        self.channel = replace(mesh.twin(), device=torch.device("cpu")) if self.beside else mesh
        self.stager: DefaultStager | None = None
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        self.stood, self.took, self.ended = 0.0, 0.0, time.monotonic()

    def due(self, least: float) -> bool:
        """Whether any rank wants to save; always at 0.

        `least` seconds have passed, and `REST` times those that training stood for the last save, and as many as it
        took to write, so that the disk has half of its time for others.
        """
        busy = self.thread is not None and self.thread.is_alive()
        rested = time.monotonic() - self.ended >= max(least, REST * self.stood, self.took)
        wanted, failed = self.mesh.max([float(least == 0 or (rested and not busy)), float(self.failure is not None)])
        if failed:
            raise self.failure or OSError(f"{self.folder}: another rank could not write its share of a checkpoint")
        return wanted > 0

    def save(self, found: Snapshot) -> None:
        """Write a snapshot, or begin to."""
        began = time.monotonic()
        self.finish()
        found = found._replace(tensors=_own(found.tensors, self.mesh))
        if self.beside and self._fits(found):
            copied = found._replace(tensors=self._copied(found.tensors))
            self.thread = threading.Thread(target=self._work, args=(copied, began), name="checkpoint", daemon=True)
            self.thread.start()
        else:
            _write(self.folder, found, self.mesh)
            self._rest(began)
        self.stood = time.monotonic() - began

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


def _own(tensors: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Those of which this rank writes something: ranks that have the same write an equal part of the tensors each."""
    sizes = [value.numel() * value.element_size() for value in tensors.values()]
    before = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
    places = (at / max(1, sum(sizes)) for at in before)
    return {name: value for (name, value), at in zip(tensors.items(), places, strict=True) if _writes(value, mesh, at)}


def _writes(value: Any, mesh: Mesh, place: float) -> bool:
    """Whether this rank has something of a tensor, and its turn is at this place, from 0 to 1, in all of them."""
    if not hasattr(value, "to_local"):
        return mesh.first
    ranks = value.device_mesh
    along = zip(ranks.get_coordinate(), ranks.shape, value.placements, strict=True)
    turns = all(at == int(place * size) for at, size, how in along if how.is_replicate())
    leads = mesh.axes is None or mesh.axes.leads(ranks.mesh_dim_names)
    return leads and turns and value.to_local().numel() > 0


def _write(folder: Path, found: Snapshot, mesh: Mesh) -> None:
    """Write `folder/step-N`; a killed writer leaves only a draft, which the next one removes."""
    draft = folder / f".draft-{found.step}"

    def begin() -> None:
        for stale in folder.glob(".draft-*"):
            _remove(stale)
        draft.mkdir(parents=True)

    def write() -> Stamp:
        return write_shares(draft / _file(mesh.rank), found.tensors)

    _together(begin, mesh, only=mesh.first)
    stamps = _together(write, mesh)
    _together(lambda: _commit(draft, found, stamps), mesh, only=mesh.first)


def _commit(draft: Path, found: Snapshot, stamps: list[Stamp]) -> None:
    """Make a draft, to which every rank has written its file, the newest checkpoint."""
    folder, files = draft.parent, {_file(rank): stamp for rank, stamp in enumerate(stamps)}
    seal(draft / FACTS, json.dumps({**json.loads(found.text), "run": _run(folder), "files": files}))
    to_disk(draft)
    os.replace(draft, folder / f"step-{found.step:08d}")
    to_disk(folder)
    for old in _newest(folder)[KEPT:]:
        _remove(old)


def load(
    folder: Path,
    trainable: Trainable,
    optimizer: Optimizer,
    kept: dict[str, Tensor] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """Restore the newest checkpoint that is whole; None when there is none. Returns what `extra` held, and the step.

    Ranks decide together. Others are removed, and `say` is told which, why, and where the run goes on instead.
    """
    mesh, faults = trainable.mesh, []
    found: dict[str, Any] | None = None
    for path in mesh.gather(_newest(folder))[0]:
        try:
            found = _restored(path, trainable, optimizer, kept)
            break
        except OSError as error:
            faults.append(str(error))
            optimizer.state.clear()
            if mesh.first:
                _remove(path)
            mesh.barrier()
    where = f"continuing from the checkpoint of step {found['step']}" if found else "beginning anew"
    for fault in faults:
        say(f"a checkpoint was damaged and is removed: {fault}; {where}")
    return found


def forget(folder: Path, last: int, why: str, say: Callable[[str], None]) -> None:
    """Remove the checkpoints after step `last` (first rank only): what else they need is gone."""
    for path in _newest(folder):
        if int(path.name.removeprefix("step-")) > last:
            _remove(path)
            say(f"{why}, too few for the checkpoint {path.name}, which is removed")


def _restored(path: Path, trainable: Trainable, optimizer: Optimizer, kept: dict[str, Tensor] | None) -> dict[str, Any]:
    """Check a checkpoint, then put it into weights and optimiser; DamagedError on every rank where it will not do."""
    mesh = trainable.mesh
    facts: dict[str, Any] = {}

    def checked() -> None:
        facts.update(_facts(path, set(trainable.names)))
        for number, (name, stamp) in enumerate(facts["files"].items()):
            if number % mesh.size == mesh.rank:  # each file is read by one rank
                check_file(path / name, Stamp(*stamp))

    _together(checked, mesh)
    prepare(optimizer, trainable, facts["counts"])
    state = _state(trainable, state_of(optimizer, trainable)[0], kept)
    names = sorted(facts["files"], key=lambda name: name != _file(mesh.rank))
    _together(lambda: Shares([path / name for name in names]).fill(state), mesh)
    trainable.published()
    return facts


def _together(work: Callable[[], Any], mesh: Mesh, *, only: bool = True) -> list[Any]:
    """What `work` gives on every rank; what the system refuses one of them, such as a full disk, is raised on all.

    No rank goes on before all have worked, those alone for which it is said (`only`).
    """
    found: Any
    try:
        found = work() if only else None
    except OSError as error:
        found = error
    every = mesh.gather(found)
    if wrong := [one for one in every if isinstance(one, OSError)]:
        raise wrong[0]
    return every


def _facts(path: Path, names: set[str]) -> dict[str, Any]:
    """What `checkpoint.json` says; DamagedError where it is not whole, of another run or another step, or older."""
    if not (path / FACTS).is_file():
        raise DamagedError(f"{path}: has no {FACTS}; it is torn, or an older version of Tercet wrote it")
    facts: dict[str, Any] = json.loads(unseal(path / FACTS))
    wanted = (_run(path.parent), path.name)
    if (own := (facts["run"], f"step-{facts['step']:08d}")) != wanted:
        raise DamagedError(f"{path / FACTS}: is {own[1]} of {own[0]}, expected {wanted[1]} of {wanted[0]}")
    if strangers := facts["counts"].keys() - names:
        raise DamagedError(f"{path / FACTS}: the model has no weight {min(strangers)}")
    return facts


def _run(folder: Path) -> str:
    """The draft that a folder of checkpoints stands in, by its name: another one's checkpoint is not used."""
    return folder.absolute().parents[1].name


def _file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _newest(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    return sorted((path for path in folder.glob("step-*") if STEP.fullmatch(path.name)), reverse=True)


def _remove(path: Path) -> None:
    """Take away a folder, or whatever stands in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _state(trainable: Trainable, moments: dict[str, Tensor], kept: dict[str, Tensor] | None) -> dict[str, Any]:
    """Master weights, the optimiser's tensors and further ones by name."""
    state: dict[str, Any] = {f"kept.{name}": value for name, value in (kept or {}).items()}
    master_weights = zip(trainable.names, trainable.master_weights, strict=True)
    return state | {f"master.{name}": master.detach() for name, master in master_weights} | moments
