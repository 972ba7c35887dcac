"""Rollouts of several turns: the model writes, an environment answers, until it says that the episode is over.

Token ids stay as they were sampled and are never made from text again; what the environment says is put between them
as tokens that are read and never trained. All episodes of a round that are still going write their next turn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tercet.environments.pool import TURN, EnvironmentPool, Reply
from tercet.models.chat import Chat
from tercet.recipe import RLSpec
from tercet.rows import Completion, Row, Sampling
from tercet.train.loop import TrainingError
from tercet.train.rl.generator import PolicyGenerator
from tercet.verify import Grade


class PaidTurn(NamedTuple):
    """One action of an episode: where its tokens end among the episode's, and what it was paid."""

    end: int
    reward: float


@dataclass
class Episode:
    """An episode as it grows: after the prompt, tokens of the model (`mask` is true) and of the environment."""

    row: Row
    prompt_ids: Sequence[int]
    token_ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # of the model's tokens
    turns: list[PaidTurn] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # what both sides said, in turn
    answer: str = ""  # the last action
    info: str = ""
    outcome: str = "graded"
    fault: str = ""
    stop: str = ""  # "eos" where the environment ended it, "length" where a limit did; empty: it goes on
    cut: bool = False  # whether the last action had no end

    @property
    def score(self) -> float:
        """The sum of its rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def completion(self) -> Completion:
        """As one completion, whose text is the last action."""
        return Completion(self.answer, tuple(self.token_ids), tuple(self.logps), self.stop)

    @property
    def grade(self) -> Grade:
        """The environment's verdict."""
        return Grade(self.score, self.answer, self.outcome, self.fault or self.info)

    def wrote(self, written: Completion, room: int) -> None:
        """Take a turn of the model, of which `room` tokens fit."""
        ids, logps = written.token_ids[:room], written.logps[:room]
        self.token_ids += ids
        self.mask += [True] * len(ids)
        self.logps += logps
        self.answer = written.text
        self.said.append(written.text)
        self.cut = written.stop == "length" or len(ids) < len(written.token_ids)

    def heard(self, reply: Reply, ids: Sequence[int], room: int) -> None:
        """Take what the environment said, as tokens; where nothing can follow them, the episode ends before.

        What ends with an action that was cut counts as cut.
        """
        self.turns.append(PaidTurn(len(self.token_ids), reply.reward))
        self.info = reply.info or self.info
        self.outcome, self.fault = reply.outcome, reply.fault
        if reply.done:
            self.stop = "length" if self.cut else "eos"
        elif len(ids) >= room:
            self.stop = "length"
        else:
            self.token_ids += ids
            self.mask += [False] * len(ids)
            self.said += reply.said


class EpisodeWriter:
    """Plays the episodes of some prompts to their ends."""

    def __init__(self, generator: PolicyGenerator, pool: EnvironmentPool, chat: Chat, spec: RLSpec) -> None:
        self.generator, self.pool, self.chat, self.spec = generator, pool, chat, spec

    def write(self, rows: Sequence[Row], streams: Sequence[int], seed: int) -> list[list[Episode]]:
        """`num_generations` episodes of each row; `streams` names the random numbers of each row."""
        count = self.spec.num_generations
        started = self.pool.reset({i * count + k: row for i, row in enumerate(rows) for k in range(count)})
        games = {number: self._begun(rows[number // count], reply) for number, reply in started.items()}
        for i, row in enumerate(rows):
            if len({tuple(games[i * count + k].prompt_ids) for k in range(count)}) > 1:
                raise TrainingError(f"prompt {row.id}: reset() began two episodes of it with different turns")
        turn = 0
        while going := [number for number, game in games.items() if not game.stop]:
            most = self.spec.turn_tokens or self.spec.max_new_tokens
            sampling = Sampling(most, self.spec.temperature, seed=seed + turn * TURN, fit=True)
            self._turn(games, going, sampling, streams)
            turn += 1
            for number in going if turn >= self.spec.max_turns else ():
                games[number].stop = games[number].stop or "length"
        self.pool.finish()  # those that a limit ended go on for the environment
        return [[games[i * count + k] for k in range(count)] for i in range(len(rows))]

    def _begun(self, row: Row, reply: Reply) -> Episode:
        if reply.fault:
            raise TrainingError(f"prompt {row.id}: its episode cannot begin: {reply.fault}")
        ids = self.chat.prompt_ids(reply.messages)
        if len(ids) > self.spec.max_length:
            raise TrainingError(
                f"prompt {row.id}: its episode begins with {len(ids)} tokens, more than max_length = "
                f"{self.spec.max_length}; raise max_length, or leave such rows out"
            )
        return Episode(row, ids)

    def _turn(
        self, games: dict[int, Episode], going: Sequence[int], sampling: Sampling, streams: Sequence[int]
    ) -> None:
        """One turn of every episode that goes on: the model's, then the environment's."""
        count, limit = self.spec.num_generations, self.spec.max_new_tokens
        prompts = [[*games[number].prompt_ids, *games[number].token_ids] for number in going]
        names = [streams[number // count] * count + number % count for number in going]
        for number, [written] in zip(going, self.generator.write(prompts, sampling, names), strict=True):
            if written.stop == "error":
                raise TrainingError(f"prompt {games[number].row.id}: the generator gave no turn: {written.error}")
            games[number].wrote(written, limit - len(games[number].token_ids))
        for number, reply in self.pool.step({number: games[number].answer for number in going}).items():
            game = games[number]
            closing = self.chat.closing_ids if game.cut else []  # which the model did not write itself
            ids = [] if reply.done else [*closing, *self.chat.reply_ids(reply.messages)]
            game.heard(reply, ids, limit - len(game.token_ids))
