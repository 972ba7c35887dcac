"""Policy-gradient losses on tokens. Shape suffixes: P predicted (trained) tokens of a batch, L leaves (answers).

Each loss is per token, (P,), and reduced in `train.loop`: variants of GRPO differ in ratio, clip, advantage, reduction.
GRPO itself is `ppo` with group advantages plus beta times `k3` (Shao et al. 2024, eq. 3-4, and Tülu 3.1).
`dapo` is `ppo` with Clip(0.2, 0.28) and token_mean (Yu et al. 2025, eq. 8), `dr_grpo` is `ppo` with centered advantages
and the constant reduction (Liu et al. 2025). Old and reference log-probabilities come without gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clip(NamedTuple):
    """Bounds of the probability ratio: [1 - low, 1 + high]."""

    low: float = 0.2
    high: float = 0.2


class Clipped(NamedTuple):
    """A loss per token and whether the clip decided, each (P,)."""

    losses: Tensor
    clipped: Tensor


def ppo(logps_P: Tensor, old_P: Tensor, advantages_P: Tensor, clip: Clip) -> Clipped:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = pi / pi_old (Schulman et al. 2017, eq. 7)."""
    return _clipped(torch.exp(logps_P - old_P), advantages_P, clip)


def gspo(
    logps_P: Tensor, old_P: Tensor, advantages_P: Tensor, leaf_P: Tensor, clip: Clip, counts_L: Tensor | None = None
) -> Clipped:
    """`ppo` with one ratio per answer, s = exp(mean over its tokens of log pi - log pi_old), given to each token.

    `leaf_P` is the answer of each token, `counts_L` how many tokens each answer has (when absent it is counted here,
    which waits for a GPU); the paper's reduction is sequence_mean. Source: Zheng et al. 2025, eq. 5 and 7.
    """
    counts_L = torch.bincount(leaf_P) if counts_L is None else counts_L
    sums_L = logps_P.new_zeros(len(counts_L)).index_add(0, leaf_P, logps_P - old_P)
    return _clipped(torch.exp(sums_L / counts_L.clamp(min=1))[leaf_P], advantages_P, clip)


def cispo(logps_P: Tensor, old_P: Tensor, advantages_P: Tensor, clip: Clip) -> Clipped:
    """-A sg[clip(rho, 1 - low, 1 + high)] log pi: the weight is clipped, every token keeps its gradient.

    Clip(low=1) has no lower bound, as published. Source: MiniMax-M1 2025, §3.1, eq. 4-5.
    """
    ratio = torch.exp(logps_P.detach() - old_P)
    weight = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    return Clipped(-advantages_P * weight * logps_P, weight != ratio)


def ppo_value(values_P: Tensor, old_P: Tensor, returns_P: Tensor, clip: float = 0.2) -> Clipped:
    """max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2; Tülu 3 multiplies it by 0.1.

    `old_P` are the values of the rollout, `returns_P` of `gae`. Source: Engstrom et al. 2020, §3; Tülu 3, Table 21.
    """
    step_P = values_P - old_P
    plain = (values_P - returns_P).square()
    bounded = (old_P + step_P.clamp(-clip, clip) - returns_P).square()
    clipped_P = (step_P.abs() > clip) & (bounded > plain)  # within the clip they differ by rounding
    return Clipped(0.5 * torch.maximum(plain, bounded), clipped_P)


def truncated_weights(trainer_P: Tensor, generator_P: Tensor, cap: float = 2.0) -> Tensor:
    """min(pi_trainer / pi_generator, cap) of the sampled tokens, without gradient (Yao et al. 2025).

    Both are of the weights that sampled. Multiplies the policy loss, not the KL term.
    """
    return torch.exp(trainer_P.detach() - generator_P).clamp(max=cap)


def k1(logps_P: Tensor, reference_P: Tensor) -> Tensor:
    """d = log pi - log ref: unbiased (Schulman 2020). Its gradient has mean 0, so it is of use only in the reward."""
    return logps_P - reference_P


def k2(logps_P: Tensor, reference_P: Tensor) -> Tensor:
    """d^2 / 2 with d = log pi - log ref: non-negative, biased, low variance (Schulman 2020)."""
    return 0.5 * (logps_P - reference_P).square()


def k3(logps_P: Tensor, reference_P: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log pi - log ref clamped to +-40: non-negative, unbiased (Schulman 2020)."""
    difference = (logps_P - reference_P).clamp(-40.0, 40.0)
    return torch.exp(-difference) - 1.0 + difference


def _clipped(ratio_P: Tensor, advantages_P: Tensor, clip: Clip) -> Clipped:
    plain = -advantages_P * ratio_P
    bounded = -advantages_P * ratio_P.clamp(1.0 - clip.low, 1.0 + clip.high)
    return Clipped(torch.maximum(plain, bounded), (bounded > plain).detach())
