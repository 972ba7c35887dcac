"""Log-probabilities that a client asks for: of the tokens of a text, and of the likeliest ones at their places.

All are in nats, under the model's own distribution, however a token was drawn.
Shape suffixes: T places of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tercet.models.forest import Tree, pack_forest
from tercet.models.generate import LocalGenerator
from tercet.models.policy import Policy

Ids = Sequence[int]
LOOK_TOKENS = 8192  # token budget of one forward pass for log-probs
CHUNK = 256  # positions whose logits exist at once


@dataclass(frozen=True)
class TokenLogps:
    """One token with its log-prob in nats (None for the first of a text) and the likeliest tokens at its place."""

    token: int
    logp: float | None
    likeliest: Sequence[tuple[int, float]] = ()


@torch.no_grad()
def look(generator: LocalGenerator, rows: Sequence[Ids], top: int) -> Iterator[list[TokenLogps]]:
    """The tokens of each row, with log-probs of all but the first."""
    most = max(1, LOOK_TOKENS // max(map(len, rows), default=1))
    for begin in range(0, len(rows), most):
        part = rows[begin : begin + most]
        forest = pack_forest([Tree(ids, []) for ids in part]).to(generator.device)
        hidden = generator.policy.hidden(forest, forest.input_ids, forest.position_ids)
        for ids, segment in zip(part, forest.segments, strict=True):
            yield prompt_logps(generator.policy, ids, hidden[segment.start : segment.end], top)


def prompt_logps(policy: Policy, ids: Ids, hidden: Tensor, top: int) -> list[TokenLogps]:
    """The tokens of a text, from the hidden states at their places."""
    found = [TokenLogps(ids[0], None)]
    for place in range(1, len(ids), CHUNK):
        tokens = ids[place : place + CHUNK]
        logits = policy.logits(hidden[place - 1 : place - 1 + len(tokens)])
        columns = likeliest(logits, torch.tensor(tokens, device=logits.device), top)
        for token, logp, values, likely in zip(tokens, *(one.tolist() for one in columns), strict=True):
            found.append(TokenLogps(token, logp, list(zip(likely, values, strict=True))))
    return found


def likeliest(logits_TV: Tensor, tokens_T: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs `(T,)` of these tokens, and log-probs and ids `(T, top)` of the likeliest ones."""
    logps = logits_TV.float().log_softmax(dim=1)
    values, ids = logps.topk(min(top, logps.shape[1]), dim=1)
    return logps.gather(1, tokens_T[:, None]).squeeze(1), values, ids
