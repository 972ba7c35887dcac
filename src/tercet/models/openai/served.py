"""The models of a server: their names, tokenizers and sizes at once, their weights when they are asked.

Stages of one run often hold equal weights (what an adapter did not touch): these are kept in memory once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tercet.models.chat import Chat, open_chat
from tercet.models.config_file import read_config_file
from tercet.models.generate import LocalGenerator
from tercet.models.opening import context_length


class ServedModel:
    """One model under the names that clients know."""

    def __init__(
        self, names: Sequence[str], chat: Callable[[], Chat], context: int, opened: Callable[[], LocalGenerator]
    ) -> None:
        """`chat` and `opened` are called when they are first needed, `opened` again after the weights were let go."""
        self.names, self.context, self._chat, self._opened = tuple(names), context, chat, opened
        self._begun: LocalGenerator | None = None

    @classmethod
    def at(cls, names: Sequence[str], folder: Path, dtype: str, rows: int = 16) -> Self:
        """The model in a folder."""
        context = context_length(read_config_file(folder))
        return cls(names, lambda: open_chat(folder), context, lambda: LocalGenerator.open(folder, dtype, rows=rows))

    @classmethod
    def of(cls, generator: LocalGenerator, *names: str) -> Self:
        """A model that is open already."""
        return cls(names, lambda: generator.chat, generator.context, lambda: generator)

    @property
    def name(self) -> str:
        """The first of its names, which stands for it."""
        return self.names[0]

    @cached_property
    def chat(self) -> Chat:
        """Its tokenizer and template."""
        return self._chat()

    def begin(self, generator: LocalGenerator) -> None:
        """Use these weights for the first time that they are needed."""
        self._begun, self.chat = generator, generator.chat

    def opened(self) -> LocalGenerator:
        """Its weights."""
        found, self._begun = self._begun or self._opened(), None
        return found


def share(model: LocalGenerator, others: Iterable[LocalGenerator]) -> int:
    """Let a model use the weights of others where they are equal; the bytes that this saves."""
    known: dict[bytes, Tensor] = {}
    for other in others:
        for weight in other.policy.parameters():
            known.setdefault(_digest(weight), weight.data)
    saved = 0
    for weight in model.policy.parameters():
        found = known.get(_digest(weight))
        if found is not None and found.data_ptr() != weight.data_ptr() and torch.equal(found, weight.data):
            saved += weight.numel() * weight.element_size()
            weight.data = found
    return saved


def _digest(weight: Tensor) -> bytes:
    """Equal for equal weights, and quickly told: of a few of their numbers; who is like is compared in full."""
    few = weight.detach().flatten()[:: max(1, weight.numel() // 256)].float().cpu()
    return hashlib.sha256(f"{weight.shape}{weight.dtype}{weight.device}{few.tolist()}".encode()).digest()
