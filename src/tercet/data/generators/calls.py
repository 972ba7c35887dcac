"""`calls@1`: the problems of `words@1`, solved with the tool of the environment `calculator@1`.

Each step of the worked solution is a call, answered by the environment itself, so that SFT shows what RL then plays.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from tercet.data.generators import words
from tercet.environments.calculator import Calculator
from tercet.rows import Message, Row, RowError

STEP = re.compile(r"(\d+ [-+*/] \d+) = \d+")


def generate(num_rows: int, split: Literal["train", "test"], seed: int) -> list[Row]:
    """An episode for each of so many word problems."""
    return [_played(row) for row in words.generate(num_rows, split, seed)]


def _played(row: Row) -> Row:
    """The row as the environment's rules, a call for each step with its result, and the answer."""
    game = Calculator()
    messages, reward = list(game.reset(row)), 0.0
    for action in [*(f"CALC: {step}" for step in STEP.findall(str(row.answer))), f"ANSWER: {row.reference}"]:
        replies, reward, _, _ = game.step(action)
        messages += [Message("assistant", action), *replies]
    if reward != 1.0:
        raise RowError(f"{row.id}: its solution is not rewarded by the environment that it shows")
    own = {"id": row.id.replace("words", "calls", 1), "source": "calls@1", "skill": "tools"}
    return replace(row, messages=tuple(messages), **own)
