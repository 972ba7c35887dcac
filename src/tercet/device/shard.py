"""fp32 master weights behind a compute copy, on one rank or sharded over many with FSDP2.

On one rank the forward pass runs on a copy in the compute precision; its gradients are added to fp32 gradients of the
master weights as soon as they appear. These and the optimiser's state may live in the host's memory. On several ranks
`fully_shard` keeps the same contract: fp32 shards, compute-precision parameters during forward and backward, fp32
reduction. Frozen parameters have no master weights and stay in the compute precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from tercet.device.axes import Axes
from tercet.device.context import ATTRIBUTE, ContextRanks
from tercet.device.four_bits import num_weights
from tercet.device.mesh import Mesh, wait
from tercet.device.split import split
from tercet.device.stored import read_stored
from tercet.kernels.native import available, call

Named = Iterator[tuple[str, Tensor]]


class Merge(Protocol):
    """What makes a plain model of one with adapters."""

    def plain_names(self, part: str) -> list[str]:
        """The names of the plain model's parameters that begin with `part`."""

    def __call__(self, whole: Callable[[str], Tensor], part: str) -> Named:
        """From a function that gives a parameter's whole value by name, and a part, to names and tensors."""


class Trainable:
    """A module being trained: `module` computes, `master_weights` are the weights that the optimiser changes."""

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        mesh: Mesh,
        *,
        host: torch.device | None = None,
        merge: Merge | None = None,
    ) -> None:
        """`module` comes in fp32; master weights live on `host` if given; `merge` makes a model with adapters plain."""
        self.mesh, self.dtype, self.module, self.host, self.merge = mesh, dtype, module, host, merge
        self.pieces: list[tuple[nn.Parameter, Tensor]] = []  # gradients on their way to the host
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.copied = mesh.size == 1 and (dtype != torch.float32 or host is not None)
        for frozen in (p for p in module.parameters() if not p.requires_grad and p.is_floating_point()):
            frozen.data = frozen.data.to(dtype)
        if mesh.size > 1:
            _shard(module, dtype, mesh, host)
            self.master_weights = self._trained()
        elif self.copied:
            self.master_weights = [nn.Parameter(self._master(p)) for p in self._trained()]
            module.to(mesh.device, dtype)
            for work, master in zip(self._trained(), self.master_weights, strict=True):
                work.register_post_accumulate_grad_hook(partial(self._hand_over, master))
        else:
            module.to(mesh.device)
            self.master_weights = self._trained()
        self.known = dict(module.named_parameters()) | dict(zip(self.names, self.master_weights, strict=True))

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`; FSDP averages over ranks, so the sum the loop wants is put back."""
        self.backward_from([loss * _axes(self.mesh).num_shares if self.mesh.size > 1 else loss])

    def reduce_now(self, now: bool, outside: bool = False) -> None:
        """Whether the gradients of the next backward pass are summed over groups of ranks, or wait for a later one.

        Those `outside` of all layers can wait only where each pass of a step has gradients of the same parameters.
        """
        if self.mesh.axes and self.mesh.axes.shape.replicate > 1:
            self.module.set_requires_all_reduce(now)  # type: ignore[operator]
            self.module.set_requires_all_reduce(now or outside, recurse=False)  # type: ignore[operator]

    def backward_from(self, outputs: Sequence[Tensor], slopes: Sequence[Tensor] | None = None) -> None:
        """Add the gradient that these outputs bring whose own gradients are `slopes`."""
        torch.autograd.backward(outputs, slopes)
        if self.pieces:
            wait(self.mesh.device)
            for master, piece in self.pieces:
                _add(master, piece)
            self.pieces.clear()

    def published(self) -> None:
        """Make the compute copy equal the master weights again."""
        if self.copied:
            with torch.no_grad():
                for work, master in zip(self._trained(), self.master_weights, strict=True):
                    work.copy_(master, non_blocking=True)

    def grad_norm(self, part: str = "") -> Tensor:
        """Norm () of all gradients over all ranks, of the parameters whose names begin with `part`; on their device."""
        norm = nn.utils.get_total_norm(self._grads(part))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def scale_grads(self, factor: float, part: str = "") -> None:
        """Multiply the gradients of a part."""
        if grads := self._grads(part):
            torch._foreach_mul_(grads, factor)

    def part(self, name: str = "") -> list[nn.Parameter]:
        """The master weights of a submodule; of all when `name` is empty."""
        return [master for own, master in zip(self.names, self.master_weights, strict=True) if own.startswith(name)]

    @property
    def flops(self) -> float:
        """FLOPs of one token, forward and backward: two products per weight to compute, one less where it is frozen."""
        trained = sum(master.numel() for master in self.master_weights)
        whole = sum(num_weights(parameter) for parameter in self.module.parameters())
        return 6.0 * trained + 4.0 * (whole - trained)

    def full_state(self, part: str = "", dtype: torch.dtype | None = None) -> Named:
        """Names (within `part`) and whole weights of a plain model, adapters merged; every rank must iterate.

        In fp32, or cast to `dtype` before they are gathered where nothing is merged.
        """
        if self.merge is None:
            return ((name.removeprefix(part), self.whole(name, dtype)) for name in self.known if name.startswith(part))
        return ((name.removeprefix(part), value) for name, value in self.merge(self.whole, part))

    def plain_names(self, part: str = "") -> list[str]:
        """The names of `full_state`."""
        names = list(self.known) if self.merge is None else self.merge.plain_names(part)
        return [name.removeprefix(part) for name in names if name.startswith(part)]

    def state(self) -> Named:
        """Names and fp32 weights of a plain model: of several ranks the shares, unless adapters must be merged."""
        own = ((name, value.detach()) for name, value in self.known.items())
        return own if self.merge is None else self.full_state()

    def trained_state(self, part: str = "") -> Named:
        """Names (within `part`) and whole fp32 values of what is trained, as it is trained; every rank must iterate."""
        return ((name.removeprefix(part), self.whole(name)) for name in self.names if name.startswith(part))

    def whole(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A master weight, or a frozen parameter in the compute precision, gathered from all ranks."""
        value = self.known[name].detach().to(dtype=dtype)
        return value.full_tensor() if hasattr(value, "full_tensor") else value

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def _grads(self, part: str) -> list[Tensor]:
        return [master.grad for master in self.part(part) if master.grad is not None]

    def _master(self, parameter: Tensor) -> Tensor:
        if self.host is None:
            return parameter.detach().to(self.mesh.device, copy=True)
        return self._pinned(parameter, torch.float32).copy_(parameter.detach())

    def _pinned(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Empty memory of the host that the card can read and write by itself."""
        return torch.empty(like.shape, dtype=dtype, device=self.host, pin_memory=self.mesh.device.type == "cuda")

    def _hand_over(self, master: nn.Parameter, work: Tensor) -> None:
        """Add a gradient to its master weight's as soon as it appears, or start its copy to the host."""
        if work.grad is None:
            return
        if self.host is None:
            _add(master, work.grad)
        else:
            self.pieces.append((master, self._pinned(work, work.dtype).copy_(work.grad, non_blocking=True)))
        work.grad = None


def _add(master: nn.Parameter, grad: Tensor) -> None:
    if master.grad is None:
        master.grad = grad.float()
    elif available(grad) and grad.dtype == torch.bfloat16 and grad.is_contiguous():
        call("add_bf16", None, master.grad, grad, grad.numel())  # torch would make a copy in float first
    else:
        master.grad.add_(grad)


def share_frozen(module: nn.Module, dtype: torch.dtype, mesh: Mesh, kept: torch.dtype | None = None) -> None:
    """Let every rank keep a share of a module that is only read, in the precision it computes in or in `kept`."""
    _shard(module.requires_grad_(False).to(kept or dtype), dtype, mesh, None)


def _shard(module: nn.Module, dtype: torch.dtype, mesh: Mesh, host: torch.device | None) -> None:
    """Share a module among the ranks; what is on `meta` gets its numbers now, on each rank its share alone."""
    axes = _axes(mesh)
    _divide(module, axes)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": axes.shares, "mp_policy": policy}
    options["offload_policy"] = CPUOffloadPolicy() if host else OffloadPolicy()
    trained = any(p.requires_grad for p in module.parameters())
    for chain in _chains(module):
        for layer in chain:  # backward begins with the last one: what it needs is still there
            fully_shard(layer, **options, reshard_after_forward=not trained or layer is not chain[-1])
        for layer, following in pairwise(chain):  # shares travel while the layer before computes
            layer.set_modules_to_forward_prefetch([following])
            following.set_modules_to_backward_prefetch([layer])
    fully_shard(module, **options, reshard_after_forward=None if trained else True)
    if hasattr(module, "run"):  # parts of it run without its forward method, too
        register_fsdp_forward_method(module, "run")
    read_stored(module, host or mesh.device)


def _divide(module: nn.Module, axes: Axes) -> None:
    """Cut what ranks compute of one row: its products, its tokens."""
    if axes.tensor is not None:
        split(module, axes.tensor)
    if axes.context is not None:
        for part in (part for part in module.modules() if hasattr(part, ATTRIBUTE)):
            setattr(part, ATTRIBUTE, ContextRanks(axes.context))


def _chains(module: nn.Module) -> Iterator[list[Any]]:
    """The outermost lists of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child):
            yield list(child)
        else:
            yield from _chains(child)


def _axes(mesh: Mesh) -> Axes:
    assert mesh.axes, "several ranks have axes"
    return mesh.axes
