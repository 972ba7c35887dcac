"""Preference losses: pure functions on summed log-probabilities.

Notation as in the paper (§5): for a pair with chosen c and rejected r, `logps` are log pi(y | x) summed over the
trained tokens of an answer, `lengths` its number of trained tokens. All arguments have shape (B,) and fp32.
Each function returns one loss per pair, (B,).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Sides(NamedTuple):
    """Log-probabilities and lengths of the chosen and the rejected answers; each (B,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


def dpo(policy: Sides, reference: Sides, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta [(log pi - log ref)(c) - (log pi - log ref)(r)]) (Rafailov et al. 2023, eq. 7)."""
    margin = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    return _bradley_terry(beta * margin, label_smoothing)


def dpo_norm(policy: Sides, reference: Sides, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO with each log-ratio divided by its answer's length (Tülu 3, §5.1.2)."""
    chosen = (policy.chosen - reference.chosen) / policy.chosen_lengths
    rejected = (policy.rejected - reference.rejected) / policy.rejected_lengths
    return _bradley_terry(beta * (chosen - rejected), label_smoothing)


def simpo(policy: Sides, *, beta: float, gamma_beta_ratio: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta (mean log pi(c) - mean log pi(r) - gamma/beta)) (Meng et al. 2024, eq. 6)."""
    margin = policy.chosen / policy.chosen_lengths - policy.rejected / policy.rejected_lengths
    return _bradley_terry(beta * (margin - gamma_beta_ratio), label_smoothing)


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r(c) - r(r)), the reward model's loss (paper §5.4.1); scores and result (B,)."""
    return -logsigmoid(chosen - rejected)


def implicit_rewards(policy: Sides, reference: Sides, beta: float) -> tuple[Tensor, Tensor]:
    """beta (log pi - log ref) of chosen and rejected, without gradient."""
    with torch.no_grad():
        return beta * (policy.chosen - reference.chosen), beta * (policy.rejected - reference.rejected)


def _bradley_terry(logit: Tensor, label_smoothing: float) -> Tensor:
    loss = -(1.0 - label_smoothing) * logsigmoid(logit)
    return loss - label_smoothing * logsigmoid(-logit) if label_smoothing else loss
