"""The value model of PPO: a reward model read at every position (paper §6.2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tercet.models.classifier import load_classifier
from tercet.models.forest import Forest, ForestError
from tercet.models.policy import Policy, Reader
from tercet.train.reward_model import open_scorer


class Critic(Reader):
    """A transformer with a scalar head: the value of a state is the head's output at its last token."""

    def forward(self, forest: Forest) -> tuple[Tensor, Tensor]:
        """Values before each predicted token (P,), and after the last token of each leaf (L,); fp32."""
        places = torch.cat((forest.predict_P, forest.last_L))
        score: nn.Module = self.model.score  # type: ignore[assignment]
        values = self.whole(score(self.at(forest, places)).squeeze(-1).float(), places)
        before, after = values.split((len(forest.predict_P), len(forest.last_L)))
        return before.clone(), after.clone()  # see Scorer


class ActorCritic(nn.Module):
    """A policy and its critic: two models without a shared trunk, trained side by side."""

    def __init__(self, policy: Policy, critic: Critic) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic

    def run(self, function: Callable[..., Tensor], *given: Any) -> Tensor:
        """See `Reader.run`."""
        return function(*given)

    def forward(self, forest: Forest, *, part: str, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The output of the policy or of the critic, as `part` says."""
        return self.critic(forest) if part == CRITIC else self.policy(forest, temperature=temperature)


POLICY, CRITIC = "policy.", "critic."


def open_critic(folder: Path, pad_id: int | None, seed: int, *, like: Policy | None = None) -> Critic:
    """The value model of a reward model's folder with its head, or of a model's folder with a fresh head.

    It is read, and its numbers are left on the disk, as those of the policy that it is `like`.
    """
    padded = like is not None and like.padded
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return Critic(open_scorer(folder, pad_id, seed, like=like).model, padded=padded)
    model = load_classifier(folder, like=like)
    if model.score.out_features != 1:
        raise ForestError(f"{folder}: the head has {model.score.out_features} outputs; a value model has one")
    return Critic(model, padded=padded)
