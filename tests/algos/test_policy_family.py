"""PPO and the variants of GRPO against plain loops in float64, written from the formulas."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tercet.algos.advantage import gae, group_advantages, table, token_rewards, whiten
from tercet.algos.policy import Clip, cispo, gspo, k1, k2, k3, ppo, ppo_value, truncated_weights

seeds = st.integers(0, 2**32 - 1)
answers = st.lists(st.integers(1, 6), min_size=1, max_size=5)  # tokens of each answer
clips = st.sampled_from([Clip(0.2, 0.2), Clip(0.2, 0.28), Clip(1.0, 0.5)])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def owners(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def batch(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities with gradient, the old ones, advantages."""
    logps, shift, advantages = normal(seed, 3, size)
    return (logps - 3).requires_grad_(), logps - 3 + 0.4 * shift, advantages


def close(found: Tensor, wanted: list[float] | list[list[float]]) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def surrogate(ratio: float, advantage: float, clip: Clip) -> tuple[float, float]:
    """The loss, and its derivative by the ratio."""
    bounded = min(max(ratio, 1 - clip.low), 1 + clip.high)
    if -advantage * bounded > -advantage * ratio:
        return -advantage * bounded, 0.0
    return -advantage * ratio, -advantage


@given(seeds, st.integers(1, 12), clips)
def test_ppo_is_its_formula_and_moves_only_tokens_inside_the_clip(seed, size, clip):
    logps, old, advantages = batch(seed, size)
    found = ppo(logps, old, advantages, clip)
    found.losses.sum().backward()
    ratios = [math.exp(a - b) for a, b in zip(logps.tolist(), old.tolist(), strict=True)]
    wanted = [surrogate(ratio, a, clip) for ratio, a in zip(ratios, advantages.tolist(), strict=True)]
    close(found.losses, [loss for loss, _ in wanted])
    close(logps.grad, [slope * ratio for (_, slope), ratio in zip(wanted, ratios, strict=True)])
    assert found.clipped.tolist() == [slope == 0.0 for _, slope in wanted]


@given(seeds, st.integers(1, 12), clips)
def test_cispo_has_the_gradient_of_the_log_probability_times_the_clipped_weight(seed, size, clip):
    logps, old, advantages = batch(seed, size)
    found = cispo(logps, old, advantages, clip)
    found.losses.sum().backward()
    ratios = [math.exp(a - b) for a, b in zip(logps.tolist(), old.tolist(), strict=True)]
    weights = [min(max(ratio, 1 - clip.low), 1 + clip.high) for ratio in ratios]
    slopes = [-a * weight for a, weight in zip(advantages.tolist(), weights, strict=True)]
    close(found.losses, [slope * logp for slope, logp in zip(slopes, logps.tolist(), strict=True)])
    close(logps.grad, slopes)
    assert found.clipped.tolist() == [not 1 - clip.low <= ratio <= 1 + clip.high for ratio in ratios]


@given(seeds, answers, clips)
def test_gspo_has_one_ratio_per_answer_the_mean_of_its_log_ratios(seed, lengths, clip):
    logps, old, _ = batch(seed, sum(lengths))
    advantages = normal(seed + 1, len(lengths))
    leaf = owners(lengths)
    found = gspo(logps, old, advantages[leaf], leaf, clip)
    (found.losses / torch.tensor(lengths)[leaf]).sum().backward()  # each answer weighs the same
    losses, slopes, start = [], [], 0
    known, before = logps.tolist(), old.tolist()
    for length, advantage in zip(lengths, advantages.tolist(), strict=True):
        part = range(start, start + length)
        ratio = math.exp(sum(known[t] - before[t] for t in part) / length)
        loss, slope = surrogate(ratio, advantage, clip)
        losses += [loss] * length
        slopes += [slope * ratio / length] * length
        start += length
    close(found.losses, losses)
    close(logps.grad, slopes)


@given(seeds, st.integers(1, 9), clips)
def test_gspo_is_grpo_when_every_answer_is_one_token(seed, size, clip):
    logps, old, advantages = batch(seed, size)
    found = gspo(logps, old, advantages, torch.arange(size), clip)
    wanted = ppo(logps, old, advantages, clip)
    torch.testing.assert_close(found.losses, wanted.losses)
    assert torch.equal(found.clipped, wanted.clipped)


