"""A KV cache that grows with what is written: a server does not know beforehand how many answers, and how long ones."""

from __future__ import annotations

from tercet.models.kv_cache import Cache, KeyStore
from tercet.models.policy import Policy

LEAST = 256  # tokens of a row when the cache is made
ROOMY = 8  # an empty cache that is so many times larger than what comes is made anew


class GrowingCache(Cache):
    """Keys and values of at most `capacity` rows, and of `tokens` tokens in all, however long each row becomes."""

    def __init__(self, policy: Policy, capacity: int, tokens: int) -> None:
        super().__init__(KeyStore(policy, 1, LEAST), capacity)
        self.policy, self.tokens = policy, tokens
        self._most = [0] * capacity  # tokens that the row in each slot may come to

    def reserve(self, first: int, count: int, length: int, most: int) -> bool:
        """See `Cache.reserve`: all rows may become as long as the longest of them."""
        rows, longest = first + count, max([*self._most[:first], most])
        if rows > self.capacity or (rows > 1 and rows * longest > self.tokens):
            return False
        self._most[first:rows] = [most] * count
        if not first and self.kept.rows * self.kept.length > ROOMY * rows * max(length, LEAST):
            self.kept = KeyStore(self.policy, 1, LEAST)
        self._fit(rows, length + 1)
        return True

    def begin(self, size: int, reach: int) -> None:
        """See `Cache.begin`."""
        self._fit(size, reach)
        super().begin(size, reach)

    def move(self, source: int, target: int, length: int) -> None:
        """See `Cache.move`."""
        super().move(source, target, length)
        self._most[target] = self._most[source]

    def _fit(self, rows: int, length: int) -> None:
        """Make room, doubled each time, so that what is kept is seldom copied."""
        old = self.kept
        if rows <= old.rows and length <= old.length:
            return
        rows = old.rows if rows <= old.rows else min(1 << (rows - 1).bit_length(), self.capacity)
        length = old.length if length <= old.length else max(length, 2 * old.length)
        self.kept = KeyStore(self.policy, rows, length)
        for before, now in zip(old.blocks, self.kept.blocks, strict=True):
            now[:, : old.rows, :, : old.length] = before
