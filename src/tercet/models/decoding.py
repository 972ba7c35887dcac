"""The rows that the local generator is writing: admitted, moved on by a token, retired (hop 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tercet.models.cache import Cache, Prefill
from tercet.models.draw import draw, uniforms
from tercet.models.flops import attended_pairs
from tercet.models.forest import Tree, plant
from tercet.models.policy import Policy
from tercet.models.work import Work
from tercet.rows import Sampling

Ids = Sequence[int]


class Ends(NamedTuple):
    """What ends a completion beside its budget: end tokens, stop strings as the tokenizer writes them, the context."""

    stops: set[int]
    tokenizer: Any
    room: int  # tokens of the model's context


@dataclass
class Row:
    """One sample in the making."""

    prompt: int
    sample: int
    uniforms: list[float]
    limit: int
    start: int  # tokens of its prompt
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class Decoding:
    """The rows being decoded; row b lives in slot b of the cache."""

    def __init__(self, policy: Policy, cache: Cache, sampling: Sampling, ends: Ends, work: Work) -> None:
        self.policy, self.cache, self.sampling, self.ends, self.work = policy, cache, sampling, ends, work
        self.window = max((len(words) for words in sampling.stop), default=0) + 4  # tokens that may hold a stop string
        self.rows: list[Row] = []
        self.finished: list[Row] = []

    def admit(self, prompts: Sequence[Ids], queue: list[tuple[int, list[int]]], names: Sequence[int]) -> None:
        """Prefill as many prompts as there are places for, and draw each new row's first token."""
        taken = []
        places = self.cache.capacity - len(self.rows)
        while queue and len(queue[-1][1]) <= places:
            taken.append(queue.pop())
            places -= len(taken[-1][1])
        first, offset = len(self.rows), self.cache.offset
        rows = [
            Row(
                i,
                s,
                uniforms(self.sampling, names[i], s),
                min(self.sampling.max_new_tokens, self.ends.room - len(prompts[i])),
                len(prompts[i]),
            )
            for i, samples in taken
            for s in samples
        ]
        forest = plant([Tree(prompts[i][offset:], []) for i, _ in taken]).to(self.cache.lengths.device)
        counts = [len(samples) for _, samples in taken]
        layout = Prefill(forest, self.cache, first, counts)
        hidden = self.policy.hidden(layout, forest.input_ids, forest.position_ids + offset)
        ends = [segment.end - 1 for segment in forest.segments]
        spread = [end for end, count in zip(ends, counts, strict=True) for _ in range(count)]
        lengths = [len(prompts[i]) - offset for i, samples in taken for _ in samples]
        self.cache.lengths[first : first + len(rows)] = torch.tensor(lengths, device=self.cache.lengths.device)
        self.rows.extend(rows)
        self.work.add(forest.num_tokens, attended_pairs(forest) + forest.num_tokens * offset, len(rows))
        self._draw(rows, hidden[spread])

    def step(self) -> None:
        """One token for every row."""
        size, device = len(self.rows), self.cache.lengths.device
        last = torch.tensor([row.token_ids[-1] for row in self.rows], device=device)
        self.cache.begin(size)
        hidden = self.policy.hidden(self.cache, last, self.cache.lengths[:size] + self.cache.offset)
        self.cache.lengths[:size] += 1
        self.work.add(size, sum(row.start + len(row.token_ids) for row in self.rows), size)
        self._draw(self.rows, hidden)

    def _draw(self, rows: list[Row], hidden: Tensor) -> None:
        logits = self.policy.model.get_output_embeddings()(hidden)
        numbers = [row.uniforms[len(row.token_ids)] for row in rows] if self.sampling.temperature else []
        tokens, logps = draw(logits, torch.tensor(numbers, device=logits.device), self.sampling)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            row.token_ids.append(token)
            row.logps.append(logp)

    def retire(self) -> None:
        """Move finished rows out and close the gaps with the last rows."""
        stopped = self._stopped()
        over = [
            b
            for b, row in enumerate(self.rows)
            if row.token_ids[-1] in self.ends.stops or len(row.token_ids) >= row.limit or stopped[b]
        ]
        self.finished = [self.rows[b] for b in over]
        for b in reversed(over):
            last = len(self.rows) - 1
            if b != last:
                self.cache.move(last, b)
                self.rows[b] = self.rows[last]
            self.rows.pop()

    def _stopped(self) -> list[bool]:
        """Which rows have just written a stop string."""
        if not self.sampling.stop:
            return [False] * len(self.rows)
        tails = self.ends.tokenizer.batch_decode([row.token_ids[-self.window :] for row in self.rows])
        return [any(words in tail for words in self.sampling.stop) for tail in tails]
