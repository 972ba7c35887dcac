"""Activations in the host's memory: what layers save for backward leaves the card, and comes back when it is read."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

LEAST = 1 << 20  # bytes from which a tensor is worth the way


class HostCopy(NamedTuple):
    """A tensor's copy on the host, and where it belongs."""

    copy: Tensor
    device: torch.device


class HostStore:
    """Takes what is saved for backward. A card goes on computing while copies to the host are under way."""

    def __init__(self, device: torch.device, least: int = LEAST) -> None:
        self.device, self.least = device, least
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.bytes = 0  # that were taken

    def taking(self, resident: Set[int]) -> saved_tensors_hooks:
        """A context in which tensors are taken, but for views of the `resident` storages, which stay: the weights."""
        taken: dict[tuple[Any, ...], tuple[Tensor, HostCopy]] = {}  # holds tensors, so that no address is used twice

        def keep(tensor: Tensor) -> Tensor | HostCopy:
            if tensor.nbytes < self.least or tensor.untyped_storage().data_ptr() in resident:
                return tensor
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor._version)
            if key not in taken:
                taken[key] = tensor, self._sent(tensor)
            return taken[key][1]

        return saved_tensors_hooks(keep, self._back)

    def _sent(self, tensor: Tensor) -> HostCopy:
        copy = torch.empty_like(tensor, device="cpu", pin_memory=self.stream is not None)
        self.bytes += copy.nbytes
        if self.stream is None:
            return HostCopy(copy.copy_(tensor), tensor.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copy.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)
        return HostCopy(copy, tensor.device)

    def _back(self, kept: Tensor | HostCopy) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return kept.copy.to(kept.device, non_blocking=True)
