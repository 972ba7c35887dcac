"""IPO, WPO, ORPO and the anchor: each against its formula in plain floats, its gradients, and laws without numbers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from tercet.algos.preference import Sides, dpo, dpo_norm, ipo, nll, orpo, simpo, wpo

B = 7


def sides(seed: int) -> Sides:
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (2, B), generator=torch.Generator().manual_seed(0)).double()
    rates = 0.05 + 2.0 * torch.rand(2, B, generator=source, dtype=torch.float64)
    chosen, rejected = (-rates * lengths).unbind()
    return Sides(chosen.requires_grad_(), rejected.requires_grad_(), lengths[0], lengths[1])


def pair(chosen: float, rejected: float, num_chosen: float = 1.0, num_rejected: float = 1.0, **kind) -> Sides:
    kind = {"dtype": torch.float64, **kind}
    return Sides(*(torch.tensor([x], **kind) for x in (chosen, rejected, num_chosen, num_rejected)))


def numbers(policy: Sides, reference: Sides) -> list[tuple[float, ...]]:
    """Per pair: policy's and reference's log-prob of the chosen answer, of the rejected one, and both lengths."""
    columns = (policy.chosen, reference.chosen, policy.rejected, reference.rejected, *policy[2:])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


POLICY, REFERENCE = sides(1), sides(2)
TABLE = numbers(POLICY, REFERENCE)
LOSSES = {
    "dpo": lambda policy: dpo(policy, REFERENCE, beta=0.3),
    "dpo_norm": lambda policy: dpo_norm(policy, REFERENCE, beta=5.0, label_smoothing=0.1),
    "simpo": lambda policy: simpo(policy, beta=2.0, gamma_beta_ratio=0.3),
    "ipo": lambda policy: ipo(policy, REFERENCE, beta=0.4),
    "wpo, published": lambda policy: wpo(policy, REFERENCE, beta=0.3, published=True),
    "orpo": partial(orpo, odds_weight=0.7),
    "nll": nll,
}


def test_ipo_is_its_formula_on_log_ratios_averaged_per_token():
    wanted = [((c - cr) / nc - (r - rr) / nr - 1 / 0.8) ** 2 for c, cr, r, rr, nc, nr in TABLE]
    torch.testing.assert_close(ipo(POLICY, REFERENCE, beta=0.4), vector(wanted))


def test_ipo_is_least_where_the_log_ratios_differ_by_half_of_one_over_beta():
    reference = pair(-6.0, -8.0, 2.0, 4.0)
    best = Sides((reference.chosen + 2.0 * 1.25).requires_grad_(), *reference[1:])  # 1.25 nats on each of two tokens
    loss = ipo(best, reference, beta=0.4)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
    assert float(best.chosen.grad) == pytest.approx(0.0, abs=1e-12)
    for step in (-0.1, 0.1):
        moved = Sides(best.chosen.detach() + step, *reference[1:])
        assert float(ipo(moved, reference, beta=0.4)) == pytest.approx((step / 2) ** 2)


def test_ipo_of_a_policy_that_is_its_reference_is_the_squared_target():
    torch.testing.assert_close(ipo(POLICY, POLICY, beta=0.5), torch.ones(B, dtype=torch.float64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("published", [False, True])
def test_wpo_is_dpo_times_the_policys_own_probability(smoothing, published):
    wanted = []
    for c, cr, r, rr, nc, nr in TABLE:
        logit = 0.3 * ((c - cr) - (r - rr))
        weight = math.exp(c + r) if published else math.exp(c / nc + r / nr)
        wanted.append(weight * ((1 - smoothing) * softplus(-logit) + smoothing * softplus(logit)))
    found = wpo(POLICY, REFERENCE, beta=0.3, label_smoothing=smoothing, published=published)
    torch.testing.assert_close(found, vector(wanted))


@pytest.mark.parametrize("published", [False, True])
def test_wpo_of_answers_the_policy_is_sure_of_is_dpo(published):
    sure = pair(0.0, 0.0, 3.0, 5.0)
    reference = pair(-4.0, -2.0, 3.0, 5.0)
    torch.testing.assert_close(
        wpo(sure, reference, beta=0.3, published=published), dpo(sure, reference, beta=0.3), rtol=0, atol=0
    )


def test_only_the_published_wpo_sends_a_gradient_through_its_weight():
    def slope(**options: bool) -> torch.Tensor:
        policy = Sides(POLICY.chosen.detach().requires_grad_(), *POLICY[1:])
        wpo(policy, REFERENCE, beta=0.3, **options).sum().backward()
        return policy.chosen.grad

    margins = vector([0.3 * ((c - cr) - (r - rr)) for c, cr, r, rr, _, _ in TABLE])
    pull = -0.3 * torch.sigmoid(-margins)
    mean = vector([math.exp(c / nc + r / nr) for c, _, r, _, nc, nr in TABLE])
    torch.testing.assert_close(slope(), mean * pull)
    whole = vector([math.exp(c + r) for c, _, r, _, _, _ in TABLE])
    torch.testing.assert_close(slope(published=True), whole * (pull + torch.nn.functional.softplus(-margins)))


def test_wpo_does_not_favour_short_answers_but_the_published_one_does():
    short, long = pair(-2.0, -2.0, 2.0, 2.0), pair(-40.0, -40.0, 40.0, 40.0)
    torch.testing.assert_close(wpo(short, short, beta=0.3), wpo(long, long, beta=0.3))
    ratio = wpo(long, long, beta=0.3, published=True) / wpo(short, short, beta=0.3, published=True)
    assert float(ratio) == pytest.approx(math.exp(-76.0))


def test_orpo_is_its_formula_on_mean_log_probabilities():
    wanted = []
    for c, _, r, _, nc, nr in TABLE:
        p, q = math.exp(c / nc), math.exp(r / nr)
        wanted.append(-c / nc + 0.7 * softplus(-math.log((p / (1 - p)) / (q / (1 - q)))))
    torch.testing.assert_close(orpo(POLICY, odds_weight=0.7), vector(wanted))


def test_orpo_without_its_odds_is_the_mean_token_loss_of_the_chosen_answer():
    wanted = vector([-c / nc for c, _, _, _, nc, _ in TABLE])
    torch.testing.assert_close(orpo(POLICY, odds_weight=0.0), wanted)
    torch.testing.assert_close(nll(POLICY), wanted)


def test_orpo_adds_lambda_log_2_where_both_answers_are_as_likely():
    assert float(orpo(pair(-2.0, -6.0, 1.0, 3.0), odds_weight=0.5)) == pytest.approx(2.0 + 0.5 * math.log(2))


@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-7, -1.0, -2000.0])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e-7, -1.0, -2000.0])
def test_orpo_stays_finite_in_fp32_for_sure_and_for_hopeless_answers(chosen, rejected):
    policy = pair(chosen, rejected, dtype=torch.float32)
    policy.chosen.requires_grad_()
    policy.rejected.requires_grad_()
    loss = orpo(policy, odds_weight=0.1)
    loss.backward()
    assert all(torch.isfinite(value).all() for value in (loss, policy.chosen.grad, policy.rejected.grad))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    def loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](Sides(chosen, rejected, *POLICY[2:]))

    assert torch.autograd.gradcheck(loss, (POLICY.chosen, POLICY.rejected))


@pytest.mark.parametrize("name", [*LOSSES, "wpo"])
def test_every_pair_has_its_own_loss_whatever_stands_beside_it(name):
    loss = LOSSES.get(name, lambda policy, base=REFERENCE: wpo(policy, base, beta=0.3))
    found = loss(POLICY)
    assert found.shape == (B,)
    (chosen,) = torch.autograd.grad(found[2], POLICY.chosen)
    assert chosen.nonzero().flatten().tolist() == [2]
