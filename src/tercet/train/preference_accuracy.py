"""How often a scorer prefers the chosen answer: by subset, and in RewardBench's four sections (Lambert et al. 2024).

A test set is a stage of pairs; a pair's subset is its skill, or else its source.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tercet.models.chat import Chat
from tercet.rows import RowError, pair_from
from tercet.stats import Estimate, mean_score, weighted
from tercet.store import Context
from tercet.train.batch import Trees
from tercet.train.dpo import PAIRS
from tercet.train.tokens import NamedTree, Rule, prepare, stored

MATHS = "math-prm"
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": (MATHS, "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}


class Accuracy(NamedTuple):
    """Share of pairs whose chosen answer scores higher (equal scores count as wrong): of all, and by subset."""

    overall: Estimate
    subsets: dict[str, Estimate]


def subset_pairs(path: Path, chat: Chat, ctx: Context) -> Trees:
    """Every pair of a test set, whole, however long."""
    tokens = prepare(path, chat, SUBSETS, ctx)
    if not len(tokens):
        raise RowError(f"{path}: expected pairs to test a reward model on, found none; look at the stage's filters")
    return Trees(tokens, np.arange(len(tokens)), sys.maxsize)


def subset_trees(chat: Chat, path: Path, threads: int) -> Iterator[NamedTree]:
    """The trees of a preference stage, with the subset in place of the source."""
    trees = PAIRS.trees(chat, path, threads)
    for (name, value), (identity, source, tree) in zip(stored(path), trees, strict=True):
        yield identity, pair_from(value, name).skill or source, tree


SUBSETS = Rule("pairs by subset@1", subset_trees)


def by_subset(pairs: Trees, scores: Tensor) -> Accuracy:
    """Accuracies of scores `(pairs, 2)`."""
    right = (scores[:, 0] > scores[:, 1]).double().tolist()
    groups: dict[str, list[float]] = defaultdict(list)
    for code, one in zip(pairs.tokens.source_R[pairs.rows].tolist(), right, strict=True):
        groups[pairs.tokens.sources[code]].append(one)
    return Accuracy(mean_score(right), {name: mean_score(group) for name, group in sorted(groups.items())})


def sections(subsets: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """RewardBench's section scores as far as its subsets are there, and the mean of the four where all are.

    A section weighs its subsets by their pairs; in Reasoning the maths weighs as much as all code together, as in the
    published score (whose table counts the 447 pairs of math-prm as 984, six times 164).
    """
    found = {}
    for section, names in SECTIONS.items():
        here = [name for name in names if name in subsets]
        weights = {name: float(subsets[name].n) for name in here}
        if MATHS in here and len(here) > 1:
            weights[MATHS] = sum(weights.values()) - weights[MATHS]
        if here:
            shares = [weights[name] / sum(weights.values()) for name in here]
            found[section] = weighted([subsets[name] for name in here], shares)
    if len(found) == len(SECTIONS):
        found["mean"] = weighted(list(found.values()), [1 / len(found)] * len(found))
    return {section: _plain(one) for section, one in found.items()}


def accuracies(held: Accuracy | None, tests: dict[str, Accuracy]) -> dict[str, Any]:
    """The content of `tercet/accuracy.json`: `{"held_out": ..., "tests": {stage: ...}}`."""
    return {"held_out": held and _summary(held), "tests": {stage: _summary(one) for stage, one in tests.items()}}


def _summary(accuracy: Accuracy) -> dict[str, Any]:
    found: dict[str, Any] = _plain(accuracy.overall)
    found["subsets"] = {name: _plain(one) for name, one in accuracy.subsets.items()}
    if scores := sections(accuracy.subsets):
        found["rewardbench"] = scores
    return found


def _plain(one: Estimate) -> dict[str, float | None]:
    """JSON has no NaN, the error of a single pair."""
    return {"accuracy": one.value, "stderr": None if math.isnan(one.stderr) else one.stderr, "n": one.n}
