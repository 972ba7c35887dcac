"""What reading and writing cost: tokens, operations and seconds, and how near to the machine's own rate they came."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from tercet.device.speed import linear_shapes, yardstick
from tercet.models.flops import ModelSize, forward_flops, model_size
from tercet.models.policy import Policy


@dataclass
class ComputeAccount:
    """A generator's account since it was last `taken`."""

    policy: Policy
    size: ModelSize
    tokens: int = 0  # computed: prompts once, and every token that was written
    flops: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, policy: Policy) -> ComputeAccount:
        """An empty account."""
        return cls(policy, model_size(policy))

    def add(self, tokens: int, attended: float, predicted: int) -> None:
        """A forward pass: see `tercet.models.flops.forward_flops`."""
        self.tokens += tokens
        self.flops += forward_flops(self.size, tokens, attended, predicted)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the seconds inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def taken(self) -> dict[str, float]:
        """Tokens a second and efficiency since the last call, as metrics; nothing where nothing was done."""
        tokens, flops, seconds = self.tokens, self.flops, self.seconds
        self.tokens, self.flops, self.seconds = 0, 0.0, 0.0
        if not seconds or not tokens:
            return {}
        found = {"tokens_per_second": tokens / seconds}
        model: nn.Module = self.policy.model
        head = self.policy.head()
        if rate := yardstick(linear_shapes(model), head.dtype, head.device):
            found["efficiency"] = flops / (seconds * rate)
        return found
