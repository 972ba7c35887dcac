"""AlpacaEval 2: win rates from pairwise verdicts, and what they would be if length did not matter.

A verdict says with what probability a judge prefers the model's answer to the baseline's. The length-controlled win
rate (Dubois et al. 2024, arXiv 2404.04475) explains the verdicts by a logistic model with three columns,

    logit p_i = phi * tanh(d_i / sd(d)) + psi * gamma_i + theta,

with d_i the baseline's characters minus the model's and gamma_i the difficulty of instruction i, which was estimated
once over many models. Its prediction drops the length term: 100 * mean sigmoid(psi * gamma_i + theta).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tercet import stats
from tercet.records import Result
from tercet.stats_t import t_quantile

STRENGTHS = tuple(10.0 ** (-4 + 8 * k / 9) for k in range(10))  # the weights of the data that cross-validation tries
FOLDS = 5
ANCHOR_WEIGHT = 0.2 / 2  # two altered versions of the baseline share a weight of 0.2


class PreferenceError(ValueError):
    """Verdicts that no win rate can be made of; the message says which and what is expected."""


@dataclass(frozen=True)
class Verdict:
    """One judged instruction. `preference` runs from 1 (baseline wins) to 2 (model wins); 1.5 or 0 is a draw.

    None: the judge gave no verdict. Lengths are counted in characters.
    """

    preference: float | None
    output: str
    baseline_length: int
    difficulty: float = 0.0


class WinRate(NamedTuple):
    """Wins in percent with error, the same with every verdict rounded first (a draw is half a win), and the counts."""

    rate: stats.Estimate
    discrete: float
    wins: int
    losses: int
    draws: int
    missing: int


class Weights(NamedTuple):
    """The three coefficients: length phi, difficulty psi, constant theta. All zero is the baseline against itself."""

    length: float = 0.0
    difficulty: float = 0.0
    constant: float = 0.0


class Anchor(NamedTuple):
    """A verdict on a lengthened or shortened version of the baseline, which regularises the length coefficient.

    `length` is d / sd(d) within its own set; `preference` is a probability, 0 to 1.
    """

    length: float
    difficulty: float
    preference: float


def summary(
    verdicts: Sequence[Verdict], *, weights: Weights | None = None, anchors: Sequence[Anchor] = ()
) -> dict[str, float]:
    """All numbers of one model: raw, discrete and length-controlled win rate with errors, lengths, repetition.

    Fits the weights unless they are given. `lc_suspect` is 1 when raw and controlled rate are too far apart to be
    trusted; `duplicates` near 1 means that one text was written for every instruction, which can fool the judge.
    """
    raw = win_rate([verdict.preference for verdict in verdicts])
    controlled = length_controlled(weights or fit(verdicts, anchors), [verdict.difficulty for verdict in verdicts])
    return {
        "win_rate": raw.rate.value,
        "win_rate_stderr": raw.rate.stderr,
        "discrete_win_rate": raw.discrete,
        "lc_win_rate": controlled.value,
        "lc_win_rate_stderr": controlled.stderr,
        "lc_suspect": float(suspect(raw.rate.value, controlled.value)),
        "mean_length": sum(len(verdict.output) for verdict in verdicts) / len(verdicts),
        "duplicates": duplicates([verdict.output for verdict in verdicts]),
        "n": float(raw.rate.n),
        "missing": float(raw.missing),
    }


def headline(results: Sequence[Result]) -> tuple[stats.Estimate | None, dict[str, float]]:
    """The length-controlled win rate as a task's number, and all others, where every difficulty is known."""
    references = [json.loads(result.reference) for result in results]
    if len(results) < FOLDS or any(reference.get("difficulty") is None for reference in references):
        return None, {}
    numbers = summary(
        [
            Verdict(1 + result.score, result.output, len(reference["baseline"]), reference["difficulty"])
            for result, reference in zip(results, references, strict=True)
        ]
    )
    rate, error, df = numbers["lc_win_rate"] / 100, numbers["lc_win_rate_stderr"] / 100, len(results) - 1
    half = t_quantile(df) * error
    return stats.Estimate(rate, error, rate - half, rate + half, len(results), df), numbers


def win_rate(preferences: Sequence[float | None]) -> WinRate:
    """100 * mean(preference - 1) over the verdicts that exist; standard error sd / sqrt(n)."""
    shares = [_share(preference) for preference in preferences if preference is not None]
    if not shares:
        raise PreferenceError(f"expected at least one verdict, got {len(preferences)} preferences, none of them set")
    wins, losses = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    draws = len(shares) - wins - losses
    discrete = 100 * (wins + draws / 2) / len(shares)
    rate = stats.mean([100 * share for share in shares])
    return WinRate(rate, discrete, wins, losses, draws, missing=len(preferences) - len(shares))


def length_controlled(weights: Weights, difficulties: Sequence[float]) -> stats.Estimate:
    """The win rate in percent that the weights predict for these instructions were all lengths equal."""
    if not difficulties:
        raise PreferenceError("expected the difficulty of every instruction, got none")
    logits = weights.constant + weights.difficulty * np.asarray(difficulties, dtype=float)
    return stats.mean([float(rate) for rate in 100 * _sigmoid(logits)])


