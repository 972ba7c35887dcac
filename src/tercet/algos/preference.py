"""Preference losses: pure functions on summed log-probabilities.

Notation as in the paper (§5): for a pair with chosen c and rejected r, `logps` are log pi(y | x) summed over the
trained tokens of an answer, `lengths` its number of trained tokens; a mean log-probability is their quotient. All
arguments have shape (B,) and fp32. Each loss is one number per pair, (B,). Without reference: simpo, orpo, nll.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

REFERENCE_FREE = ("simpo", "orpo")  # losses that read no reference model


class Sides(NamedTuple):
    """Log-probabilities and lengths of the chosen and the rejected answers; each (B,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


def losses_of(policy: Sides, reference: Sides, settings: Any, kl: Tensor | None = None) -> Tensor:
    """The losses (B,) that `settings.loss` names, one of those below, with its settings by name.

    `kl` () is the KL that kto measures against, from answers to other prompts of the step.
    """
    beta, smoothing = settings.beta, settings.label_smoothing
    match settings.loss:
        case "dpo":
            return dpo(policy, reference, beta=beta, label_smoothing=smoothing)
        case "dpo_norm":
            return dpo_norm(policy, reference, beta=beta, label_smoothing=smoothing)
        case "simpo":
            return simpo(policy, beta=beta, gamma_beta_ratio=settings.gamma_beta_ratio, label_smoothing=smoothing)
        case "ipo":
            return ipo(policy, reference, beta=beta)
        case "wpo":
            published = settings.wpo_weight == "published"
            return wpo(policy, reference, beta=beta, label_smoothing=smoothing, published=published)
        case "orpo":
            return orpo(policy, odds_weight=settings.odds_weight)
        case "kto" if kl is not None:
            weights = {name: getattr(settings, name) for name in ("desirable_weight", "undesirable_weight")}
            return kto(policy, reference, kl, beta=beta, **weights)
    raise ValueError(f"{settings.loss} is no preference loss, or the KL of its step is missing")


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


def ipo(policy: Sides, reference: Sides, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 with h the difference of the two log-ratios (Azar et al. 2023, eq. 17; beta is its tau).

    Log-ratios are averages per token: mean (log pi - log ref)(c) - mean (log pi - log ref)(r). The paper writes sums;
    TRL averages, and reports that the paper's authors did so too. The target 1 / (2 beta) is thus in nats per token.
    """
    chosen = (policy.chosen - reference.chosen) / policy.chosen_lengths
    rejected = (policy.rejected - reference.rejected) / policy.rejected_lengths
    return (chosen - rejected - 1.0 / (2.0 * beta)).square()


def wpo(
    policy: Sides, reference: Sides, *, beta: float, label_smoothing: float = 0.0, published: bool = False
) -> Tensor:
    """w * dpo with w = min(1, exp(mean log pi(c) + mean log pi(r))), without gradient (Zhou et al. 2024).

    The alignment of w by sum_v pi(v)^2 (the paper's eq. 2) is left out, as in Tülu 3's code. `published` is what that
    code computes: sums instead of means, so that w is nearly 0 for long answers, and a gradient through w too.
    """
    if published:
        log_weight = policy.chosen + policy.rejected
    else:
        log_weight = (policy.chosen / policy.chosen_lengths + policy.rejected / policy.rejected_lengths).detach()
    return log_weight.exp().clamp(max=1.0) * dpo(policy, reference, beta=beta, label_smoothing=label_smoothing)


def orpo(policy: Sides, *, odds_weight: float) -> Tensor:
    """nll - lambda log sigmoid(log odds(c) - log odds(r)) (Hong et al. 2024, eq. 4, 6, 7); lambda is `odds_weight`.

    odds = p / (1 - p) with log p the mean log-probability per token; nll is of the chosen answer's trained tokens
    (TRL's also counts the prompt, and averages over all tokens of a batch).
    """
    chosen = _log_odds(policy.chosen / policy.chosen_lengths)
    rejected = _log_odds(policy.rejected / policy.rejected_lengths)
    return nll(policy) - odds_weight * logsigmoid(chosen - rejected)


def kto(
    policy: Sides,
    reference: Sides,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """[w_d (1 - sigmoid(beta (h(c) - kl))) + w_u (1 - sigmoid(beta (kl - h(r))))] / 2 (Ethayarajh et al., eq. 7, 8).

    h = log pi - log ref of an answer. A pair is two examples, one desirable (chosen) and one undesirable (rejected);
    half their sum is their mean, so the mean over B pairs is TRL's mean over the 2B examples. `kl`, one number, is
    `mismatch_kl`; no gradient goes through it.
    """
    ratios = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    weights = desirable_weight, undesirable_weight
    chosen, rejected = kto_unpaired(*ratios, kl, beta=beta, weights=weights)
    return 0.5 * (chosen + rejected)


def kto_unpaired(
    good: Tensor, bad: Tensor, kl: Tensor, *, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """w_d (1 - sigmoid(beta (h - kl))) of good answers, w_u (1 - sigmoid(beta (kl - h))) of bad ones (eq. 7, 8).

    `good` (G,) and `bad` (B,) are the answers' h; so are the losses. `weights` are w_d and w_u; `kl` as in `kto`.
    """
    baseline = kl.detach()
    desirable, undesirable = weights  # below: 1 - sigmoid(x) = sigmoid(-x)
    return desirable * torch.sigmoid(beta * (baseline - good)), undesirable * torch.sigmoid(beta * (bad - baseline))


def mismatch_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's z0: max(0, mean (log pi - log ref)) of answers to other prompts, without gradient; (B,) both, () result."""
    return (policy - reference).mean().clamp(min=0.0).detach()


def nll(policy: Sides) -> Tensor:
    """-mean log pi(c), the term that anchors another loss to the chosen answers (Pang et al. 2024, eq. 1: RPO)."""
    return -policy.chosen / policy.chosen_lengths


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r(c) - r(r) - margin), the reward model's loss (paper §5.4.1; margin: Llama 2, eq. 2); all (B,)."""
    return -logsigmoid(chosen - rejected - margin)


def implicit_rewards(policy: Sides, reference: Sides, beta: float) -> tuple[Tensor, Tensor]:
    """beta (log pi - log ref) of chosen and rejected, without gradient."""
    with torch.no_grad():
        return beta * (policy.chosen - reference.chosen), beta * (policy.rejected - reference.rejected)


def _bradley_terry(logit: Tensor, label_smoothing: float) -> Tensor:
    loss = -(1.0 - label_smoothing) * logsigmoid(logit)
    return loss - label_smoothing * logsigmoid(-logit) if label_smoothing else loss


def _log_odds(logps: Tensor) -> Tensor:
    """log p - log(1 - p); p = 1, to which a sure answer may be rounded, counts as just below."""
    below = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    return below - torch.log(-torch.expm1(below))
