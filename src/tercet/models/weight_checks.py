"""Whether the weights of a folder are whole, belong to its config.json and are numbers. Nothing is executed.

A damaged or foreign file is found here, before anything is copied or trained, and not by a traceback hours later.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import torch
from transformers import PretrainedConfig

from tercet.models.base_layout import BaseLayout
from tercet.models.headers import BaseError, Stored, described
from tercet.models.hf_folder import INDEX, load_model, weight_files, weight_map
from tercet.models.weights import each_tensor

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F16", "BF16", "F32", "F64"}
SAME = "config.json and the weights must belong to the same model"
SPARE = 1 << 26  # numbers that a model may have beside those of its folder: masks, tables of positions


def check_weights(folder: Path, config: PretrainedConfig) -> bool:
    """Refuse weights that are not what config.json describes; whether they have the names that transformers writes."""
    files = _files(folder)
    have = _together(files)
    _check_index(folder, have)
    _check_depth(folder, config, have)
    layout = BaseLayout(config)
    wanted = layout.shapes
    for name in sorted(have.keys() & wanted.keys()):
        code, shape = have[name]
        if shape != wanted[name]:
            raise BaseError(
                f"{folder}: {name} has the shape {list(shape)}, config.json describes {list(wanted[name])}; {SAME}"
            )
        if code not in FLOATS:
            raise BaseError(
                f"{folder}: {name} is stored as {code}, expected floating-point weights; quantised weights cannot be "
                "trained, take the model's unquantised folder"
            )
    _check_amount(folder, layout, have)
    for file in files:
        _check_finite(file)
    if wanted.keys() <= have.keys():
        _say_unread(folder, layout, have)
        return True
    load_model(folder, torch.float32)  # older names are known to transformers; what it misses too is missing
    return False


def check_numbers(folder: Path) -> None:
    """Refuse weights that are cut, lie about themselves or are no numbers, whatever the model; for encoders."""
    files = _files(folder)
    _together(files)
    for file in files:
        _check_finite(file)


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


def _together(files: list[Path]) -> Stored:
    """The tensors of all files; one that two of them hold is refused, since only one could be read."""
    have: Stored = {}
    for file in files:
        found = _whole(file)
        if twice := sorted(have.keys() & found.keys()):
            raise BaseError(
                f"{file}: holds {twice[0]}, which another file of the folder holds too; copy the folder again"
            )
        have |= found
    return have


def _check_depth(folder: Path, config: PretrainedConfig, have: Stored) -> None:
    """Refuse more layers than tensors, before as many are made."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0) or 0
    if layers > len(have):
        raise BaseError(
            f"{folder}: config.json describes {layers:,} layers, and the weights hold {len(have):,} tensors; {SAME}"
        )


def _check_amount(folder: Path, layout: BaseLayout, have: Stored) -> None:
    """Refuse a model of far more numbers than the weights hold, before it takes memory."""
    parts = [*layout.model.parameters(), *layout.model.buffers()]
    wanted, stored = sum(one.numel() for one in parts), sum(math.prod(shape) for _, shape in have.values())
    if wanted > 2 * stored + SPARE:
        raise BaseError(
            f"{folder}: config.json describes a model of {wanted:,} numbers, and the weights hold {stored:,}; {SAME}"
        )


def _say_unread(folder: Path, layout: BaseLayout, have: Stored) -> None:
    """Tensors that belong to nothing in the model are said, with the first of their names."""
    tied = getattr(layout.model, "all_tied_weights_keys", None) or {}
    known = re.compile("|".join(layout.model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
    odd = [name for name in sorted(have.keys() - layout.shapes.keys() - {*tied}) if not known.search(name)]
    if odd:
        name = type(layout.model).__name__
        sys.stderr.write(f"tercet: {folder.name}: {len(odd)} tensors are no part of {name}, e.g. {odd[0]}: not read\n")


def _whole(file: Path) -> Stored:
    """The tensors of a file that is as long as its header says."""
    (have, expected), found = described(file), file.stat().st_size
    if found != expected:
        raise BaseError(f"{file}: expected {expected:,} bytes, found {found:,}: the file was cut; copy it again")
    return have


def _check_index(folder: Path, have: Stored) -> None:
    index = folder / INDEX
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    named = weight_map(index)
    if lost := sorted(named.keys() - have.keys()):
        raise BaseError(f"{index}: names {len(lost)} tensors that no file holds, e.g. {lost[0]}; copy the folder again")


def _check_finite(file: Path) -> None:
    for name, weight in each_tensor(file):
        if not weight.is_floating_point() or bool(weight.sum(dtype=torch.float32).isfinite()):
            continue  # a sum is finite only where all of it is, and takes a fifth of the time
        if bad := int((~weight.isfinite()).sum()):
            raise BaseError(
                f"{file}: {bad:,} of {weight.numel():,} numbers of {name} are not finite (NaN or infinity); the "
                "model is broken, copy or train it again"
            )
