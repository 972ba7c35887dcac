"""Copies to a card that run beside its work: from pinned memory, on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
Move = Callable[[Tensor], Tensor]


class Sent(NamedTuple):
    """Tensors that are being copied to a card, and the event of their arrival."""

    tensors: list[Tensor]
    arrived: torch.cuda.Event


class Upload:
    """One thread sends, another receives: the card, not the host, waits for copies under way."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, moved: Callable[[Move], Made]) -> tuple[Made, Sent]:
        """What `moved` makes of something, given the function that copies a tensor from the host's memory."""
        sent: list[Tensor] = []

        def move(tensor: Tensor) -> Tensor:
            sent.append(tensor.pin_memory().to(self.device, non_blocking=True))
            return sent[-1]

        with torch.cuda.stream(self.stream):
            made = moved(move)
            arrived = torch.cuda.Event()
            arrived.record()
        return made, Sent(sent, arrived)

    def receive(self, sent: Sent) -> None:
        """Let the card's work from here on come after the copies, and their memory live as long as that work."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(sent.arrived)
        for tensor in sent.tensors:
            tensor.record_stream(current)
