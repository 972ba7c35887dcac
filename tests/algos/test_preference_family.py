"""IPO, WPO, ORPO, KTO and the anchor: each against its formula in plain floats, gradients, and laws without numbers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tercet.algos.preference import Sides, bradley_terry, dpo, dpo_norm, ipo, kto, mismatch_kl, nll, orpo, simpo, wpo

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
KL = torch.tensor(0.4, dtype=torch.float64)
LOSSES = {
    "dpo": lambda policy: dpo(policy, REFERENCE, beta=0.3),
    "dpo_norm": lambda policy: dpo_norm(policy, REFERENCE, beta=5.0, label_smoothing=0.1),
    "simpo": lambda policy: simpo(policy, beta=2.0, gamma_beta_ratio=0.3),
    "ipo": lambda policy: ipo(policy, REFERENCE, beta=0.4),
    "wpo, published": lambda policy: wpo(policy, REFERENCE, beta=0.3, published=True),
    "orpo": partial(orpo, odds_weight=0.7),
    "nll": nll,
    "kto": lambda policy: kto(policy, REFERENCE, KL, beta=0.2, desirable_weight=1.3, undesirable_weight=0.7),
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


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_kto_is_the_mean_of_a_desirable_and_an_undesirable_example():
    wanted, examples = [], []
    for c, cr, r, rr, _, _ in TABLE:
        good = 1.3 * (1 - sigmoid(0.2 * ((c - cr) - 0.4)))
        bad = 0.7 * (1 - sigmoid(0.2 * (0.4 - (r - rr))))
        wanted.append((good + bad) / 2)
        examples += [good, bad]
    found = LOSSES["kto"](POLICY)
    torch.testing.assert_close(found, vector(wanted))
    assert float(found.detach().mean()) == pytest.approx(sum(examples) / (2 * B)), (
        "the mean over examples, as TRL has it"
    )


def test_kto_of_a_policy_that_is_its_reference_is_a_quarter_of_the_weights():
    found = kto(POLICY, POLICY, torch.tensor(0.0), beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    torch.testing.assert_close(found, torch.full((B,), 0.5, dtype=torch.float64))


def test_no_gradient_goes_through_ktos_kl():
    kl = KL.clone().requires_grad_()
    found = kto(POLICY, REFERENCE, kl, beta=0.2)
    assert torch.autograd.grad(found.sum(), kl, allow_unused=True) == (None,)
    scores = vector([0.3, 2.0]).requires_grad_()
    assert not mismatch_kl(scores, vector([0.0, 0.0])).requires_grad


numbers_of = partial(st.lists, st.floats(-500, 0), min_size=1, max_size=9)


@given(st.data(), numbers_of())
def test_the_kl_of_mismatched_answers_is_their_mean_log_ratio_but_never_below_zero(data, ours):
    theirs = data.draw(st.lists(st.floats(-500, 0), min_size=len(ours), max_size=len(ours)))
    wanted = max(0.0, math.fsum(a - b for a, b in zip(ours, theirs, strict=True)) / len(ours))
    assert float(mismatch_kl(vector(ours), vector(theirs))) == pytest.approx(wanted, abs=1e-9)


@given(*[st.floats(-500, 0)] * 4, st.floats(0, 50), st.floats(0.01, 2), st.floats(0.1, 3), st.floats(0.1, 3))
def test_kto_is_bounded_and_falls_as_the_chosen_answer_rises(c, r, cr, rr, kl, beta, good, bad):
    def loss(chosen: float) -> float:
        sides, base, z = pair(chosen, r), pair(cr, rr), torch.tensor(kl, dtype=torch.float64)
        return float(kto(sides, base, z, beta=beta, desirable_weight=good, undesirable_weight=bad))

    assert 0.0 <= loss(c) <= (good + bad) / 2 + 1e-12
    assert loss(c + 1.0) <= loss(c)


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-5, 5))
def test_a_margin_is_what_the_chosen_answer_must_win_by(chosen, rejected, margin):
    found = bradley_terry(vector([chosen]), vector([rejected]), vector([margin]))
    assert float(found) == pytest.approx(softplus(-(chosen - rejected - margin)), rel=1e-12, abs=1e-15)


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
