"""A tiny model whose attention looks somewhere in particular, so that a wrong mask shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sharp_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger matrices, above all in its layers, so that it does not repeat its last token."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim > 1:
            weight *= 12.0 if ".layers." in name else 5.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
