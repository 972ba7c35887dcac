"""fp32 master weights behind a compute copy, on one rank or sharded over many with FSDP2.

On one rank the forward pass runs on a copy in the compute precision; its gradients are added to fp32 gradients of the
masters as soon as they appear. On several ranks `fully_shard` keeps the same contract: fp32 shards, compute-precision
parameters during forward and backward, fp32 reduction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tercet.device.mesh import Mesh


class Trainable:
    """A module being trained: `module` computes, `masters` are what the optimiser changes."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, mesh: Mesh) -> None:
        """`module` comes in fp32."""
        self.mesh, self.dtype, self.module = mesh, dtype, module.to(mesh.device)
        self.names = [name for name, _ in module.named_parameters()]
        self.copied = mesh.size == 1 and dtype != torch.float32
        if mesh.size > 1:
            _shard(self.module, dtype)
            self.masters: list[nn.Parameter] = list(self.module.parameters())
        elif self.copied:
            self.masters = [nn.Parameter(p.detach().clone()) for p in self.module.parameters()]
            self.module.to(dtype)
            for work, master in zip(self.module.parameters(), self.masters, strict=True):
                work.register_post_accumulate_grad_hook(_hand_over(master))
        else:
            self.masters = list(self.module.parameters())

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`; FSDP averages over ranks, so the sum the loop wants is put back."""
        (loss * self.mesh.size if self.mesh.size > 1 else loss).backward()

    def published(self) -> None:
        """Make the compute copy equal the masters again."""
        if self.copied:
            with torch.no_grad():
                for work, master in zip(self.module.parameters(), self.masters, strict=True):
                    work.copy_(master)

    def grad_norm(self, part: str = "") -> float:
        """Norm of all gradients over all ranks, of the parameters whose names begin with `part`."""
        norm = nn.utils.get_total_norm(self._grads(part))
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def scale_grads(self, factor: float, part: str = "") -> None:
        """Multiply the gradients of a part."""
        if grads := self._grads(part):
            torch._foreach_mul_(grads, factor)

    def part(self, name: str = "") -> list[nn.Parameter]:
        """The masters of a submodule; of all when `name` is empty."""
        return [master for own, master in zip(self.names, self.masters, strict=True) if own.startswith(name)]

    def _grads(self, part: str) -> list[Tensor]:
        return [master.grad for master in self.part(part) if master.grad is not None]

    def full_state(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole fp32 masters, one at a time; every rank must iterate."""
        for name, master in zip(self.names, self.masters, strict=True):
            value = master.detach()
            yield name, value.full_tensor() if hasattr(value, "full_tensor") else value

    def load_masters(self, state: dict[str, Tensor]) -> None:
        """Set masters from tensors of the same (sharded or whole) form."""
        with torch.no_grad():
            for name, master in zip(self.names, self.masters, strict=True):
                master.copy_(state[name])
        self.published()


def _hand_over(master: nn.Parameter):  # type: ignore[no-untyped-def]  # torch's hook type is not public
    def hook(work: Tensor) -> None:
        if work.grad is None:
            return
        if master.grad is None:
            master.grad = work.grad.float()
        else:
            master.grad.add_(work.grad)
        work.grad = None

    return hook


def _shard(module: nn.Module, dtype: torch.dtype) -> None:
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layers in (m for m in module.modules() if isinstance(m, nn.ModuleList)):
        for layer in layers:
            fully_shard(layer, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
