"""Linear layers in four bits, by bitsandbytes: the frozen base below trained adapters, on one GPU.

QLoRA, Dettmers et al. 2023, https://arxiv.org/abs/2305.14314: blocks of 64 weights share a scale, and the scales are
kept in eight bits. A product dequantises the matrix it needs; gradients pass through to the adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def quantize_layers(
    model: nn.Module, names: Iterable[str], kind: str, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Replace linear layers of `model` by frozen ones in four bits (`nf4` or `fp4`) on `device`, in place.

    They compute in `dtype`.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise ValueError(
            f"lora.quantize = {kind!r} needs bitsandbytes: pip install 'tercet[bits]', or leave it out"
        ) from error
    for name in names:
        parent, _, last = name.rpartition(".")
        layer: Any = model.get_submodule(name)
        sizes = (layer.in_features, layer.out_features)
        four = Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type=kind, device="meta")
        weight = layer.weight.detach().to(dtype)
        four.weight = Params4bit(weight, requires_grad=False, quant_type=kind, compress_statistics=True, module=four)
        four.bias = layer.bias
        setattr(model.get_submodule(parent), last, four.to(device))


def num_weights(parameter: Tensor) -> int:
    """How many weights a parameter holds; two of four bits are one byte."""
    return parameter.numel() * (1 if parameter.is_floating_point() else 2)
