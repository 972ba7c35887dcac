"""The rows that the local generator is decoding: admitted, extended token by token, retired."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tercet.device.graphs import Graphs
from tercet.device.readback import Readback, send
from tercet.models.flops import ComputeAccount, attended_pairs
from tercet.models.forest import Forest, Tree, pack_forest
from tercet.models.kv_cache import Cache, Prefill
from tercet.models.policy import Policy
from tercet.models.sampling import draw, uniforms
from tercet.rows import Sampling

Ids = Sequence[int]


class Ends(NamedTuple):
    """What ends a completion beside its budget: end tokens, stop strings as the tokenizer writes them, the context."""

    stops: set[int]
    tokenizer: Any
    context: int  # tokens

    def ended(self, rows: list[DecodingRow], words: Sequence[str]) -> list[DecodingRow]:
        """Those of the rows whose last token ends them."""
        for row, stopped in zip(rows, self.stopped(rows, words), strict=True):
            row.ended = stopped or row.token_ids[-1] in self.stops or len(row.token_ids) >= row.limit
        return [row for row in rows if row.ended]

    def stopped(self, rows: list[DecodingRow], words: Sequence[str]) -> list[bool]:
        """Which rows have just written one of these stop strings."""
        if not words or not rows:
            return [False] * len(rows)
        window = max(map(len, words)) + 4  # tokens that may hold a stop string
        tails = self.tokenizer.batch_decode([row.token_ids[-window:] for row in rows])
        return [any(one in tail for one in words) for tail in tails]


@dataclass
class DecodingRow:
    """One sample that is being decoded."""

    prompt: int
    sample: int
    limit: int
    start: int  # tokens of its prompt
    drawn: int = 0  # tokens of its answer, with those that the host has not read yet
    ended: bool = False
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens whose keys are kept: all but the last drawn."""
        return self.start + self.drawn - 1

    @property
    def full(self) -> bool:
        """Whether its budget is spent."""
        return self.drawn >= self.limit


