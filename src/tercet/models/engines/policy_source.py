"""What a trainer sends to engines: its weights under the names of Hugging Face folders, one whole tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tercet.device.shard import Trainable
from tercet.models.base_layout import BaseLayout
from tercet.models.engines.buckets import Described

PREFIX = "model."  # of a Policy's parameters, before the names that Hugging Face folders use


class PolicySource:
    """Weights as vLLM's weight transfer wants them (its `WeightSource`): metadata, and iteration in that order.

    Iteration gathers one tensor after another from all ranks that share it, so every rank must iterate, to the end.
    Adapters are merged and tied copies left out, as in an export.
    """

    def __init__(self, trainable: Trainable, part: str, config: PretrainedConfig, dtype: torch.dtype) -> None:
        """`part` is where the policy's parameters begin in `trainable`; `dtype` is what the engine computes in."""
        self.trainable, self.dtype = trainable, dtype
        self.prefix = part + PREFIX
        self.layout = BaseLayout(config)
        self._pass: Iterator[tuple[str, Tensor]] | None = iter(())

    def metadata(self) -> list[Described]:
        """What iteration will give; nothing is gathered for it."""
        held = self.layout.held
        own = ((name, held[name]) for name in self.trainable.plain_names(self.prefix) if name in held)
        return [Described(name, self.dtype, tuple(one.shape)) for name, one in self.layout.stored(own)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = self._weights()
        return self._pass

    def start(self) -> None:
        """All ranks are about to iterate."""
        self._pass = None

    def finish(self) -> None:
        """Take part to the end where that broke off, as the other ranks wait for this one."""
        for _ in iter(self) if self._pass is None else self._pass:
            pass

    def shares(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's part of every weight, as it is trained, by the names of `metadata`; where `lies_as_stored`."""
        known = ((name.removeprefix(self.prefix), value) for name, value in self.trainable.known.items())
        return ((name, value.detach()) for name, value in known if name in self.layout.held)

    @property
    def lies_as_stored(self) -> bool:
        """Whether the weights that are trained are those that are sent: no adapters, no experts stored otherwise."""
        return self.trainable.merge is None and not self.layout.bundle

    @torch.no_grad()
    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        whole = self.trainable.full_state(self.prefix, self.dtype)
        own = ((name, value) for name, value in whole if name in self.layout.held)
        for name, value in self.layout.stored(own):
            yield name, value.to(self.dtype)
