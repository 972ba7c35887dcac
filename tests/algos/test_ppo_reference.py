"""One update of PPO against loops over numpy arrays in float64, written from the papers and not from the package.

Advantages are computed here as Schulman et al. 2016 define them (eq. 11-16): the exponential average of the k-step
estimators, not the backward recursion that follows from it. The rest is Ouyang et al. 2022 (eq. 2), Schulman et al.
2017 (eq. 7), Engstrom et al. 2020 (§3) and Tülu 3 (§6): the score one position past the end token where the window has
one, values beyond it 0, advantages whitened over the answers' tokens, a value loss that is half a square times 0.1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tercet.algos.advantage import gae, table, token_rewards, whiten
from tercet.algos.policy import Clip, k1, ppo, ppo_value

Array = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
answers = st.lists(st.integers(1, 7), min_size=1, max_size=4)  # tokens of each answer
extras = st.integers(0, 3)  # how much longer the window is than the longest answer
shares = st.floats(0.0, 1.0)


class World(NamedTuple):
    """A round: per token of the flat batch the log-probs now, then and of the reference; values as tables (L, T)."""

    now: Array
    old: Array
    reference: Array
    values_now: Array
    values_old: Array
    scores: Array


class Update(NamedTuple):
    """What both sides compute; slopes are by the log-probs and by the values now."""

    advantages: Array
    returns: Array
    policy_loss: float
    policy_slopes: Array
    value_loss: float
    value_slopes: Array


def drawn(seed: int, lengths: list[int], window: int) -> World:
    source = np.random.default_rng(seed)
    total, rows = sum(lengths), len(lengths)
    old = source.normal(-2.0, 1.0, total)
    values = source.normal(0.0, 2.0, (rows, window))
    return World(
        now=old + source.normal(0.0, 0.4, total),  # off-policy: many ratios leave the clip
        old=old,
        reference=old + source.normal(0.0, 0.5, total),
        values_now=values + source.normal(0.0, 0.4, (rows, window)),
        values_old=values,
        scores=source.choice([10.0, 0.0, -10.0], rows),
    )


def estimators(rewards: Array, values: Array, gamma: float, lam: float, last: float) -> Array:
    """(1 - lam) sum_k lam^(k-1) A^(k), the longest k taking what weight is left; A^(k) = k rewards, then the value."""
    size = len(rewards)
    ahead = [*values, last]
    found = np.zeros(size)
    for t in range(size):
        for k in range(1, size - t + 1):
            summed = sum(gamma**i * rewards[t + i] for i in range(k))
            estimate = summed + gamma**k * ahead[t + k] - values[t]
            weight = lam ** (k - 1) * (1.0 if k == size - t else 1.0 - lam)
            found[t] += weight * estimate
    return found


def by_loops(world: World, lengths: list[int], window: int, *, after: bool, beta: float, clip: Clip) -> Update:
    """The whole update, an answer at a time."""
    raw, returns, valued, start = [], np.zeros((len(lengths), window)), [], 0
    for i, length in enumerate(lengths):
        kl = [world.old[start + t] - world.reference[start + t] for t in range(length)]
        size = length + 1 if after and length < window else length
        rewards = np.array([-beta * kl[t] if t < length else 0.0 for t in range(size)])
        rewards[size - 1] += world.scores[i]
        found = estimators(rewards, world.values_old[i, :size], 1.0, 0.95, 0.0)
        returns[i, :size] = found + world.values_old[i, :size]
        raw += [found[t] for t in range(length)]
        valued += [(i, t) for t in range(size)]
        start += length
    mean = sum(raw) / len(raw)
    variance = sum((a - mean) ** 2 for a in raw) / max(1, len(raw) - 1)
    advantages = [(a - mean) / np.sqrt(variance + 1e-8) for a in raw]
    policy_loss, policy_slopes = 0.0, np.zeros(len(raw))
    for p, advantage in enumerate(advantages):
        ratio = np.exp(world.now[p] - world.old[p])
        bounded = min(max(ratio, 1.0 - clip.low), 1.0 + clip.high)
        policy_loss += max(-advantage * ratio, -advantage * bounded) / len(raw)
        if -advantage * ratio >= -advantage * bounded:  # the clip holds back what went far enough, and has no slope
            policy_slopes[p] = -advantage * ratio / len(raw)
    value_loss, value_slopes = 0.0, np.zeros_like(returns)
    for i, t in valued:
        value, before, wanted = world.values_now[i, t], world.values_old[i, t], returns[i, t]
        near = min(max(value, before - 0.2), before + 0.2)
        value_loss += 0.1 * 0.5 * max((value - wanted) ** 2, (near - wanted) ** 2) / len(valued)
        if near == value or (value - wanted) ** 2 >= (near - wanted) ** 2:
            value_slopes[i, t] = 0.1 * (value - wanted) / len(valued)
    return Update(np.array(advantages), returns, policy_loss, policy_slopes, value_loss, value_slopes)


def by_package(world: World, lengths: list[int], window: int, *, after: bool, beta: float, clip: Clip) -> Update:
    """The same with the package's functions and torch's gradients."""
    leaf = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    now, old, reference, values_now, values_old, scores = (torch.from_numpy(part.copy()) for part in world)
    kl, mask = table(k1(old, reference), leaf, len(lengths), window)
    rewards, valued = token_rewards(kl, scores, mask, beta, after=after)
    raw, returns = gae(rewards, torch.where(valued, values_old, 0.0), valued)
    advantages = whiten(raw, mask)[mask]
    policy = ppo(now.requires_grad_(), old, advantages, clip).losses.mean()
    value = 0.1 * ppo_value(values_now.requires_grad_()[valued], values_old[valued], returns[valued], 0.2).losses.mean()
    (policy + value).backward()
    slopes = [np.asarray(part.grad) for part in (now, values_now)]
    return Update(advantages.numpy(), returns.numpy(), policy.item(), slopes[0], value.item(), slopes[1])


@given(seeds, answers, extras, st.booleans(), st.sampled_from([0.0, 0.05]), st.sampled_from([Clip(), Clip(0.2, 0.28)]))
def test_one_update_of_ppo_is_its_papers_formulas_with_both_gradients(seed, lengths, extra, after, beta, clip):
    window = max(lengths) + extra
    world = drawn(seed, lengths, window)
    found = by_package(world, lengths, window, after=after, beta=beta, clip=clip)
    wanted = by_loops(world, lengths, window, after=after, beta=beta, clip=clip)
    for name, ours, theirs in zip(Update._fields, found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10, err_msg=name)


@given(seeds, answers, extras, shares, shares, st.booleans())
def test_gae_is_the_exponential_average_of_the_k_step_estimators(seed, lengths, extra, gamma, lam, cut):
    source = np.random.default_rng(seed)
    window = max(lengths) + extra
    rewards, values = source.normal(size=(2, len(lengths), window))
    last = source.normal(size=len(lengths)) if cut else np.zeros(len(lengths))
    mask = np.array([[t < length for t in range(window)] for length in lengths])
    parts = [torch.from_numpy(part) for part in (rewards, values, mask)]
    advantages, returns = gae(*parts, gamma, lam, torch.from_numpy(last) if cut else None)
    for i, length in enumerate(lengths):
        wanted = estimators(rewards[i, :length], values[i, :length], gamma, lam, last[i])
        np.testing.assert_allclose(advantages[i, :length], wanted, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(returns[i, :length], wanted + values[i, :length], rtol=1e-9, atol=1e-10)
    assert not advantages.numpy()[~mask].any()
    assert not returns.numpy()[~mask].any()


@given(seeds, answers, st.integers(1, 3))
def test_without_discount_and_decay_it_does_not_matter_where_the_score_is_paid(seed, lengths, extra):
    window = max(lengths) + extra
    world = drawn(seed, lengths, window)
    leaf = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    kl, mask = table(torch.from_numpy(world.old - world.reference), leaf, len(lengths), window)
    found = []
    for after in (False, True):
        rewards, valued = token_rewards(kl, torch.from_numpy(world.scores), mask, 0.05, after=after)
        values = torch.where(valued, torch.from_numpy(world.values_old), 0.0)
        found.append(gae(rewards, values, valued, 1.0, 1.0)[0][mask])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)


@given(seeds, answers, st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_a_longer_window_changes_no_advantage(seed, lengths, extra, more, after):
    window = max(lengths) + extra
    world = drawn(seed, lengths, window)
    wider = world._replace(
        values_now=np.pad(world.values_now, ((0, 0), (0, more)), constant_values=7.0),
        values_old=np.pad(world.values_old, ((0, 0), (0, more)), constant_values=7.0),
    )
    found = by_package(world, lengths, window, after=after, beta=0.05, clip=Clip())
    other = by_package(wider, lengths, window + more, after=after, beta=0.05, clip=Clip())
    np.testing.assert_array_equal(found.advantages, other.advantages)
    np.testing.assert_array_equal(found.returns, other.returns[:, :window])


@given(seeds, st.integers(2, 12), st.integers(1, 11), st.floats(0.1, 10.0), st.floats(-50.0, 50.0))
def test_whitening_forgets_scale_and_shift(seed, size, hidden, scale, shift):
    source = np.random.default_rng(seed)
    values = torch.from_numpy(source.normal(0.0, 3.0, size))
    mask = torch.arange(size) >= min(hidden, size - 2)
    plain, moved = whiten(values, mask, eps=0.0), whiten(values * scale + shift, mask, eps=0.0)
    torch.testing.assert_close(plain, moved, rtol=1e-6, atol=1e-8)


@given(seeds, st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_parts_whitened_with_the_moments_of_the_whole_are_the_whole_whitened(seed, sizes):
    values = torch.from_numpy(np.random.default_rng(seed).normal(3.0, 2.0, sum(sizes)))
    everything = torch.ones(len(values), dtype=torch.bool)
    moments = (float(values.mean()), float(values.var()))
    parts = [whiten(part, torch.ones(len(part), dtype=torch.bool), moments=moments) for part in values.split(sizes)]
    torch.testing.assert_close(torch.cat(parts), whiten(values, everything), rtol=1e-6, atol=1e-6)
