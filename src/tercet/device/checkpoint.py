"""Exact checkpoints: masters, optimiser, cursor and ledger positions, written by rename; the last two are kept."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from tercet.device.optim import prepare, state_of
from tercet.device.shard import Trainable

KEPT = 2


def save(
    folder: Path,
    step: int,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any],
    kept: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `folder/step-N`; a killed writer leaves only a draft, which the next one removes.

    `extra` holds at least `updates`, how often the optimiser has stepped: fewer times than N where steps were empty.
    `kept` are further tensors, e.g. of a moving reference; `load` writes into the same ones.
    """
    mesh = trainable.mesh
    moments, counts = state_of(optimizer, trainable)
    draft, final = folder / f".draft-{step}", folder / f"step-{step:08d}"
    if mesh.first:
        for stale in folder.glob(".draft-*"):
            shutil.rmtree(stale)
        draft.mkdir(parents=True)
    mesh.barrier()
    try:
        with _alone_is_fine():
            dcp.save(_state(trainable, moments, kept), checkpoint_id=str(draft), no_dist=mesh.size == 1)
    except CheckpointException as error:  # no Exception; what is behind it, such as a full disk, is one
        raise next((cause for cause, _ in error.failures.values()), error) from error
    mesh.barrier()
    if mesh.first:
        (draft / "extra.json").write_text(json.dumps({**extra, "step": step, "ranks": mesh.size, "counts": counts}))
        _sync(draft)
        os.replace(draft, final)
        for old in sorted(folder.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
    mesh.barrier()


def load(
    folder: Path,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    kept: dict[str, torch.Tensor] | None = None,
) -> dict[str, Any] | None:
    """Restore the newest checkpoint; None when there is none. Returns what `extra` held, and the step."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    extra: dict[str, Any] = json.loads((found[-1] / "extra.json").read_text())
    prepare(optimizer, trainable, extra["counts"])
    state = _state(trainable, state_of(optimizer, trainable)[0], kept)
    with _alone_is_fine():
        dcp.load(state, checkpoint_id=str(found[-1]), no_dist=trainable.mesh.size == 1)  # writes into these tensors
    trainable.published()
    return extra


def _state(
    trainable: Trainable, moments: dict[str, torch.Tensor], kept: dict[str, torch.Tensor] | None
) -> dict[str, Any]:
    """Masters, the optimiser's tensors and further ones by name."""
    state: dict[str, Any] = {f"kept.{name}": value for name, value in (kept or {}).items()}
    masters = zip(trainable.names, trainable.masters, strict=True)
    return state | {f"master.{name}": master.detach() for name, master in masters} | moments


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Torch warns whenever a single process saves or loads; that is what one rank means."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
