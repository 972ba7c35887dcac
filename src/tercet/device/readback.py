"""Numbers that come back from a card while it goes on working: the host reads them a step late and never waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Readback:
    """Tensors on their way into the host's pinned memory; without a card they are there at once."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.event: torch.cuda.Event | None = None
        if tensors[0].device.type != "cuda":
            self.host = [tensor.cpu() for tensor in tensors]
            return
        with torch.cuda.device(tensors[0].device):
            pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
            self.host = [to.copy_(tensor, non_blocking=True) for to, tensor in zip(pinned, tensors, strict=True)]
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> list[list[float]]:
        """The numbers of each tensor `(B,)`, once they have arrived; integers stay integers."""
        if self.event is not None:
            self.event.synchronize()
        return [tensor.tolist() for tensor in self.host]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`. The card's later work comes after the copy, and the host does not wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