@given(seeds, st.integers(1, 12), st.sampled_from([0.05, 0.2, 1.0]))
def test_the_value_loss_is_half_the_worse_of_two_squares(seed, size, clip):
    values, old, returns = normal(seed, 3, size).unbind()
    values = values.clone().requires_grad_()
    found = ppo_value(values, old, returns, clip)
    found.losses.sum().backward()
    losses, slopes, acted = [], [], []
    for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True):
        near = o + min(max(v - o, -clip), clip)
        worse = abs(v - o) > clip and (near - r) ** 2 > (v - r) ** 2
        losses.append(((near if worse else v) - r) ** 2 / 2)
        slopes.append(0.0 if worse else v - r)
        acted.append(worse)
    close(found.losses, losses)
    close(values.grad, slopes)
    assert found.clipped.tolist() == acted


@given(seeds, st.integers(1, 12), st.sampled_from([1.0, 2.0]))
def test_truncated_weights_are_capped_ratios_without_gradient(seed, size, cap):
    trainer, generator, _ = batch(seed, size)
    found = truncated_weights(trainer, generator, cap)
    close(found, [min(math.exp(a - b), cap) for a, b in zip(trainer.tolist(), generator.tolist(), strict=True)])
    assert not found.requires_grad
    assert float(truncated_weights(torch.tensor(0.0), torch.tensor(-1e4), cap)) == cap


@given(seeds, st.integers(1, 12))
def test_kl_estimates_are_their_formulas(seed, size):
    logps, reference, _ = batch(seed, size)
    gaps = [a - b for a, b in zip(logps.tolist(), reference.tolist(), strict=True)]
    close(k1(logps, reference), gaps)
    close(k2(logps, reference), [d * d / 2 for d in gaps])
    close(k3(logps, reference), [math.exp(-d) - 1 + d for d in gaps])


@given(seeds)
def test_k1_and_k3_estimate_the_kl_and_k2s_gradient_is_the_kls(seed):
    raw, other = normal(seed, 2, 7)
    raw = raw.clone().requires_grad_()
    ours, theirs = raw.log_softmax(0), other.log_softmax(0)
    kl = (ours.exp() * (ours - theirs)).sum()
    for estimate in (k1, k3):
        torch.testing.assert_close((ours.exp() * estimate(ours, theirs)).sum(), kl)
    wanted = torch.autograd.grad(kl, raw, retain_graph=True)[0]
    chosen = ours.exp().detach()
    gradients = [torch.autograd.grad((chosen * k(ours, theirs)).sum(), raw, retain_graph=True)[0] for k in (k1, k2)]
    torch.testing.assert_close(gradients[0], torch.zeros_like(wanted), atol=1e-12, rtol=0.0)
    torch.testing.assert_close(gradients[1], wanted)


@given(seeds, st.integers(1, 4), st.integers(2, 6))
def test_leave_one_out_compares_each_reward_with_the_mean_of_the_others(seed, prompts, samples):
    rewards = normal(seed, prompts, samples)
    wanted = [[r - (sum(row) - r) / (samples - 1) for r in row] for row in rewards.tolist()]
    close(group_advantages(rewards, "leave_one_out"), wanted)


def test_leave_one_out_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples of a prompt, got 1"):
        group_advantages(torch.ones(3, 1), "leave_one_out")


def test_a_flat_batch_becomes_a_table_and_comes_back():
    values, mask = table(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2]), 4, 3)
    assert values.tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 0], [0, 0, 0]]
    assert values[mask].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="an answer has 2 tokens, more than the window of 1"):
        table(torch.ones(3), torch.tensor([0, 2, 2]), 3, 1)


@given(seeds, answers, st.booleans(), st.integers(0, 2))
def test_the_score_is_paid_at_the_last_token_or_right_after_it(seed, lengths, after, extra):
    window = max(lengths) + extra
    kl, mask = table(normal(seed, sum(lengths)), owners(lengths), len(lengths), window)
    scores = normal(seed + 1, len(lengths))
    rewards, valued = token_rewards(kl, scores, mask, 0.05, after=after)
    wanted = [[-0.05 * float(kl[i, t]) if t < n else 0.0 for t in range(window)] for i, n in enumerate(lengths)]
    ends = [n if after and n < window else n - 1 for n in lengths]
    for row, end, score in zip(wanted, ends, scores.tolist(), strict=True):
        row[end] += score
    close(rewards, wanted)
    assert valued.tolist() == [[t < n or t == end for t in range(window)] for n, end in zip(lengths, ends, strict=True)]


