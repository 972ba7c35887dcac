"""Rows that join and leave a running decode between two tokens, each with sampling settings of its own.

`Live` serves models that a forest serves; `ByRows` the others, whose rows must all have read equally many tokens: there
a batch of equal settings is written to its end before the next begins. In both a row draws by its own seed, so what
else is written beside it does not matter (but for rounding, which depends on the size of a batch).

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tercet.device.readback import Readback
from tercet.models.decoding import Decoding, DecodingRow, Ends
from tercet.models.flops import attended_pairs
from tercet.models.forest import Forest
from tercet.models.generate import LocalGenerator
from tercet.models.kv_cache import Cache, Prefill
from tercet.models.openai.grammar import matcher
from tercet.models.openai.growing import GrowingCache
from tercet.models.openai.jobs import Ticket, Written
from tercet.models.openai.logps import TokenLogps, likeliest, look, prompt_logps
from tercet.models.openai.remembered import Continuation, NotingPrefill, PromptMemory, ReadPrompt
from tercet.models.paged import PagedCache
from tercet.models.row_decoding import Room, RowDecoding
from tercet.models.sampling import draw, uniforms
from tercet.rows import Sampling, Seeded

REMEMBERED = 32  # of the tokens that a cache may hold, one in so many is remembered besides
PREFILL = 2048  # tokens of prompts that are read at once, beyond which what is being written would wait too long
How = tuple[float, float, int]  # temperature, top_p, top_k


class Live(Decoding):
    """The rows being written."""

    def __init__(self, generator: LocalGenerator, capacity: int) -> None:
        """At most `capacity` rows at once."""
        policy, tokens = generator.policy, generator.tokens
        ends = Ends(generator.chat.stops, generator.chat.tokenizer, generator.context)
        cache: Cache = GrowingCache(policy, capacity, tokens)
        if generator.paged:
            cache = PagedCache.of(policy, capacity, min(generator.context, tokens), rows=1, tokens=tokens)
        super().__init__(policy, cache, Sampling(1), ends, generator.work, late=generator.late)
        self.generator, self._own_late, self._entered = generator, generator.late, False
        self._looked: deque[tuple[list[Written], Readback | None]] = deque()
        self.memory = PromptMemory(0 if generator.paged else tokens // REMEMBERED)  # pages take all room of a card
        self._reading: NotingPrefill | None = None

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.rows or self.pending)

    def turn(self, queue: deque[Ticket]) -> list[DecodingRow]:
        """Let in what waits, or write a token of every row; the rows that have ended.

        Never twice in a row is somebody let in, so that what is being written goes on.
        """
        self._entered = not self._entered and self._enter(queue)
        ended: list[DecodingRow] = []
        if not self._entered and self.rows:
            self.retire()  # those whose readers have gone
            ended = self.finished
            if self.rows:
                self.step()
        self.retire()
        return ended + self.finished

    def _enter(self, queue: deque[Ticket]) -> bool:
        """Read the prompts of as many tickets as there is room for, and draw the first token of each of their rows."""
        groups: list[list[Written]] = []
        tokens = 0
        while queue and tokens < PREFILL and queue[0].job.sampling.max_new_tokens:
            rows = self._begun(queue[0], len(self.rows) + sum(map(len, groups)))
            if not rows:
                break
            groups.append(rows)
            tokens += rows[0].start
            if not queue[0].left:
                queue.popleft()
        if not groups:
            return False
        # who is bound by a grammar must know the last token before the next can be drawn
        bound = any(row.matcher for rows in (self._written(), *groups) for row in rows)
        self.late = self._own_late and not bound
        self._read_prompts(groups)
        return True

    def _read_prompts(self, groups: Sequence[list[Written]]) -> None:
        """Read what is left of the prompts that begin like one read before, and between them the others together."""
        fresh: list[list[Written]] = []
        for rows in groups:
            job = rows[0].ticket.job
            before = None if job.echo else self.memory.find(job.ids)  # an echo needs every hidden state
            if before is None:
                fresh.append(rows)
            else:
                self._read_whole(fresh)
                self._read_rest(rows, *before)
                fresh = []
        self._read_whole(fresh)

    def _read_whole(self, groups: Sequence[list[Written]]) -> None:
        if not groups:
            return
        forest, hidden = self._prefill([rows[0].ticket.job.ids for rows in groups], groups)
        for place, (segment, (row, *_)) in enumerate(zip(forest.segments, groups, strict=True)):
            job, own = row.ticket.job, hidden[segment.start : segment.end]
            if job.echo and job.top >= 0 and not row.ticket.prompt:
                row.ticket.prompt += prompt_logps(self.policy, job.ids, own, job.top)
            if self._reading is not None:
                self.memory.keep(job.ids, self._reading.read[place], own[-1:].clone())
        self._reading = None

    def _read_rest(self, rows: list[Written], before: ReadPrompt, length: int) -> None:
        """The same of one prompt whose first `length` tokens were read before."""
        ids = rows[0].ticket.job.ids
        layout = Continuation(ids, before, length, self.cache, len(self.rows), len(rows))
        last, rest = before.last, layout.rest
        if rest.num_tokens:
            last = self.policy.hidden(layout, rest.input_ids, rest.position_ids + length)[-1:].clone()
            self.work.add(rest.num_tokens, attended_pairs(rest) + rest.num_tokens * length, len(rows))
            self.memory.keep(ids, layout.read, last)
        else:
            layout.give(before)
        self._begin_rows([rows], last.expand(len(rows), -1))

    def _layout(self, forest: Forest, counts: list[int]) -> Prefill:
        if not self.memory.most:
            return super()._layout(forest, counts)
        self._reading = NotingPrefill(forest, self.cache, len(self.rows), counts)
        return self._reading

    def step(self) -> None:
        """One token for every row."""
        longest = max(row.length for row in self.rows)
        size, reach = self.cache.shape(len(self.rows), longest + 1)
        self.work.add(len(self.rows), sum(row.length + 1 for row in self.rows), len(self.rows))
        logits = self.graphs.run((size, reach), lambda: self.policy.logits(self._advance(size, reach)))
        self._await(self.rows[:], *self._choose(slice(0, len(self.rows)), logits[: len(self.rows)]))

    def _begun(self, ticket: Ticket, first: int) -> list[Written]:
        """Rows for as many of a ticket's samples as the cache takes from slot `first` on."""
        start = len(ticket.job.ids)
        limit = min(ticket.job.sampling.max_new_tokens, self.ends.context - start)
        count = min(len(ticket.left), self.cache.capacity - first)
        while count > 0 and not self.cache.reserve(first, count, start, start + limit):
            count //= 2
        if not count and not first and not self.pending:
            raise MemoryError(f"a prompt of {start} tokens and an answer of {limit} are more than the cache holds")
        rows = [written(ticket, sample, limit) for sample in ticket.left[:count]]
        for row in rows:
            row.matcher = matcher(ticket.job.grammar, self.ends.tokenizer, self.ends.stops)
        del ticket.left[:count]
        return rows

    def _written(self) -> list[Written]:
        return [row for row in self.rows if isinstance(row, Written)]

    def _draw(self, slots: slice, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._choose(slots, self.policy.logits(hidden))

    def _choose(self, slots: slice, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The next token of each row in `slots`, and its log-prob: rows with equal settings are drawn together."""
        rows = self._written()[slots]
        own_BV, logits_BV = logits_BV, _allowed(rows, logits_BV)
        groups: dict[How, list[int]] = {}
        for place, row in enumerate(rows):
            sampling = row.ticket.job.sampling
            groups.setdefault((sampling.temperature, sampling.top_p, sampling.top_k), []).append(place)
        tokens = torch.empty(len(rows), dtype=torch.long, device=self.device)
        logps = torch.empty(len(rows), device=self.device)
        for (temperature, top_p, top_k), places in groups.items():
            own = [row.numbers[row.drawn] for row in (rows[place] for place in places) if row.numbers is not None]
            numbers = self._sent(torch.stack(own).float()) if own else logits_BV[:0, 0]
            logits = logits_BV if len(groups) == 1 else logits_BV[places]
            tokens[places], logps[places] = draw(logits, numbers, Sampling(1, temperature, top_p, top_k))
        self.last[slots] = tokens
        self._looked.append(_looked(rows, own_BV, tokens))
        return tokens, logps

    def _read(self) -> list[DecodingRow]:
        rows, readback = self._looked.popleft()
        open_rows = [row for row in self.pending[0][0] if isinstance(row, Written) and not row.ended]
        finished = super()._read()
        note(rows, readback, set(map(id, open_rows)))
        for row in open_rows:
            if row.matcher is not None and not row.ended:
                row.matcher.take(row.token_ids[-1])
            if not row.ended and any(self.ends.stopped([row], row.ticket.job.sampling.stop)):
                row.ended = True
                finished.append(row)
        return finished


class ByRows(RowDecoding):
    """The same for models that are read through their own cache; a batch is of tickets with equal settings."""

    def __init__(self, generator: LocalGenerator, capacity: int) -> None:
        """At most `capacity` rows at once."""
        ends = Ends(generator.chat.stops, generator.chat.tokenizer, generator.context)
        super().__init__(generator.policy, Sampling(1), ends, generator.work, watch=self._watch)
        self.generator, self.capacity = generator, capacity
        self._tasks: list[Ticket] = []
        self._steps: Iterator[RowDecoding] | None = None

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self._steps is not None

    def turn(self, queue: deque[Ticket]) -> list[DecodingRow]:
        """Begin a batch where none is under way, and write a token of every row; the rows that have ended."""
        if self._steps is None and queue and queue[0].job.sampling.max_new_tokens:
            self._begin(queue)
        if self._steps is not None and next(self._steps, None) is None:
            self._steps, self.rows, self.finished = None, [], []
        return list(self.finished)

    def _begin(self, queue: deque[Ticket]) -> None:
        how, most = queue[0].job.sampling, max(1, self.capacity // queue[0].job.sampling.n)
        self._tasks = [ticket for ticket in list(queue) if ticket.job.sampling == how][:most]
        for ticket in self._tasks:
            queue.remove(ticket)
            ticket.left.clear()
            if ticket.job.grammar:
                raise ValueError(f"{type(self.policy.model).__name__} cannot be held to JSON here")
            if ticket.job.echo and ticket.job.top >= 0:
                ticket.prompt += next(look(self.generator, [ticket.job.ids], ticket.job.top))
        self.sampling = Seeded(**vars(how), seeds=tuple(ticket.job.seed for ticket in self._tasks))
        prompts, room = [ticket.job.ids for ticket in self._tasks], Room(self.capacity, self.generator.tokens)
        self._steps = self.run(prompts, range(len(prompts)), room)

    def _row(self, prompt: int, sample: int, start: int) -> DecodingRow:
        ticket = self._tasks[prompt]
        limit = min(self.sampling.max_new_tokens, self.ends.context - start)
        return written(ticket, sample, 1 if ticket.cancelled else limit, prompt)

    def _watch(self, rows: Sequence[DecodingRow], logits_BV: Tensor, tokens_B: Tensor) -> None:
        own, readback = _looked([row for row in rows if isinstance(row, Written)], logits_BV, tokens_B)
        note(own, readback, set(map(id, own)))


def rows_of(generator: LocalGenerator, capacity: int) -> Live | ByRows:
    """What writes with this model, inside the generator's own settings of it (`LocalGenerator.writing`)."""
    return ByRows(generator, capacity) if generator.policy.padded else Live(generator, capacity)


def written(ticket: Ticket, sample: int, limit: int, prompt: int = 0) -> Written:
    """A new row of a ticket, whose prompt is one of several that are read together."""
    sampling = Seeded(**vars(ticket.job.sampling), seeds=(ticket.job.seed,))
    numbers = uniforms(sampling, 0, sample) if sampling.temperature else None
    ticket.rows[sample] = Written(prompt, sample, limit, len(ticket.job.ids), ticket=ticket, numbers=numbers)
    return ticket.rows[sample]


def _allowed(rows: Sequence[Written], logits_BV: Tensor) -> Tensor:
    """The logits without those of tokens that a row's grammar forbids."""
    bound = [(place, row.matcher) for place, row in enumerate(rows) if row.matcher is not None]
    found_BV = logits_BV.clone() if bound else logits_BV
    for place, own in bound:
        found_BV[place] = own.allowed(logits_BV[place])
    return found_BV


def _looked(rows: list[Written], logits_BV: Tensor, tokens_B: Tensor) -> tuple[list[Written], Readback | None]:
    """Those of the rows that ask for log-probs, and these on their way to the host."""
    places = [place for place, row in enumerate(rows) if row.ticket.job.top >= 0]
    if not places:
        return [], None
    top = max(rows[place].ticket.job.top for place in places)
    found = likeliest(logits_BV[places], tokens_B[places], top)
    return [rows[place] for place in places], Readback((tokens_B[places], *found))


def note(rows: list[Written], readback: Readback | None, still: set[int]) -> None:
    """Give the rows that are `still` open the log-probs of the token that each has got."""
    if readback is None:
        return
    for row, token, logp, values, ids in zip(rows, *readback.read(), strict=True):
        if id(row) in still:
            pairs = list(zip(ids, values, strict=True))[: row.ticket.job.top]
            row.seen.append(TokenLogps(int(token), logp, pairs))
