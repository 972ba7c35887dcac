"""Items that an environment plays with the model: the score of an episode is the sum of its rewards.

Turns are put to the model as a conversation, so that any generator can play, also one behind a server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tercet.environments.names import where
from tercet.environments.pool import TURN, EnvironmentPool, Reply
from tercet.evals.results import asked, summed
from tercet.evals.task import Item
from tercet.records import Result, Sample, TaskCard
from tercet.rows import Completion, Generator, Message, Messages, Row


@dataclass
class ItemEpisode:
    """An item's episode so far."""

    messages: Messages
    score: float = 0.0
    tokens: int = 0
    said: list[str] = field(default_factory=list)
    answer: str = ""
    last: Reply = field(default_factory=Reply)
    stop: str = ""  # empty: it goes on

    def wrote(self, written: Completion) -> None:
        """Take the model's turn."""
        self.answer, self.tokens = written.text, self.tokens + written.num_tokens
        self.said.append(written.text)
        if written.error:
            self.stop, self.last = "error", Reply(outcome="error", fault=written.error)

    def heard(self, reply: Reply) -> None:
        """Take what the environment says to it."""
        self.last, self.score = reply, self.score + reply.reward
        if reply.done:
            self.stop = "eos"
            return
        self.messages = (*self.messages, Message("assistant", self.answer), *reply.messages)
        self.said += reply.said

    def sample(self) -> Sample:
        """As an answer with its verdict."""
        text, detail = "\n".join(self.said), self.last.fault or self.last.info
        return Sample(text, self.tokens, self.stop, self.last.outcome, detail, self.answer, self.score)


def play(model: Generator, card: TaskCard, items: list[Item], seed: int, emit: Callable[[Result], None]) -> None:
    """Play every sample of these items side by side, and hand on each item's result."""
    settings: dict[str, Any] = card.environment or {}
    pool = EnvironmentPool(where(settings["name"]), settings["args"], settings["seconds"])
    try:
        pool.check()
        games = _begun(pool, items, card.sampling.n)
        for turn in range(settings["turns"]):
            going = {number: game for number, game in games.items() if not game.stop}
            if not going:
                break
            sampling = replace(card.sampling, n=1, seed=seed + turn * TURN, fit=True)
            answers = model.complete([game.messages for game in going.values()], sampling)
            for game, [written] in zip(going.values(), answers, strict=True):
                game.wrote(written)
            acting = {number: game.answer for number, game in going.items() if not game.stop}
            for number, reply in pool.step(acting).items():
                games[number].heard(reply)
        pool.finish()
    finally:
        pool.close()
    for i, item in enumerate(items):
        own = [games[i * card.sampling.n + k] for k in range(card.sampling.n)]
        for game in own:
            game.stop = game.stop or "length"
        emit(summed(asked(item, card, ()), [one.sample() for one in own], card))


def _begun(pool: EnvironmentPool, items: list[Item], count: int) -> dict[int, ItemEpisode]:
    rows = [Row(one.item, one.messages, one.subset, one.skill, reference=one.reference) for one in items]
    begun = pool.reset({i * count + k: row for i, row in enumerate(rows) for k in range(count)})
    return {
        number: ItemEpisode(reply.messages, last=reply, stop="error" if reply.fault else "")
        for number, reply in sorted(begun.items())
    }
