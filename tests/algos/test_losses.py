"""Every loss against its formula, written again in float64, and the laws that need no numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tercet.algos.advantage import group_advantages
from tercet.algos.policy import Clip, k3, ppo
from tercet.algos.preference import Sides, bradley_terry, dpo, dpo_norm, implicit_rewards, simpo

B = 9


class Surrogate(NamedTuple):
    """What GRPO's loss is put together from: the clipped surrogate, the k3 estimate, and whether the clip decided."""

    policy: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor


def grpo(logps, old, reference, advantages, clip):
    losses, clipped = ppo(logps, old, advantages, clip)
    return Surrogate(losses, k3(logps, reference), clipped)


def sides(seed: int) -> Sides:
    source = torch.Generator().manual_seed(seed)
    chosen, rejected = (-40.0 * torch.rand(B, generator=source, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, 30, (2, B), generator=torch.Generator().manual_seed(0)).double()
    return Sides(chosen.requires_grad_(), rejected.requires_grad_(), lengths[0], lengths[1])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def formula(logits: list[float], smoothing: float = 0.0) -> torch.Tensor:
    losses = [-(1 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x) for x in logits]
    return torch.tensor(losses, dtype=torch.float64)


def rows(*tensors: torch.Tensor) -> list[tuple[float, ...]]:
    return list(zip(*(tensor.tolist() for tensor in tensors), strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", [dpo, dpo_norm])
def test_a_policy_that_is_its_reference_loses_log_2(loss, smoothing):
    policy = sides(1)
    found = loss(policy, policy, beta=0.7, label_smoothing=smoothing)
    torch.testing.assert_close(found, torch.full((B,), math.log(2), dtype=torch.float64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_its_formula(smoothing):
    policy, reference = sides(1), sides(2)
    beta = 0.1
    margins = [
        beta * ((c - cr) - (r - rr))
        for c, cr, r, rr in rows(policy.chosen, reference.chosen, policy.rejected, reference.rejected)
    ]
    found = dpo(policy, reference, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(found, formula(margins, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_norm_divides_each_log_ratio_by_its_answers_length(smoothing):
    policy, reference = sides(1), sides(2)
    beta = 5.0
    chosen = rows(policy.chosen, reference.chosen, policy.chosen_lengths)
    rejected = rows(policy.rejected, reference.rejected, policy.rejected_lengths)
    margins = [
        beta * ((c - cr) / nc - (r - rr) / nr) for (c, cr, nc), (r, rr, nr) in zip(chosen, rejected, strict=True)
    ]
    found = dpo_norm(policy, reference, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(found, formula(margins, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_needs_no_reference_and_asks_for_a_margin(smoothing):
    policy = sides(1)
    beta, gamma_beta_ratio = 2.5, 0.3
    chosen, rejected = rows(policy.chosen, policy.chosen_lengths), rows(policy.rejected, policy.rejected_lengths)
    margins = [beta * (c / nc - r / nr - gamma_beta_ratio) for (c, nc), (r, nr) in zip(chosen, rejected, strict=True)]
    found = simpo(policy, beta=beta, gamma_beta_ratio=gamma_beta_ratio, label_smoothing=smoothing)
    torch.testing.assert_close(found, formula(margins, smoothing))


def test_dpo_pulls_both_sides_with_beta_times_the_error():
    policy, reference = sides(1), sides(2)
    dpo(policy, reference, beta=0.1).sum().backward()
    margin = (policy.chosen - reference.chosen) - (policy.rejected - reference.rejected)
    wanted = -0.1 * torch.sigmoid(-0.1 * margin.detach())
    torch.testing.assert_close(policy.chosen.grad, wanted)
    torch.testing.assert_close(policy.rejected.grad, -wanted)


def test_smoothing_keeps_the_loss_finite_in_gain_and_makes_certainty_expensive():
    certain = Sides(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, -1000.0, 1.0, 1.0)))
    reference = Sides(*(torch.tensor([x], dtype=torch.float64) for x in (0.0, 0.0, 1.0, 1.0)))
    assert float(dpo(certain, reference, beta=0.1)) < 1e-12
    assert float(dpo(certain, reference, beta=0.1, label_smoothing=0.1)) == pytest.approx(10.0)


def test_the_reward_models_loss_is_bradley_terrys():
    chosen, rejected = torch.tensor([1.0, -2.0, 30.0]), torch.tensor([0.5, 1.0, -30.0])
    wanted = formula([0.5, -3.0, 60.0]).float()
    torch.testing.assert_close(bradley_terry(chosen, rejected), wanted)


def test_implicit_rewards_are_beta_times_the_log_ratios():
    policy, reference = sides(1), sides(2)
    won, lost = implicit_rewards(policy, reference, 0.3)
    torch.testing.assert_close(won, 0.3 * (policy.chosen - reference.chosen).detach())
    torch.testing.assert_close(lost, 0.3 * (policy.rejected - reference.rejected).detach())
    assert not won.requires_grad


rewards = st.lists(st.lists(st.floats(-10, 10), min_size=4, max_size=4), min_size=1, max_size=5)


@given(rewards, st.sampled_from(["standard", "centered"]))
def test_advantages_of_a_group_sum_to_zero(table, kind):
    found = group_advantages(torch.tensor(table, dtype=torch.float64), kind)
    assert found.sum(dim=1).abs().max() < 1e-6


@given(rewards)
def test_standard_advantages_have_a_sample_deviation_of_one_or_are_zero(table):
    rewards_NG = torch.tensor(table, dtype=torch.float64)
    found = group_advantages(rewards_NG)
    for group, advantages in zip(rewards_NG, found, strict=True):
        if float(group.std()) > 1e-3:
            assert float(advantages.std()) == pytest.approx(1.0, abs=1e-4)
        elif (group == group[0]).all():
            assert advantages.abs().max() < 1e-6


def test_groups_of_one_reward_get_zeros():
    rewards_NG = torch.tensor([[10.0, 10.0, 10.0], [0.0, 10.0, 0.0], [0.0, 0.0, 0.0]])
    found = group_advantages(rewards_NG)
    assert not found[0].any()
    assert not found[2].any()
    torch.testing.assert_close(found[1], torch.tensor([-1.0, 2.0, -1.0]) / math.sqrt(3))
    torch.testing.assert_close(group_advantages(rewards_NG, "centered")[1] * 3, torch.tensor([-10.0, 20.0, -10.0]))


@given(st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=1, max_size=20))
def test_k3_is_never_negative_and_zero_where_the_policies_agree(table):
    logps, reference = torch.tensor(table, dtype=torch.float64).T
    found = k3(logps, reference)
    assert (found >= -1e-12).all()  # exp(-d) - 1 + d rounds around zero
    assert not k3(logps, logps).any()
    near = (logps - reference).abs() <= 40
    wanted = [math.exp(b - a) - 1 - (b - a) for (a, b), keep in zip(table, near, strict=True) if keep]
    torch.testing.assert_close(found[near], torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_k3_of_a_hopeless_token_stays_finite():
    assert torch.isfinite(k3(torch.tensor([-500.0, 0.0]), torch.tensor([0.0, -500.0]))).all()


def test_k3_averages_to_the_divergence():
    source = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, generator=source, dtype=torch.float64).log_softmax(0) for _ in range(2))
    wanted = float((policy.exp() * (policy - reference)).sum())
    assert float((policy.exp() * k3(policy, reference)).sum()) == pytest.approx(wanted)


ADVANTAGES = torch.tensor([2.0, -2.0, 1.0, -1.0, 0.5, -0.5], dtype=torch.float64)


def test_at_ratio_one_the_gradient_is_minus_the_advantage():
    logps = torch.linspace(-3, -0.1, 6, dtype=torch.float64).requires_grad_()
    parts = grpo(logps, logps.detach(), logps.detach(), ADVANTAGES, Clip())
    parts.policy.sum().backward()
    torch.testing.assert_close(logps.grad, -ADVANTAGES)
    torch.testing.assert_close(parts.policy.detach(), -ADVANTAGES)
    assert not parts.kl.any()
    assert not parts.clipped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [
        (1.5, 1.0, True),  # already likelier, and good: enough
        (1.5, -1.0, False),  # likelier, and bad: push down
        (0.5, 1.0, False),  # less likely, and good: push up
        (0.5, -1.0, True),  # already less likely, and bad: enough
        (1.1, 1.0, False),
        (0.9, -1.0, False),
    ],
)
def test_the_clip_stops_only_what_has_gone_far_enough(ratio, advantage, clipped):
    logps = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    zero, gain = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    parts = grpo(logps, zero, zero, gain, Clip(0.2, 0.2))
    parts.policy.sum().backward()
    assert bool(parts.clipped) is clipped
    assert float(logps.grad) == pytest.approx(0.0 if clipped else -advantage * ratio)


def test_the_surrogate_is_its_formula_with_unequal_bounds():
    source = torch.Generator().manual_seed(3)
    logps, old, reference = (-3 * torch.rand(6, generator=source, dtype=torch.float64) for _ in range(3))
    parts = grpo(logps, old, reference, ADVANTAGES, Clip(0.1, 0.3))
    for i in range(6):
        ratio, gain = math.exp(logps[i] - old[i]), float(ADVANTAGES[i])
        wanted = max(-gain * ratio, -gain * min(max(ratio, 0.9), 1.3))
        assert float(parts.policy[i]) == pytest.approx(wanted)
