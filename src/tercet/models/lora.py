"""Low-rank adapters: every adapted layer computes W x + (alpha / rank) B A x, and only A and B are trained.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The layers are peft's (an extra); W is frozen, in the compute
precision. What is exported, and what engines are sent, is a plain model: W of the source, in fp32, plus the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from tercet.models.hf_folder import weight_files
from tercet.recipe import LoraSpec

A, B, BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


class LoraError(ValueError):
    """Adapters that cannot be made, or not for this model."""


def adapt(module: nn.Module, lora: LoraSpec, dtype: torch.dtype, seed: int) -> Merged:
    """Give every model in `module` adapters, in place; the rest is frozen, except the head of a scorer.

    A is drawn from `seed` (Kaiming uniform, as in the paper's code), B is zero: at first nothing changes. Returns what
    makes a plain model of it again.
    """
    models = list(_models(module))
    for prefix, model in models:
        _inject(model, lora)
        output = model.get_output_embeddings()
        for name, parameter in model.named_parameters():
            fresh = not name.startswith(f"{model.base_model_prefix}.") and (
                output is None or parameter is not output.weight
            )
            parameter.requires_grad_(fresh or name.endswith((A, B)))
        if dtype != torch.float32:
            _check_stored(prefix, model)
    source = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith(A):
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=source)
    sources = {prefix: Path(str(model.name_or_path)) for prefix, model in models}
    return Merged(module, {} if dtype == torch.float32 else sources, lora)


class Merged:
    """Names and fp32 tensors of the plain models inside a module with adapters (`tercet.device.shard.Merge`)."""

    def __init__(self, module: nn.Module, sources: dict[str, Path], lora: LoraSpec) -> None:
        """`sources`: folders of frozen weights, by the prefix of their names, where the compute precision rounds."""
        self.names = [name for name, _ in module.named_parameters() if not name.endswith((A, B))]
        self.sources, self.scaling = sources, lora.alpha / lora.r

    def __call__(self, whole: Callable[[str], Tensor], part: str) -> Iterator[tuple[str, Tensor]]:
        """Whatever begins with `part`; `whole` gives parameters by their name in the module. All ranks must iterate."""
        stored = {prefix: _stored(folder) for prefix, folder in self.sources.items()}
        for name in (name for name in self.names if name.startswith(part)):
            plain, value = name.replace(BASE, "."), whole(name)
            if value.dtype != torch.float32:
                prefix = next(prefix for prefix in stored if name.startswith(prefix))
                own = plain.removeprefix(prefix)
                value = stored[prefix][own].get_tensor(own).to(value.device, torch.float32)
            layer = name.removesuffix(f"{BASE}weight")
            if layer != name:
                product = whole(layer + B) @ whole(layer + A)
                value = value.to(product.device) + self.scaling * product
            yield plain, value


def _inject(model: PreTrainedModel, lora: LoraSpec) -> None:
    try:
        import peft
    except ImportError as error:
        raise LoraError("lora needs peft: pip install 'tercet[lora]', or leave lora out of the recipe") from error
    options: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha, "target_modules": _targets(model, lora)}
    config = peft.LoraConfig(lora_dropout=0.0, bias="none", **options)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; `adapt` draws again
        peft.inject_adapter_in_model(config, model)


def _targets(model: PreTrainedModel, lora: LoraSpec) -> list[str]:
    """Full names of the linear layers of the backbone that the recipe wants."""
    start = f"{model.base_model_prefix}."
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.startswith(start)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := sorted(set(lora.target_modules) - set(kinds)):
        raise LoraError(
            f"lora.target_modules: {type(model).__name__} has no linear layer {', '.join(unknown)} below its head; has "
            f"{', '.join(kinds)}"
        )
    return [name for name in linear if not lora.target_modules or name.rpartition(".")[2] in lora.target_modules]


def _models(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    """The outermost models with where they are: `("model.", ...)` in a Policy."""
    if isinstance(module, PreTrainedModel):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _models(child, f"{prefix}{name}.")


def _check_stored(prefix: str, model: PreTrainedModel) -> None:
    """The frozen weights must be in the source under their own names, for the export to read them exactly."""
    names = [name.replace(BASE, ".") for name, parameter in model.named_parameters() if not parameter.requires_grad]
    stored = _stored(Path(str(model.name_or_path)))
    if missing := [name for name in names if name not in stored]:
        raise LoraError(
            f"{model.name_or_path}: the weights of {prefix}{missing[0]} are stored under another name, so adapters in "
            'bfloat16 could not be merged exactly; use dtype = "float32"'
        )


def _stored(folder: Path) -> dict[str, Any]:
    """An open file for every tensor of a folder."""
    found: dict[str, Any] = {}
    for path in weight_files(folder):
        file = safe_open(path, framework="pt")
        found |= dict.fromkeys(file.keys(), file)
    return found