@given(seeds, st.integers(1, 4), st.integers(1, 7), st.sampled_from([(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.9, 0.0)]))
def test_gae_is_the_sum_of_decayed_errors_over_the_tokens_under_the_mask(seed, rows, window, decay):
    gamma, lam = decay
    rewards, values = normal(seed, 2, rows, window)
    mask = normal(seed + 1, rows, window) > -0.5  # with holes: what a tool wrote inside an answer
    last = normal(seed + 2, rows)
    advantages, returns = gae(rewards, values, mask, gamma, lam, last)
    wanted = [[0.0] * window for _ in range(rows)]
    for i in range(rows):
        places = [t for t in range(window) if mask[i, t]]
        r = [float(rewards[i, t]) for t in places]
        v = [float(values[i, t]) for t in places] + [float(last[i])]
        errors = [r[j] + gamma * v[j + 1] - v[j] for j in range(len(places))]
        for j, t in enumerate(places):
            wanted[i][t] = sum((gamma * lam) ** (k - j) * errors[k] for k in range(j, len(places)))
    close(advantages, wanted)
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0))


@given(seeds, answers, st.sampled_from([1.0, 0.9]))
def test_with_lambda_1_advantages_are_discounted_returns_minus_values(seed, lengths, gamma):
    leaf = owners(lengths)
    rewards, mask = table(normal(seed, sum(lengths)), leaf, len(lengths), max(lengths))
    values, _ = table(normal(seed + 1, sum(lengths)), leaf, len(lengths), max(lengths))
    advantages, returns = gae(rewards, values, mask, gamma, 1.0)
    discounted = [
        [sum(gamma ** (k - t) * float(rewards[i, k]) for k in range(t, n)) for t in range(n)]
        for i, n in enumerate(lengths)
    ]
    close(returns[mask], [value for row in discounted for value in row])
    close(advantages[mask], [v - float(values[i, t]) for i, row in enumerate(discounted) for t, v in enumerate(row)])


@given(seeds, answers, st.integers(0, 2))
def test_the_score_after_the_end_gives_tulu_3s_advantages_over_the_whole_padded_window(seed, lengths, extra):
    window = max(lengths) + extra
    scores = normal(seed, len(lengths))
    values = normal(seed + 1, len(lengths), window)
    kl, mask = table(normal(seed + 2, sum(lengths)), owners(lengths), len(lengths), window)
    rewards, valued = token_rewards(kl, scores, mask, 0.05, after=True)
    found, _ = gae(rewards, values, valued)
    wanted = []
    for i, length in enumerate(lengths):
        known = [float(values[i, t]) if t <= length else 0.0 for t in range(window)]  # one past the end still counts
        row = [-0.05 * float(kl[i, t]) if t < length else 0.0 for t in range(window)]
        row[length if length < window else window - 1] += float(scores[i])
        carried, advantages = 0.0, [0.0] * window
        for t in range(window - 1, -1, -1):
            following = known[t + 1] if t + 1 < window else 0.0
            carried = row[t] + following - known[t] + 0.95 * carried
            advantages[t] = carried
        wanted.append(advantages)
    close(found, wanted)


@given(seeds, st.integers(1, 4), st.integers(2, 6), st.booleans())
def test_whitened_numbers_have_mean_0_and_variance_1_under_the_mask(seed, rows, window, shift):
    values = 5.0 + 3.0 * normal(seed, rows, window)
    mask = normal(seed + 1, rows, window) > -0.5
    mask[0, :2] = True
    found = whiten(values, mask, shift_mean=shift)
    chosen = [float(values[i, t]) for i in range(rows) for t in range(window) if mask[i, t]]
    mean, variance = statistics.fmean(chosen), statistics.variance(chosen)
    close(found[mask], [(x - mean) / math.sqrt(variance + 1e-8) + (0.0 if shift else mean) for x in chosen])
    assert not found[~mask].any()
    if variance > 0.01:
        assert statistics.fmean(found[mask].tolist()) == pytest.approx(0.0 if shift else mean, abs=1e-9)
        assert statistics.variance(found[mask].tolist()) == pytest.approx(1.0, abs=1e-5)


def test_one_number_whitens_to_zero():
    assert whiten(torch.tensor([7.0, 1.0]), torch.tensor([True, False])).tolist() == [0, 0]
