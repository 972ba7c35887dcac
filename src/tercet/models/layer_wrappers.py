"""Less memory or more speed for the same numbers: layers that compute their activations again, or are compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from tercet.device.host_store import HostStore
from tercet.models.forest import NAME, forest_attention
from tercet.models.recurrent import run_uncompiled


def recompute(module: nn.Module) -> None:
    """Keep only the inputs of every decoder layer; backward computes the layer again (Chen et al. 2016)."""
    for layer in _layers(module):
        again = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = partial(_when_training, layer.forward, again)


def offload(module: nn.Module, store: HostStore) -> None:
    """Keep what every decoder layer saves for backward on the host; after `recompute` that is the layer's input."""
    for layer in _layers(module):
        layer.forward = partial(_when_training, layer.forward, partial(_offloaded, layer, layer.forward, store))


def _offloaded(layer: nn.Module, plain: Callable[..., Any], store: HostStore, *args: Any, **options: Any) -> Any:
    """The weights stay: they are on the card in any case, or their storage is filled again when backward needs it."""
    with store.taking({weight.untyped_storage().data_ptr() for weight in layer.parameters()}):
        return plain(*args, **options)


def compile_layers(module: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Compile every decoder layer for rows of any length; attention over a forest stays as it is.

    Where nothing can compile for the device the layers stay as they are, with a warning.
    """
    if backend == "inductor" and (missing := missing_compiler(device)):
        warnings.warn(f"placement.compile needs {missing}; the layers are not compiled", stacklevel=2)
        return
    AttentionInterface.register(NAME, torch.compiler.disable(forest_attention))  # loops over segments, in kernels
    run_uncompiled(module)
    for layer in _layers(module):
        fast = torch.compile(layer.forward, dynamic=True, backend=backend)
        layer.forward = partial(_when_training, layer.forward, fast)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer))


def _when_training(plain: Callable[..., Any], other: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Plain without gradients: while the model generates, nothing is kept and shapes change with every token."""
    return other(*args, **options) if torch.is_grad_enabled() else plain(*args, **options)


def missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks for a device here; empty where it can work."""
    if device.type != "cpu":
        return "" if importlib.util.find_spec("triton") else "Triton"
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if not any(map(shutil.which, compilers)):
        return "a C++ compiler (g++)"
    installed = os.path.dirname(torch.__file__)  # its linker's options are not quoted
    return f"torch installed in a folder without spaces (it lies in {installed})" if " " in installed else ""