class Decoding:
    """The rows being decoded; row b lives in slot b of the cache.

    Where `late`, a step starts before the host has read what the last one drew: tokens stay on the device, and a card
    never waits for the host. A row found to have ended is one token ahead by then; that token is thrown away.
    """

    def __init__(
        self, policy: Policy, cache: Cache, sampling: Sampling, ends: Ends, work: ComputeAccount, *, late: bool
    ) -> None:
        self.policy, self.cache, self.sampling = policy, cache, sampling
        self.ends, self.work, self.late = ends, work, late
        self.device = cache.lengths.device
        self.last = torch.zeros_like(cache.lengths)  # each slot's last token
        self.counts = torch.zeros_like(cache.lengths)  # how many it has drawn
        self.active = torch.zeros_like(cache.lengths)  # 1 where a row is, 0 where a step is only filled up
        width = sampling.max_new_tokens if sampling.temperature else 0
        self.numbers = torch.zeros(len(cache.lengths), width, device=self.device)  # its own random numbers
        self.graphs = Graphs(self.device)
        self.rows: list[DecodingRow] = []
        self.finished: list[DecodingRow] = []
        self.pending: deque[tuple[list[DecodingRow], Readback]] = deque()

    def admit(self, prompts: Sequence[Ids], queue: list[tuple[int, list[int]]], names: Sequence[int]) -> bool:
        """Prefill as many prompts as the cache can take, and draw each new row's first token; whether it took any."""
        first = len(self.rows)
        taken: list[list[DecodingRow]] = []
        while queue and (rows := self._reserved(*queue[-1], prompts, first + sum(map(len, taken)))):
            taken.append(rows)
            queue.pop()
        if not taken:
            return False
        if self.sampling.temperature:
            own = [uniforms(self.sampling, names[row.prompt], row.sample) for group in taken for row in group]
            self.numbers[first : first + len(own)] = self._sent(torch.stack(own).float())
        self._prefill([prompts[rows[0].prompt] for rows in taken], taken)
        return True

    def _prefill(self, prompts: Sequence[Ids], taken: Sequence[Sequence[DecodingRow]]) -> tuple[Forest, Tensor]:
        """Read prompts, each for its group of rows, and draw their first tokens; what was read, and its hidden states.

        Only what follows the shared prefix is computed; the rows of one prompt share its keys.
        """
        offset = self.cache.offset
        forest = pack_forest([Tree(ids[offset:], []) for ids in prompts]).moved(self._sent)
        layout = self._layout(forest, [len(rows) for rows in taken])
        hidden = self.policy.hidden(layout, forest.input_ids, forest.position_ids + offset)
        self.work.add(forest.num_tokens, attended_pairs(forest) + forest.num_tokens * offset, sum(map(len, taken)))
        ends = [segment.end - 1 for segment, group in zip(forest.segments, taken, strict=True) for _ in group]
        self._begin_rows(taken, hidden.index_select(0, self._sent(torch.tensor(ends))))
        return forest, hidden

    def _layout(self, forest: Forest, counts: list[int]) -> Prefill:
        """What reads prompts for so many rows each, from the first free slot on."""
        return Prefill(forest, self.cache, len(self.rows), counts)

    def _begin_rows(self, taken: Sequence[Sequence[DecodingRow]], last: Tensor) -> None:
        """Let rows begin behind their prompts, whose last hidden states are `(B, H)`, and draw their first tokens."""
        first, rows = len(self.rows), [row for group in taken for row in group]
        slots = slice(first, first + len(rows))
        self.cache.lengths[slots] = self._sent(torch.tensor([row.start - self.cache.offset for row in rows]))
        self.counts[slots], self.active[slots] = 0, 1
        self.rows.extend(rows)
        self._await(rows, *self._draw(slots, last))

    def step(self) -> None:
        """One token for every row."""
        longest = max(row.length for row in self.rows) - self.cache.offset
        size, reach = self.cache.shape(len(self.rows), longest + 1)
        self.work.add(len(self.rows), sum(row.length + 1 for row in self.rows), len(self.rows))
        tokens, logps = self.graphs.run((size, reach), partial(self._step, size, reach))
        self._await(self.rows[:], tokens[: len(self.rows)], logps[: len(self.rows)])

    def retire(self) -> None:
        """Read what has been drawn, move finished rows out and close the gaps with the last rows."""
        ahead = self.late and not all(row.full for row in self.rows)
        self.finished = []
        while len(self.pending) > ahead:
            self.finished += self._read()
        over = [b for b, row in enumerate(self.rows) if row.ended or row.full]
        for b in reversed(over):  # from the end, so that the row which fills a gap is never one that has ended
            last = len(self.rows) - 1
            if b != last:
                self._move(last, b)
            self.cache.drop(last)
            self.rows.pop()
        gone = slice(len(self.rows), len(self.rows) + len(over))
        self.counts[gone] = self.active[gone] = 0

    def _reserved(self, prompt: int, samples: list[int], prompts: Sequence[Ids], first: int) -> list[DecodingRow]:
        """The rows of a prompt's samples, in slots `first` and on; none where the cache cannot take them."""
        start, offset = len(prompts[prompt]), self.cache.offset
        limit = min(self.sampling.max_new_tokens, self.ends.context - start)
        if not self.cache.reserve(first, len(samples), start - offset, start - offset + limit):
            return []
        return [DecodingRow(prompt, sample, limit, start) for sample in samples]

    def _sent(self, tensor: Tensor) -> Tensor:
        return send(tensor, self.device)

    def _step(self, size: int, reach: int) -> tuple[Tensor, Tensor]:
        """The device's part of a step: the next tokens of the first `size` slots, none of them over `reach` long."""
        return self._draw(slice(0, size), self._advance(size, reach))

    def _advance(self, size: int, reach: int) -> Tensor:
        """Read the last tokens of the first `size` slots; the hidden states of what follows."""
        lengths = self.cache.lengths[:size]
        self.cache.begin(size, reach)
        hidden = self.policy.hidden(self.cache, self.last[:size], lengths + self.cache.offset)
        lengths += self.active[:size]
        return hidden

    def _draw(self, slots: slice, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each of `slots`, `(B,)`, and its log-probability."""
        logits = self.policy.logits(hidden)
        counts = self.counts[slots]
        numbers = self.numbers[slots].gather(1, counts[:, None])[:, 0] if self.sampling.temperature else logits[:0, 0]
        tokens, logps = draw(logits, numbers, self.sampling)
        self.last[slots] = tokens
        counts += self.active[slots]
        return tokens, logps

    def _await(self, rows: list[DecodingRow], tokens: Tensor, logps: Tensor) -> None:
        """Note that each of `rows` has drawn a token, and start its copy to the host."""
        for row in rows:
            row.drawn += 1
        self.pending.append((rows, Readback((tokens, logps))))

    def _read(self) -> list[DecodingRow]:
        """Give the rows of the oldest step their tokens; returns the rows that end with them."""
        rows, readback = self.pending.popleft()
        drawn = [(row, *pair) for row, *pair in zip(rows, *readback.read(), strict=True) if not row.ended]
        for row, token, logp in drawn:
            row.token_ids.append(int(token))
            row.logps.append(logp)
        rows = [row for row, *_ in drawn]
        return self.ends.ended(rows, self.sampling.stop)

    def _move(self, source: int, target: int) -> None:
        self.cache.move(source, target, self.rows[source].length - self.cache.offset)
        for each in (self.last, self.counts, self.active, self.numbers):
            each[target] = each[source]
        self.rows[target] = self.rows[source]
