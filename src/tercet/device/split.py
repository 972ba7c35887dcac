"""Tensor parallelism: each rank computes a part of every product, by the plan that transformers has for a model.

The plan names the linear layers. It leaves out the ends, whose vocabulary is cut, and layers such as norms, whose
weights every rank has whole. All weights become torch's tensors on one mesh, so that FSDP, the norm of gradients, the
optimiser and checkpoints see one kind; layers compute with plain ones, so that any of ours or theirs may.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from tercet.device.plans import STYLES, WHOLE, SplitError, Style

AXIS = "tensor"
WITH_ALL = Replicate()  # of what every rank has whole


def split(module: nn.Module, mesh: DeviceMesh) -> None:
    """Keep this rank's part of every model within a module; those on `meta` are cut before they have numbers."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # hints about its own speed
    for model in _models(module):
        plan: Mapping[str, str] = model.config.get_text_config().base_model_tp_plan  # type: ignore[union-attr, operator]
        ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        inner = (name for name, part in model.named_modules() if part not in ends)  # some plans name the ends, too
        wanted = {name: style for name in inner if (style := _style(name, plan))}
        _split_ends(model, mesh)
        for name, style in wanted.items():
            if style != WHOLE:
                _split_layer(name, model.get_submodule(name), mesh, STYLES[style])
        for name, part in model.named_modules():
            _repeat(part, mesh, Partial() if wanted.get(name) == WHOLE else Replicate())


def _models(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost models within a module."""
    if hasattr(module, "base_model_prefix"):
        yield module
        return
    for child in module.children():
        yield from _models(child)


def _style(name: str, plan: Mapping[str, str]) -> str | None:
    """What a plan says about a module; its names begin below the model's head."""
    general = re.sub(r"\.\d+", ".*", f".{name}")
    return next((style for pattern, style in plan.items() if general.endswith(f".{pattern}")), None)


def _split_layer(name: str, layer: nn.Module, mesh: DeviceMesh, style: Style) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if weight.shape[style.cut] % mesh.size():
        raise SplitError(f"placement.mesh.tensor = {mesh.size()} does not divide {name}, {tuple(weight.shape)}")
    for own, value in list(layer.named_parameters(recurse=False)):
        how = WITH_ALL if value.dim() <= style.cut else Shard(style.cut)
        layer.register_parameter(own, _placed(value, mesh, how))
    compute = _outputs if style.cut == 0 else _inputs
    layer.forward = partial(compute, layer, layer.forward, mesh, style.whole)


def _outputs(layer: nn.Module, forward: Callable[[Tensor], Tensor], mesh: DeviceMesh, whole: bool, x: Tensor) -> Tensor:
    """A part of the outputs from whole inputs, whose gradient is the sum of all parts'."""
    x = DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
    with _local(layer):
        found = forward(x)
    return _moved(found, mesh, Shard(-1), Replicate()) if whole else found


def _inputs(layer: nn.Module, forward: Callable[[Tensor], Tensor], mesh: DeviceMesh, whole: bool, x: Tensor) -> Tensor:
    """Whole outputs, the sum of what each rank makes of its part of the inputs; the bias is added once."""
    x = _moved(x, mesh, Replicate(), Shard(-1)) if whole else x
    with _local(layer) as own:
        bias, layer._parameters["bias"] = own.get("bias"), None
        found = _moved(forward(x), mesh, Partial(), Replicate())
    return found if bias is None else found + bias


def _moved(x: Tensor, mesh: DeviceMesh, source: Placement, target: Placement) -> Tensor:
    """What ranks have of a tensor, in another layout; its gradient goes the other way."""
    return DTensor.from_local(x, mesh, [source], run_check=False).redistribute(placements=[target]).to_local()


def _split_ends(model: Any, mesh: DeviceMesh) -> None:
    """Cut the vocabulary of embedding and head, if that divides; logits are not computed here (`part_of`)."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    even = embedding.weight.shape[0] % mesh.size() == 0
    _place(embedding, mesh, Shard(0) if even else WITH_ALL)
    embedding.forward = partial(_look_up if even else _with_whole, embedding, embedding.forward)
    if tied:
        head.weight = embedding.weight
    if head is not None:
        _place(head, mesh, Shard(0) if even else WITH_ALL)


def _repeat(module: nn.Module, mesh: DeviceMesh, gradient: Placement) -> None:
    """Let a layer that no plan cuts compute with whole weights, which become tensors on the mesh, too."""
    if _place(module, mesh, WITH_ALL):
        module.forward = partial(_with_whole, module, module.forward, gradient=gradient)


def _place(module: nn.Module, mesh: DeviceMesh, how: Placement) -> bool:
    """Make a module's own weights tensors on the mesh, those that are not yet; whether there were any."""
    plain = [(name, one) for name, one in module.named_parameters(recurse=False) if not isinstance(one, DTensor)]
    for name, value in plain:
        module.register_parameter(name, _placed(value, mesh, how))
    return bool(plain)


def _placed(value: Tensor, mesh: DeviceMesh, how: Placement) -> nn.Parameter:
    """Every rank has the whole value, or none has any of it yet: nothing travels."""
    return nn.Parameter(distribute_tensor(value.detach(), mesh, [how], src_data_rank=None), value.requires_grad)


def _with_whole(
    module: nn.Module, forward: Callable[..., Any], *inputs: Any, gradient: Placement = WITH_ALL, **named: Any
) -> Any:
    with _local(module, gradient):
        return forward(*inputs, **named)


@contextmanager
def _local(module: nn.Module, gradient: Placement | None = None) -> Iterator[dict[str, Tensor]]:
    """Inside, a module's own weights are plain tensors, this rank's parts; their gradients are parts as `gradient`."""
    before = dict(module._parameters)
    how = None if gradient is None else [gradient]
    cut: dict[str, Any] = {name: one for name, one in before.items() if isinstance(one, DTensor)}
    own = {name: one.to_local(grad_placements=how) for name, one in cut.items()}
    try:
        module._parameters.update(own)
        yield own
    finally:
        module._parameters.update(before)


def _look_up(embedding: nn.Embedding, forward: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Rows of the embedding: each rank finds those of its part, and all are added up."""
    weight: DTensor = embedding.weight  # type: ignore[assignment]
    mesh = weight.device_mesh
    size = weight.shape[0] // mesh.size()
    own = ids - size * mesh.get_local_rank()
    inside = (own >= 0) & (own < size)
    with _local(embedding):
        found = forward(own.where(inside, 0))
    return _moved(found * inside[..., None], mesh, Partial(), Replicate())


class TensorRanks:
    """The ranks that have other parts of a vocabulary; this one's begins at token `first`."""

    def __init__(self, mesh: DeviceMesh, size: int) -> None:
        self.group, self.first = mesh.get_group(), mesh.get_local_rank() * size

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the parts, in place."""
        dist.all_reduce(values, group=self.group)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Element-wise maximum over the parts, in place."""
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values


def part_of(weight: Tensor) -> tuple[Tensor, TensorRanks | None]:
    """The rows of a weight that this rank computes with, and the ranks that have the others, where it is cut."""
    if not isinstance(weight, DTensor) or weight.device_mesh.mesh_dim_names != (AXIS,):
        return weight, None
    local = weight.to_local()
    return local, TensorRanks(weight.device_mesh, len(local)) if weight.placements[0].is_shard() else None
