"""Advantages from the rewards of groups. Shape suffixes: N prompts, G samples of each."""

from __future__ import annotations

from torch import Tensor


def group_advantages(rewards_NG: Tensor, kind: str = "standard", eps: float = 1e-8) -> Tensor:
    """A = R - mean(R) within the group, divided by the sample standard deviation + eps when `standard`.

    Source: GRPO (Shao et al. 2024), as Tülu 3.1 ran it; `centered` is Dr. GRPO's form (Liu et al. 2025).
    Rows of equal rewards give zeros.
    """
    centered = rewards_NG - rewards_NG.mean(dim=1, keepdim=True)
    if kind == "centered":
        return centered
    return centered / (rewards_NG.std(dim=1, keepdim=True) + eps)


def zero_variance(rewards_NG: Tensor) -> Tensor:
    """Groups `(N,)` whose samples all have one reward: they teach nothing and are skipped."""
    return (rewards_NG == rewards_NG[:, :1]).all(dim=1)
