"""Whether the weights of a folder are whole, belong to its config.json and are numbers. Nothing is executed.

A damaged or foreign file is found here, before anything is copied or trained, and not by a traceback hours later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from tercet.models.base_layout import BaseLayout
from tercet.models.hf_folder import load_model, weight_files
from tercet.models.weights import BaseError, Stored, described, each_tensor

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def check_weights(folder: Path, config: PretrainedConfig) -> bool:
    """Refuse weights that are not what config.json describes; whether they have the names that transformers writes."""
    files = _files(folder)
    have = {name: at for file in files for name, at in _whole(file).items()}
    _check_index(folder, have)
    wanted = BaseLayout(config).shapes
    for name in sorted(have.keys() & wanted.keys()):
        code, shape = have[name]
        if shape != wanted[name]:
            raise BaseError(
                f"{folder}: {name} has the shape {list(shape)}, config.json describes {list(wanted[name])}; "
                "config.json and the weights must belong to the same model"
            )
        if code not in FLOATS:
            raise BaseError(
                f"{folder}: {name} is stored as {code}, expected floating-point weights; quantised weights cannot be "
                "trained, take the model's unquantised folder"
            )
    for file in files:
        _check_finite(file)
    if wanted.keys() <= have.keys():
        return True
    load_model(folder, torch.float32)  # older names are known to transformers; what it misses too is missing
    return False


def _files(folder: Path) -> list[Path]:
    """The safetensors files; a pickle in their place is named and left unopened."""
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        if pickles:
            raise BaseError(
                f"{folder}: the weights are a pickle ({pickles[0]}), which can run code when it is read, so it was not "
                "opened; expected model.safetensors: where you trust the file, load and save it with transformers"
            )
    return weight_files(folder)


def _whole(file: Path) -> Stored:
    """The tensors of a file that is as long as its header says."""
    (have, expected), found = described(file), file.stat().st_size
    if found != expected:
        raise BaseError(f"{file}: expected {expected:,} bytes, found {found:,}: the file was cut; copy it again")
    return have


def _check_index(folder: Path, have: Stored) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    named: dict[str, Any] = json.loads(index.read_text("utf-8"))["weight_map"]
    if lost := sorted(named.keys() - have.keys()):
        raise BaseError(f"{index}: names {len(lost)} tensors that no file holds, e.g. {lost[0]}; copy the folder again")


def _check_finite(file: Path) -> None:
    for name, weight in each_tensor(file):
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            bad = int((~weight.isfinite()).sum())
            raise BaseError(
                f"{file}: {bad:,} of {weight.numel():,} numbers of {name} are not finite (NaN or infinity); the "
                "model is broken, copy or train it again"
            )
