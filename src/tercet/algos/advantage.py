"""Advantages: within groups of rewards (GRPO), and by generalised advantage estimation (GAE) over tokens (PPO).

Shape suffixes: N prompts, G samples of each; L leaves (answers), T positions of the response window, P predicted tokens
of a flat batch. Tables (L, T) hold one answer per row; a mask (L, T) says which positions count, and all others are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards_NG: Tensor, kind: str = "standard", eps: float = 1e-8) -> Tensor:
    """A = R - mean(R) within the group, divided by the sample standard deviation + eps when `standard`.

    Source: GRPO (Shao et al. 2024), as Tülu 3.1 ran it; `centered` is Dr. GRPO's form (Liu et al. 2025);
    `leave_one_out` is R - mean(R of the others), that is G / (G - 1) times `centered` (RLOO, Ahmadian et al. 2024, §3).
    Rows of equal rewards give zeros.
    """
    centered = rewards_NG - rewards_NG.mean(dim=1, keepdim=True)
    if kind == "centered":
        return centered
    if kind == "leave_one_out":
        if (samples := rewards_NG.shape[1]) < 2:
            raise ValueError(f"leave_one_out needs at least 2 samples of a prompt, got {samples}")
        return centered * (samples / (samples - 1))
    return centered / (rewards_NG.std(dim=1, keepdim=True) + eps)


def table(values_P: Tensor, leaf_P: Tensor, num_leaves: int, window: int) -> tuple[Tensor, Tensor]:
    """Flat values, leaf after leaf, as `(values_LT, mask_LT)`, T = window; `values_LT[mask_LT]` is flat again."""
    counts_L = torch.bincount(leaf_P, minlength=num_leaves)
    if num_leaves and (longest := int(counts_L.max())) > window:
        raise ValueError(f"an answer has {longest} tokens, more than the window of {window}")
    mask_LT = torch.arange(window, device=leaf_P.device) < counts_L[:, None]
    values_LT = values_P.new_zeros(num_leaves, window)
    values_LT[mask_LT] = values_P
    return values_LT, mask_LT


def token_rewards(
    kl_LT: Tensor, scores_L: Tensor, mask_LT: Tensor, beta: float, *, after: bool = False
) -> tuple[Tensor, Tensor]:
    """r_t = -beta kl_t, plus the score at the answer's last token; returns `(rewards_LT, valued_LT)`.

    `kl` is k1 of the sampling policy to the reference, without gradient (Ouyang et al. 2022, eq. 2; Tülu 3, §6).
    With `after`, as in Tülu 3's own run, the score is paid one position past the last token if the window T has one,
    so T must be the response limit. `valued` is the mask with the score's position: what GAE and the value loss use.
    """
    positions = torch.arange(mask_LT.shape[1], device=mask_LT.device)
    end_L = (mask_LT * positions).amax(dim=1)  # not a count of tokens: a mask may have gaps (a tool's tokens)
    if after:
        end_L = (end_L + 1).clamp(max=mask_LT.shape[1] - 1)
    end_LT = positions == end_L[:, None]
    rewards_LT = torch.where(mask_LT, -beta * kl_LT, 0.0)
    return rewards_LT + torch.where(end_LT, scores_L[:, None], 0.0), mask_LT | end_LT


@torch.no_grad()
def gae(
    rewards_LT: Tensor,
    values_LT: Tensor,
    mask_LT: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_L: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (L, T): delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}.

    Returns are A + V. The state after an answer's last position has the value 0, or `last_L` (an answer cut by the
    limit). t + 1 is the next position under the mask, which skips a tool's tokens inside an answer.
    Source: Schulman et al. 2016, eq. 11-16; defaults of Tülu 3, Table 21.
    """
    advantages_LT = torch.zeros_like(values_LT)
    carried_L = torch.zeros_like(values_LT[:, 0])
    following_L = carried_L if last_L is None else last_L.to(values_LT)
    for t in reversed(range(values_LT.shape[1])):  # the sum over later deltas, one position at a time
        here_L = mask_LT[:, t]
        delta_L = rewards_LT[:, t] + gamma * following_L - values_LT[:, t]
        # Where the mask is off, both pass through unchanged: the next position under the mask is what counts as t + 1.
        carried_L = torch.where(here_L, delta_L + gamma * lam * carried_L, carried_L)
        following_L = torch.where(here_L, values_LT[:, t], following_L)
        advantages_LT[:, t] = torch.where(here_L, carried_L, 0.0)
    return advantages_LT, torch.where(mask_LT, advantages_LT + values_LT, 0.0)


def whiten(
    values: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    moments: tuple[float, float] | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the mask, any shape; with `shift_mean` off the mean is put back.

    The variance is the sample one (n - 1). `moments` are mean and variance to use instead of those of `values`, such as
    those over all ranks. Source: Ziegler et al. 2019, code; Tülu 3's PPO whitens advantages only.
    """
    chosen = values[mask]
    mean = chosen.mean() if moments is None else chosen.new_tensor(moments[0])
    centered = chosen - mean
    own = centered.square().sum() / max(1, len(chosen) - 1)
    scaled = centered * torch.rsqrt((own if moments is None else chosen.new_tensor(moments[1])) + eps)
    found = torch.zeros_like(values)
    found[mask] = scaled if shift_mean else scaled + mean
    return found