def fit(verdicts: Sequence[Verdict], anchors: Sequence[Anchor] = ()) -> Weights:
    """The weights that explain the verdicts: logistic regression with an L1 penalty, its strength by 5-fold validation.

    Minimises |w|_1 + C * sum_i s_i * crossentropy(p_i, sigmoid(x_i . w)) over ten C from 1e-4 to 1e4; the C with the
    lowest mean cross-entropy on left-out fifths wins. Writing p_i as two rows, labelled 1 and 0 and weighted p_i and
    1 - p_i, is the same sum; both copies are then in one fold. s_i is 1; anchors weigh 0.1 and have constant 0.
    """
    judged = [verdict for verdict in verdicts if verdict.preference is not None]
    if len(judged) + len(anchors) < FOLDS:
        raise PreferenceError(f"expected at least {FOLDS} verdicts to fit a length control, got {len(judged)}")
    deltas = np.array([verdict.baseline_length - len(verdict.output) for verdict in judged], dtype=float)
    spread = float(deltas.std(ddof=1)) if len(deltas) > 1 else 0.0
    lengths = np.tanh(deltas / spread) if spread else np.zeros(len(deltas))
    own = [(length, verdict.difficulty, 1.0) for length, verdict in zip(lengths, judged, strict=True)]
    x = np.array([(math.tanh(anchor.length), anchor.difficulty, 0.0) for anchor in anchors] + own)
    p = np.array([anchor.preference for anchor in anchors] + [_share(verdict.preference) for verdict in judged])
    s = np.array([ANCHOR_WEIGHT] * len(anchors) + [1.0] * len(judged))
    losses = [_validation_loss(x, p, s, strength) for strength in STRENGTHS]
    best = STRENGTHS[losses.index(min(losses))]
    return Weights(*(float(w) for w in _lasso_logistic(x, p, best * s)))


def suspect(raw: float, controlled: float) -> bool:
    """Whether length control moved a win rate (percent) so far that the fit may have failed.

    Down: by more than 10 points and more than a quarter of the raw rate. Up: by more than 10 points and more than a
    quarter of the raw loss rate.
    """
    moved = controlled - raw
    return moved > max(10.0, (100 - raw) / 4) or -moved > max(10.0, raw / 4)


def duplicates(outputs: Sequence[str]) -> float:
    """The share of outputs that also answer another instruction, word for word; 1 if it always says the same."""
    counts = Counter(outputs)
    return sum(count for count in counts.values() if count > 1) / len(outputs) if outputs else 0.0


def _share(preference: float | None) -> float:
    """A preference as the probability that the model wins, 0 to 1."""
    if preference is None or not (preference == 0 or 1 <= preference <= 2):
        raise PreferenceError(
            f"expected a preference from 1 (baseline) to 2 (model), or 0 for a draw; got {preference!r}"
        )
    return 0.5 if preference == 0 else float(preference) - 1


def _validation_loss(x: Any, p: Any, s: Any, strength: float) -> float:
    """Mean weighted cross-entropy of left-out rows; row i is left out of fold i modulo 5."""
    fold = np.arange(len(p)) % FOLDS
    losses = []
    for left_out in range(FOLDS):
        kept, test = fold != left_out, fold == left_out
        w = _lasso_logistic(x[kept], p[kept], strength * s[kept])
        losses.append(float(np.mean(s[test] * _cross_entropy(x[test] @ w, p[test]))))
    return math.fsum(losses) / FOLDS


def _lasso_logistic(x: Any, p: Any, s: Any) -> Any:
    """Minimise |w|_1 + sum s * crossentropy(p, sigmoid(x w)) by Newton steps, each solved by coordinate descent."""
    w = np.zeros(x.shape[1])
    value = _objective(w, x, p, s)
    for _ in range(100):
        q = _sigmoid(x @ w)
        gradient = x.T @ (s * (q - p))
        hessian = (x.T * (s * q * (1 - q))) @ x + 1e-12 * np.eye(len(w))
        step = _penalised_step(w, gradient, hessian)
        size = 1.0
        while (tried := _objective(w + size * step, x, p, s)) > value and size > 1e-10:
            size /= 2
        if tried >= value - 1e-13 * max(1.0, value):
            break
        w, value = w + size * step, tried
    return w


def _penalised_step(w: Any, gradient: Any, hessian: Any) -> Any:
    """The d that minimises gradient . d + d . hessian . d / 2 + |w + d|_1."""
    d = np.zeros_like(w)
    for _ in range(1000):
        before = d.copy()
        for j in range(len(w)):
            curvature = hessian[j, j]
            centre = w[j] + d[j] - (gradient[j] + hessian[j] @ d) / curvature
            d[j] = math.copysign(max(abs(centre) - 1 / curvature, 0.0), centre) - w[j]
        if np.abs(d - before).max() < 1e-12:
            break
    return d


def _objective(w: Any, x: Any, p: Any, s: Any) -> float:
    return float(np.abs(w).sum() + (s * _cross_entropy(x @ w, p)).sum())


def _cross_entropy(logits: Any, p: Any) -> Any:
    return np.logaddexp(0.0, logits) - p * logits


def _sigmoid(logits: Any) -> Any:
    return np.exp(-np.logaddexp(0.0, -logits))
