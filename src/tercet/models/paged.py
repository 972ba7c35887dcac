"""The KV cache in pages: a row holds as many as its own prompt and budget need, and samples share their prompt's.

A row's pages are reserved when it is admitted, for the longest answer that it may write, so that memory never runs out
during decoding and nothing has to be computed twice. Full pages of a prompt are kept once for all its samples. Page 0
belongs to no row: rows that only fill a step up to its size write there, and it is never read.

Shape suffixes: B rows, K key heads, L tokens of a step's longest row, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tercet.device.readback import send
from tercet.models.kv_cache import Cache, KeyStore, Prefill, Prefix
from tercet.models.policy import Policy

PAGE = 64  # tokens


class PagedCache(Cache):
    """Keys and values in pages, `(pages, K, PAGE, D)` by layer, and the table of each row's pages."""

    def __init__(self, kept: KeyStore, capacity: int, length: int, prefix: Prefix | None) -> None:
        super().__init__(kept, capacity, prefix)
        slots, device = rows_of_step(capacity), self.lengths.device
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.table = torch.zeros(slots, pages_of(length), dtype=torch.long, device=device)
        self.index: dict[int, Tensor] = {}  # of the pages of a step's rows, by number of key heads
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.users = [0] * kept.rows
        self.free = list(range(kept.rows - 1, 0, -1))
        self.filling: tuple[Prefill, Tensor, dict[int, Tensor]] | None = None

    @classmethod
    def of(
        cls, policy: Policy, capacity: int, length: int, *, rows: int, tokens: int, prefix: Prefix | None = None
    ) -> PagedCache:
        """Pages for `tokens` tokens with the prefix, and for at least `rows` of `capacity` rows of `length`."""
        most = (tokens - (prefix.length if prefix else 0)) // PAGE
        pages = min(max(most, rows * pages_of(length)), capacity * pages_of(length))
        return cls(KeyStore(policy, pages + 1, PAGE), capacity, length, prefix)

    def reserve(self, first: int, count: int, length: int, most: int) -> bool:
        """See `Cache.reserve`: pages for `most` tokens each, those that `length` tokens fill in common."""
        common, whole = length // PAGE, pages_of(most)
        if first + count > self.capacity or common + count * (whole - common) > len(self.free):
            return False
        shared = [self.free.pop() for _ in range(common)]
        for slot in range(first, first + count):
            self.held[slot] = shared + [self.free.pop() for _ in range(whole - common)]
            for page in self.held[slot]:
                self.users[page] += 1
        width = self.table.shape[1]
        rows = [pages + [0] * (width - len(pages)) for pages in self.held[first : first + count]]
        self.table[first : first + count] = send(torch.tensor(rows), self.table.device)
        return True

    def shape(self, size: int, reach: int) -> tuple[int, int]:
        """See `Cache.shape`: few kinds of steps, as each is recorded on a card."""
        return rows_of_step(size), min(pages_of_step(pages_of(reach)), self.table.shape[1]) * PAGE

    def begin(self, size: int, reach: int) -> None:
        """See `Cache.begin`; what is looked at are whole pages."""
        pages = pages_of(reach)
        self._see(size, pages * PAGE)
        table, lengths = self.table[:size], self.lengths[:size, None]
        page = table.gather(1, lengths // PAGE)
        for number in self.kept.heads:
            heads = torch.arange(number, device=table.device)
            self.index[number] = (table[:, None, :pages] * number + heads[:, None]).flatten()
            self.places[number] = ((page * number + heads) * PAGE + lengths % PAGE).flatten()

    def fill(self, layer: int, key: Tensor, value: Tensor, prompts: Prefill) -> None:
        """See `Cache.fill`: full pages once, what is left of a prompt for each of its rows."""
        if self.filling is None or self.filling[0] is not prompts:
            self.filling = (prompts, *self._filling(prompts))
        _, source, places = self.filling
        for kept, new in ((self.kept.keys[layer], key), (self.kept.values[layer], value)):
            tokens = new[0].index_select(1, source).transpose(0, 1).reshape(-1, new.shape[3])
            kept.view(-1, new.shape[3]).index_copy_(0, places[key.shape[1]], tokens)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Cache.move`: the pages stay where they are."""
        self._release(target)
        self.held[source], self.held[target] = [], self.held[source]
        self.table[target], self.lengths[target] = self.table[source], self.lengths[source]

    def drop(self, slot: int) -> None:
        """See `Cache.drop`; pages that no row holds any longer are free."""
        super().drop(slot)
        self._release(slot)
        self.table[slot] = 0

    def _release(self, slot: int) -> None:
        for page in self.held[slot]:
            self.users[page] -= 1
            if not self.users[page]:
                self.free.append(page)
        self.held[slot] = []

    def _filling(self, prompts: Prefill) -> tuple[Tensor, dict[int, Tensor]]:
        """Which tokens of the prompts are kept, and where each of their key heads goes, by the number of these."""
        source, pages_of_tokens, within = list[int](), list[int](), list[int]()
        slots = iter(self.held[prompts.first :])
        for segment, count in zip(prompts.forest.segments, prompts.counts, strict=True):
            length = segment.end - segment.start
            for row in range(count):
                pages = next(slots)
                # full pages are common to a prompt's rows: the first writes them, the others only what is left
                kept = range(length - length % PAGE if row else 0, length)
                source += [segment.start + token for token in kept]
                pages_of_tokens += [pages[token // PAGE] for token in kept]
                within += [token % PAGE for token in kept]
        page, place = torch.tensor(pages_of_tokens)[:, None], torch.tensor(within)[:, None]
        spread = {n: ((page * n + torch.arange(n)) * PAGE + place).flatten() for n in self.kept.heads}
        device = self.lengths.device
        return send(torch.tensor(source), device), {n: send(where, device) for n, where in spread.items()}

    def _past(self, kept: Tensor) -> Tensor:
        pages, heads, _, width = kept.shape
        found = kept.view(pages * heads, -1).index_select(0, self.index[heads])
        return found.view(self.size, heads, self.reach, width)


def pages_of(tokens: int) -> int:
    """How many pages hold as many tokens."""
    return -(-tokens // PAGE)


def rows_of_step(rows: int) -> int:
    """The number of rows that a step of `rows` is filled up to: a power of two, so that there are few kinds."""
    return 1 << (rows - 1).bit_length()


def pages_of_step(pages: int) -> int:
    """The number of pages that a step's reach is rounded up to: a power of two, or three quarters of one."""
    power = 1 << (pages - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= pages else power
