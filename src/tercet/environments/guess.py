"""`guess@1`: a number is to be found; each guess is told whether the number is higher or lower.

The number is the row's reference answer where that is one within the limits, else it follows from the row's id. Reward
1 for finding it; the fewer guesses, the more of `haste` is added.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tercet.rows import Message, Messages, Row

NUMBER = re.compile(r"-?\d+")


class Guess:
    """One number from 1 to `largest`, to be found with `most` guesses."""

    def __init__(self, largest: int = 20, most: int = 6, haste: float = 0.0) -> None:
        self.largest, self.most, self.haste = largest, most, haste
        self.secret = self.guesses = 0

    def reset(self, row: Row) -> Messages:
        """The rules; what the row's prompt says plays no part."""
        given = row.reference.strip()
        fits = given.isdigit() and len(given) < 10 and 1 <= int(given) <= self.largest
        drawn = int(hashlib.sha256(row.id.encode()).hexdigest(), 16) % self.largest + 1
        self.secret, self.guesses = int(given) if fits else drawn, 0
        return (
            Message(
                "user",
                f"I think of a number from 1 to {self.largest}. You have {self.most} guesses. Write one number.",
            ),
        )

    def step(self, action: str) -> tuple[list[Message], float, bool, dict[str, Any]]:
        """The first number of the action is the guess."""
        self.guesses += 1
        found = NUMBER.search(action[:2000])
        guess = int(found[0][:12]) if found else None
        if guess == self.secret:
            reward = 1.0 + self.haste * (self.most - self.guesses) / max(1, self.most - 1)
            return [], reward, True, {"guesses": self.guesses}
        if self.guesses >= self.most:
            return [], 0.0, True, {"guesses": self.guesses, "secret": self.secret}
        if guess is None:
            return [Message("user", "That is no number. Write one number.")], 0.0, False, {}
        return [Message("user", "Higher." if guess < self.secret else "Lower.")], 0.0, False, {}
