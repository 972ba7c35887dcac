"""Policy-gradient losses on tokens. Shape suffix: P predicted (trained) tokens of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clip(NamedTuple):
    """Bounds of the probability ratio: [1 - low, 1 + high]."""

    low: float = 0.2
    high: float = 0.2


class Surrogate(NamedTuple):
    """Per-token parts of the loss, each (P,): policy term, KL estimate, and whether the clip decided."""

    policy: Tensor
    kl: Tensor
    clipped: Tensor


def grpo(logps_P: Tensor, old_P: Tensor, reference_P: Tensor, advantages_P: Tensor, clip: Clip) -> Surrogate:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = pi / pi_old, and the k3 estimate of KL to the reference.

    `old_P` and `reference_P` are log-probabilities without gradient. Source: Shao et al. 2024, eq. 3-4 and tulu 3.1.
    """
    ratio = torch.exp(logps_P - old_P)
    plain = -advantages_P * ratio
    bounded = -advantages_P * ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    return Surrogate(torch.maximum(plain, bounded), k3(logps_P, reference_P), (bounded > plain).detach())


def k3(logps_P: Tensor, reference_P: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log pi - log ref clamped to +-40: non-negative, unbiased (Schulman 2020)."""
    difference = (logps_P - reference_P).clamp(-40.0, 40.0)
    return torch.exp(-difference) - 1.0 + difference
