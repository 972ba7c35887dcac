"""Low-rank adapters: every adapted layer computes W x + (alpha / rank) B A x, and only A and B are trained.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The layers are peft's (an extra); W is frozen, in the compute
precision or in four bits. What a stage leaves, and what engines are sent, is a plain model: W of the source, in fp32,
plus the product; A and B stand beside it as a PEFT folder (`tercet.models.adapter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tercet.device.four_bits import quantize_layers
from tercet.device.stored import whole_of
from tercet.models.adapter import Adapter, read_adapter, write_adapter
from tercet.models.backbone import backbone
from tercet.models.classes import backbone_name
from tercet.models.hf_folder import load_config, load_model, meta_model, parameters_of
from tercet.models.unread import places
from tercet.recipe import LoraSpec

CPU = torch.device("cpu")
A, B, BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


class LoraError(ValueError):
    """Adapters that cannot be made, or not for this model."""


def adapt(module: nn.Module, lora: LoraSpec, dtype: torch.dtype, seed: int, device: torch.device = CPU) -> Merged:
    """Give every model in `module` adapters, in place; the rest is frozen, except the head of a scorer.

    A is drawn from `seed` (Kaiming uniform, as in the paper's code), B is zero: at first nothing changes. Both come
    from the folder `lora.adapter` where there is one. With `lora.quantize` the adapted layers keep their frozen weights
    in four bits, on `device`. Returns what makes a plain model of it again.
    """
    models = list(_models(module))
    given = read_adapter(Path(lora.adapter)) if lora.adapter else None
    lora = _as_given(lora, given) if given else lora
    for _, model in models:
        layers = _layers(model, given) if given else _targets(model, lora)
        if lora.quantize:
            quantize_layers(model, layers, lora.quantize, dtype=dtype, device=device)
        _inject(model, lora, layers)
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta and name.endswith((A, B)):  # beside a layer whose numbers are still on the disk
                owner, _, own = name.rpartition(".")
                setattr(model.get_submodule(owner), own, nn.Parameter(torch.zeros(parameter.shape)))
        output = model.get_output_embeddings()
        known = [*backbone(model).parameters(), *(output.parameters() if output is not None else ())]
        frozen = set(map(id, known))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(id(parameter) not in frozen or name.endswith((A, B)))
    source = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith(A):
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=source)
    if given:
        _load(models, given)
    sources = {prefix: Path(str(model.name_or_path)) for prefix, model in models}
    return Merged(module, {} if dtype == torch.float32 and not lora.quantize else sources, lora)


class Merged:
    """Names and fp32 tensors of the plain models inside a module with adapters (`tercet.device.shard.Merge`)."""

    def __init__(self, module: nn.Module, sources: dict[str, Path], lora: LoraSpec) -> None:
        """`sources`: folders of frozen weights, by the prefix of their names, where the compute precision rounds."""
        self.names = [name for name, _ in module.named_parameters() if not name.endswith((A, B))]
        self.frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        self.sources, self.scaling, self.lora = sources, lora.alpha / lora.r, lora

    def plain_names(self, part: str) -> list[str]:
        """What `__call__` gives has these names."""
        return [name.replace(BASE, ".") for name in self.names if name.startswith(part)]

    def __call__(self, whole: Callable[[str], Tensor], part: str) -> Iterator[tuple[str, Tensor]]:
        """Whatever begins with `part`; `whole` gives parameters by their name in the module. All ranks must iterate."""
        stored = {prefix: _stored(folder, self._own(prefix)) for prefix, folder in self.sources.items()}
        for name in (name for name in self.names if name.startswith(part)):
            plain, value = name.replace(BASE, "."), whole(name)
            if value.dtype != torch.float32:
                prefix = next(prefix for prefix in stored if name.startswith(prefix))
                own = plain.removeprefix(prefix)
                value = stored[prefix](own).to(value.device, torch.float32)
            layer = name.removesuffix(f"{BASE}weight")
            if layer != name:
                product = whole(layer + B) @ whole(layer + A)
                value = value.to(product.device) + self.scaling * product
            yield plain, value

    def write_factors(self, folder: Path, trained: dict[str, Tensor]) -> None:
        """Write what was trained, by its names within one model, as a PEFT folder."""
        plain = {name.replace(".default.weight", ".weight"): value for name, value in trained.items()}
        write_adapter(folder, self.lora.r, self.lora.alpha, plain)

    def _own(self, prefix: str) -> list[str]:
        """The plain names of what is frozen in one model."""
        return [name.replace(BASE, ".").removeprefix(prefix) for name in self.frozen if name.startswith(prefix)]


def _as_given(lora: LoraSpec, given: Adapter) -> LoraSpec:
    """Rank and alpha of the adapter that training goes on with; it must have one of each."""
    ranks = {(len(factors.a), factors.scaling) for factors in given.values()}
    if len(ranks) > 1:
        raise LoraError(
            f"lora.adapter = {lora.adapter!r}: its layers differ in rank or scaling, and training goes on with one of "
            'each; merge it instead: `adapter = "…"` in [base]'
        )
    [(rank, scaling)] = ranks
    return lora.model_copy(update={"r": rank, "alpha": scaling * rank})


def _layers(model: PreTrainedModel, given: Adapter) -> list[str]:
    """The layers of the adapter, all of which the model must have."""
    for name, factors in given.items():
        layer = dict(model.named_modules()).get(name)
        shape = (factors.b.shape[0], factors.a.shape[1])
        if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape:
            raise LoraError(
                f"lora.adapter: it adapts {name} with shape {shape}, which {type(model).__name__} in "
                f"{model.name_or_path} does not have; the adapter was trained on another model"
            )
    return list(given)


def _load(models: list[tuple[str, PreTrainedModel]], given: Adapter) -> None:
    """Put the factors of the adapter into the models' layers."""
    for _, model in models:
        parameters = dict(model.named_parameters())
        for name, factors in given.items():
            for side, value in ((A, factors.a), (B, factors.b)):
                parameters[name + side].data.copy_(value)


def _inject(model: PreTrainedModel, lora: LoraSpec, layers: list[str]) -> None:
    try:
        import peft
    except ImportError as error:
        raise LoraError("lora needs peft: pip install 'tercet[lora]', or leave lora out of the recipe") from error
    options: dict[str, Any] = {"r": lora.r, "lora_alpha": lora.alpha, "target_modules": layers}
    config = peft.LoraConfig(lora_dropout=0.0, bias="none", **options)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; `adapt` draws again
        peft.inject_adapter_in_model(config, model)


def _targets(model: PreTrainedModel, lora: LoraSpec) -> list[str]:
    """Full names of the linear layers of the backbone that the recipe wants."""
    start = f"{backbone_name(model)}."
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.startswith(start)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    if unknown := sorted(set(lora.target_modules) - set(kinds)):
        raise LoraError(
            f"lora.target_modules: {type(model).__name__} has no linear layer {', '.join(unknown)} below its head; has "
            f"{', '.join(kinds)}"
        )
    if not linear:
        raise LoraError(f"lora: {type(model).__name__} has no linear layers below its head; train it without lora")
    return [name for name in linear if not lora.target_modules or name.rpartition(".")[2] in lora.target_modules]


def _models(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    """The outermost models with where they are: `("model.", ...)` in a Policy."""
    if isinstance(module, PreTrainedModel):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _models(child, f"{prefix}{name}.")


def _stored(folder: Path, names: list[str]) -> Callable[[str], Tensor]:
    """The tensors of a folder by their names in memory; all of it is read where its own names are older ones."""
    model = meta_model(load_config(folder))
    found, shapes = places(model, folder), {name: value.shape for name, value in parameters_of(model).items()}
    if all(name in found for name in names):
        return lambda name: whole_of(shapes[name], found[name])
    return load_model(folder, torch.float32).state_dict().__getitem__
