"""Decoding through the model's own cache, for models that no forest serves.

All rows of a batch have read equally many tokens, so no padding touches a recurrence. Prompts of unlike length share a
batch all the same: what the shortest has is read at once, and after it each step feeds every row one token, the next of
its prompt or the one it has just drawn. Samples of one prompt share its reading. A row that ends leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tercet.models.decoding import DecodingRow, Ends, Ids
from tercet.models.flops import ComputeAccount
from tercet.models.own_cache import OwnCache, cache_works
from tercet.models.policy import Policy
from tercet.models.sampling import draw, uniforms
from tercet.rows import Sampling

Watch = Callable[[Sequence[DecodingRow], Tensor, Tensor], None]  # rows, their logits `(B, V)` and tokens `(B,)`
APART = 16  # tokens by which prompts of one batch may differ in any case


class Room(NamedTuple):
    """How many rows are decoded at once, and how many tokens they may have in all."""

    rows: int
    tokens: int


@dataclass
class RowDecoding:
    """The rows being decoded, as `Decoding` shows them: after every step those left, and those that have ended."""

    policy: Policy
    sampling: Sampling
    ends: Ends
    work: ComputeAccount
    rows: list[DecodingRow] = field(default_factory=list)
    finished: list[DecodingRow] = field(default_factory=list)
    watch: Watch | None = None  # sees what each token was drawn from

    def run(self, prompts: Sequence[Ids], names: Sequence[int], room: Room) -> Iterator[RowDecoding]:
        """Decode all samples of all prompts; yields after every step. `names` are the streams of random numbers."""
        reread = not cache_works(self.policy.model)
        for batch in _batches([len(ids) for ids in prompts], self.sampling, room):
            cache = OwnCache(self.policy.model, reread=reread)
            yield from self._decode(cache, batch, prompts, names)

    def _decode(
        self, cache: OwnCache, batch: list[tuple[int, int]], prompts: Sequence[Ids], names: Sequence[int]
    ) -> Iterator[RowDecoding]:
        """Decode the (prompt, sample) pairs of a batch."""
        self.rows = [self._row(prompt, sample, len(prompts[prompt])) for prompt, sample in batch]
        numbers = {id(row): uniforms(self.sampling, names[row.prompt], row.sample).float() for row in self.rows}
        distinct = list(dict.fromkeys(prompt for prompt, _ in batch))
        read = min(len(prompts[prompt]) for prompt in distinct)
        logits = self._read(cache, [prompts[prompt][:read] for prompt in distinct], read)
        places = [distinct.index(prompt) for prompt, _ in batch]
        cache.choose(places)
        logits = logits[places]
        while True:
            drawing = [place for place, row in enumerate(self.rows) if row.start <= read]
            self._draw(logits[drawing], [self.rows[place] for place in drawing], numbers)
            self._leave(cache)
            yield self
            self._leave(cache)  # whose reader has gone meanwhile
            if not self.rows:
                return
            fed = [[prompts[row.prompt][read] if read < row.start else row.token_ids[-1]] for row in self.rows]
            read += 1
            logits = self._read(cache, fed, read)

    def _leave(self, cache: OwnCache) -> None:
        """Take the rows that have ended out of the batch."""
        left = [place for place, row in enumerate(self.rows) if not row.ended]
        if 0 < len(left) < len(self.rows):
            cache.choose(left)
        self.rows = [self.rows[place] for place in left]

    def _row(self, prompt: int, sample: int, start: int) -> DecodingRow:
        return DecodingRow(prompt, sample, min(self.sampling.max_new_tokens, self.ends.context - start), start)

    def _read(self, cache: OwnCache, ids: Sequence[Ids], length: int) -> Tensor:
        """Read new tokens of every row, after which each has read `length`."""
        new = len(ids[0])
        self.work.add(len(ids) * new, len(ids) * new * (2 * length - new + 1) / 2, len(ids))
        return cache.read(torch.tensor(ids, device=self.policy.model.device))

    def _draw(self, logits_BV: Tensor, rows: list[DecodingRow], numbers: dict[int, Tensor]) -> None:
        """Give each of these rows its next token, and note which end with it."""
        self.finished = []
        if not rows:
            return
        own = [numbers[id(row)][row.drawn] for row in rows] if self.sampling.temperature else []
        uniform = torch.stack(own).to(logits_BV.device) if own else logits_BV[:0, 0]
        tokens, logps = draw(logits_BV, uniform, self.sampling)
        if self.watch is not None:
            self.watch(rows, logits_BV, tokens)
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            row.token_ids.append(token)
            row.logps.append(logp)
            row.drawn += 1
        self.finished = self.ends.ended(rows, self.sampling.stop)


def _batches(lengths: Sequence[int], sampling: Sampling, room: Room) -> Iterator[list[tuple[int, int]]]:
    """Pairs of prompt and sample that are decoded together: of like length, and no more than there is room for."""
    apart = max(APART, sampling.max_new_tokens // 4)  # more steps for the longer prompts than that cost too much
    batch: list[tuple[int, int]] = []
    longest = 0
    for prompt in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for sample in range(sampling.n):
            full = len(batch) >= room.rows or (len(batch) + 1) * (longest + sampling.max_new_tokens) > room.tokens
            if batch and (full or longest - lengths[prompt] > apart):
                yield batch
                batch = []
            longest = longest if batch else lengths[prompt]
            batch.append((prompt, sample))
    if batch:
        yield batch
