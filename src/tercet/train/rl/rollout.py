"""A rollout is a dataset the model writes: sample and grade, round after round (paper §6, Tülu 3.1)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tercet.algos.advantage import group_advantages
from tercet.device.mesh import Mesh, release_memory
from tercet.models.chat import Chat, open_chat
from tercet.models.forest import Forest, Leaf, Tree
from tercet.recipe import RLSpec
from tercet.rows import Completion, Row, RowError, Sampling, read_rows, row_from, speed_of
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, Limit, Trees, batches, chosen_rows, order, within
from tercet.train.export import write_truncation
from tercet.train.loop import TrainingError
from tercet.train.packing import Budget
from tercet.train.rl.episodes import Episode, EpisodeWriter, PaidTurn
from tercet.train.rl.generator import PolicyGenerator
from tercet.train.rl.reward_fn import RewardFunction
from tercet.train.rl.rollout_log import RolloutLog
from tercet.train.tokens import NamedTree, Rule, prepare, stored
from tercet.verify import Grade
from tercet.verify.pins import check_hidden


@dataclass
class RolloutSample:
    """One completion with its grade. `score` counts all verifiers; `reward` is what training uses."""

    completion: Completion
    grade: Grade
    score: float
    reward: float
    parts: dict[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()  # verifiers that could not grade
    advantage: float = 0.0
    mask: tuple[bool, ...] = ()  # of an episode: which of its tokens the model wrote; the others are read alone
    turns: tuple[PaidTurn, ...] = ()  # of an episode: where its actions end, and what each was paid
    said: str = ""  # of an episode: what both sides said

    @property
    def trained(self) -> list[bool]:
        """Which of the completion's tokens are trained."""
        return list(self.mask) or [True] * len(self.completion.token_ids)

    def paid(self, scale: float) -> list[float]:
        """What each of an episode's trained tokens was paid, the last turn's reward left out."""
        found = [0.0] * len(self.completion.logps)
        for turn in self.turns[:-1]:
            found[sum(self.mask[: turn.end]) - 1] = scale * turn.reward
        return found


class GroupOrigin(NamedTuple):
    """Of a group of a stream: its draw, how often that was asked before, and the weights of its first and last tokens.

    `replica` is the name of the engine that wrote it.
    """

    draw: int
    tries: int
    first: int
    last: int
    replica: str = ""


@dataclass
class RolloutGroup:
    """The samples of one prompt; `place` is the row's number among the stage's prompts."""

    row: Row
    prompt_ids: Sequence[int]
    samples: list[RolloutSample]
    place: int = 0
    origin: GroupOrigin | None = None  # of a stream; the other groups are all of their round's version

    def tree(self) -> Tree:
        """The prompt with one leaf per sample, as sampled: text is never tokenised again."""
        leaves = [Leaf(s.completion.token_ids, s.trained) for s in self.samples]
        return Tree(self.prompt_ids, leaves)


@dataclass
class Round:
    """The rollouts of one round, by the weights after `version` rounds; `cursor` prompts were drawn up to its end.

    Of a stream, `version` is that of the oldest group, and `dropped` has the draws that came back too late for it.
    """

    number: int
    version: int
    cursor: int
    groups: list[RolloutGroup]
    seconds: dict[str, float] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)  # of the generator: tokens a second, efficiency
    dropped: list[int] = field(default_factory=list)


class Prompts(NamedTuple):
    """The rows of an RL stage whose prompt fits, each with its tokens; a row's place is its number here."""

    rows: list[Row]
    trees: Trees
    chat: Chat

    def ids(self, place: int) -> Sequence[int]:
        """The tokens of a prompt, from the token file."""
        ids: Sequence[int] = self.trees[place].leaves[0].token_ids
        return ids


def read_prompts(spec: RLSpec, inputs: dict[str, Artifact], out: Path, ranks: Mesh, ctx: Context) -> Prompts:
    """The rows whose prompt fits, each with a verifier; over-long prompts are dropped and counted, never cut."""
    path = inputs[spec.prompts].payload / "rows.parquet"
    check_hidden(path.parent)
    rows = list(read_rows(path))
    if not spec.environment and (bare := next((row for row in rows if not row.verifier), None)) is not None:
        raise RowError(
            f"{path}: row {bare.id!r} names no verifier; an RL stage's rows need 'verifier' and 'reference', so mix "
            "prompts with a verifier only"
        )
    chat = open_chat(inputs[spec.model].payload)
    kept, table = within(prepare(path, chat, PROMPTS, ctx), Limit(spec.max_length, "drop", spec.max_lost))
    if ranks.first:
        write_truncation(out, table)
    return Prompts([rows[number] for number in kept.rows.tolist()], kept, chat)


def prompt_trees(chat: Chat, path: Path, _threads: int) -> Iterator[NamedTree]:
    """One tree per row: its prompt."""
    for name, value in stored(path):
        row = row_from(value, name)
        ids = chat.prompt_ids(row.prompt)
        yield row.id, row.source, Tree([], [Leaf(ids, [True] * len(ids))])


PROMPTS = Rule("prompts@2", prompt_trees)


class RolloutWorker:
    """Makes rounds one after another; those that the log holds are read, not written again."""

    def __init__(
        self,
        prompts: Prompts,
        generator: PolicyGenerator,
        reward_fn: RewardFunction,
        log: RolloutLog,
        seed: int,
        mesh: Mesh,
    ) -> None:
        """`mesh` is the channel of the thread that makes rounds."""
        self.prompts, self.generator, self.reward_fn, self.log = prompts, generator, reward_fn, log
        self.episodes: EpisodeWriter | None = None  # where an environment answers
        self.spec, self.seed, self.mesh = generator.spec, seed, mesh
        self.active = getattr(self.spec, "active_rounds", 1)
        self.cursor = log.cursor

    def __call__(self, number: int, version: int) -> Round:
        """Round `number`, by the weights of `version`."""
        if (found := self.log.recorded.pop(number, None)) is not None:
            # Written before the run was killed, maybe by weights that are gone: training must see the same rollouts.
            made = replay(found, self.prompts)
            self.generator.drop(made.version)
        else:
            version = self.generator.use(version)
            self.mesh.barrier()  # a server must have the weights before any rank asks it
            made = self._written(number, version)
            self.log.append(number, records_of(made))
        self.cursor = made.cursor
        return made

    def _written(self, number: int, version: int) -> Round:
        made = Round(number, version, self.cursor, [], {"generate": 0.0, "grade": 0.0})
        for wave in range(self.active):
            # The first wave asks for a whole batch; later ones, as `active_rounds` allows, for what lacked a signal.
            if (wanted := self.spec.batch - sum(map(has_signal, made.groups))) <= 0:
                break
            places = self._places(number, made.cursor, wanted)
            made.cursor += len(places)
            made.groups += self._sampled(places, self.seed * 100_003 + number + wave * 50_021, made.seconds)
        made.speed = speed_of(self.generator.generator)
        release_memory(self.mesh.device)
        return made

    def _places(self, number: int, cursor: int, wanted: int) -> list[int]:
        """Rows by number: a pass takes every prompt once, in an order fixed by seed and pass."""
        if self.active == 1:
            return chosen_rows(number, len(self.prompts.rows), self.spec.batch, self.seed)
        drawn = (divmod(place, len(self.prompts.rows)) for place in range(cursor, cursor + wanted))
        return [order(len(self.prompts.rows), epoch, self.seed)[place] for epoch, place in drawn]

    def _sampled(self, places: Sequence[int], seed: int, seconds: dict[str, float]) -> list[RolloutGroup]:
        """G completions of each prompt, graded. Ranks share the prompts; every rank returns all groups."""
        began = time.monotonic()
        rows = [self.prompts.rows[place] for place in places]
        prompts = [self.prompts.ids(place) for place in places]
        spec = self.spec
        sampling = Sampling(spec.max_new_tokens, spec.temperature, n=spec.num_generations, seed=seed)
        mine = self._share(len(rows))
        own = [rows[i] for i in mine]
        if self.episodes is not None:
            played = self.episodes.write(own, mine, seed)
            graded = time.monotonic()
            groups = self._played(own, played)
        else:
            written = self._asked(prompts, sampling, mine)
            graded = time.monotonic()
            found = graded_samples(self.reward_fn, own, written)
            groups = [(prompts[i], group) for i, group in zip(mine, found, strict=True)]
        shares = self.mesh.gather(dict(zip(mine, groups, strict=True)))
        whole = {i: group for share in shares for i, group in share.items()}
        seconds["generate"] += graded - began
        seconds["grade"] += time.monotonic() - graded
        return [RolloutGroup(row, whole[i][0], whole[i][1], places[i]) for i, row in enumerate(rows)]

    def _share(self, count: int) -> list[int]:
        """Which prompts this rank grades, or plays: where only the first one asks the engines, it plays all."""
        if self.episodes is not None and self.generator.shared:
            return list(range(count)) if self.mesh.first else []
        return list(range(self.mesh.rank, count, self.mesh.size))

    def _asked(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, mine: Sequence[int]
    ) -> list[list[Completion]]:
        """What is written for the prompts of this rank. Engines apart are asked by the first rank for all."""
        if not self.generator.shared:
            return self.generator.write([prompts[i] for i in mine], sampling, mine)
        whole = self.generator.write(prompts, sampling, range(len(prompts))) if self.mesh.first else []
        written = self.mesh.gather(whole)[0]
        return [written[i] for i in mine]

    def _played(
        self, rows: Sequence[Row], played: Sequence[Sequence[Episode]]
    ) -> list[tuple[Sequence[int], list[RolloutSample]]]:
        """Episodes as groups: the tokens that each begins with, and its samples."""
        written = [[one.completion for one in group] for group in played]
        results = self.reward_fn(rows, written, [[one.grade for one in group] for group in played])
        found = []
        for group, graded in zip(played, results, strict=True):
            samples = [
                RolloutSample(one.completion, *result, 0.0, tuple(one.mask), tuple(one.turns), "\n".join(one.said))
                for one, result in zip(group, graded, strict=True)
            ]
            found.append((group[0].prompt_ids, samples))
        return found


def graded_samples(
    reward_fn: RewardFunction, rows: Sequence[Row], written: Sequence[Sequence[Completion]]
) -> list[list[RolloutSample]]:
    """The completions of each row with their grades; one that the generator did not write is an error."""
    for row, group in zip(rows, written, strict=True):
        if failed := next((one for one in group if one.stop == "error"), None):
            raise TrainingError(f"prompt {row.id}: the generator gave no completion: {failed.error}")
    results = reward_fn(rows, written)
    return [
        [RolloutSample(one, *result) for one, result in zip(group, graded, strict=True)]
        for group, graded in zip(written, results, strict=True)
    ]


def group_batches(groups: Sequence[RolloutGroup], spec: RLSpec, budget: Budget, mesh: Mesh) -> list[Batch]:
    """The batches of these groups: `sampled_P`, and of each sample its reward, its advantage, and whether it is kept.

    Of episodes also `paid_P`: what the turns before the last were paid, at their ends; it is part of the reward.
    What a rank with nothing left computes counts as a sample that is not kept.
    """

    def values(items: list[int], _forest: Forest) -> dict[str, Tensor]:
        samples = [s for i in items for s in groups[i].samples]
        sampled = [logp for s in samples for logp in s.completion.logps]
        kept = [spec.truncated == "train" or s.completion.stop == "eos" for s in samples]
        paid = {}
        if any(s.turns for s in samples):
            early = [each for s in samples for each in s.paid(spec.reward_scale)]
            paid["paid_P"] = torch.tensor(early, dtype=torch.float32)
        return paid | {
            "sampled_P": torch.tensor(sampled, dtype=torch.float32),
            "rewards_L": torch.tensor([s.reward for s in samples] or [0.0], dtype=torch.float32),
            "advantages_L": torch.tensor([s.advantage for s in samples] or [0.0], dtype=torch.float32),
            "kept_L": torch.tensor(kept or [False]),
        }

    return batches([group.tree() for group in groups], budget, mesh, values)


def set_advantages(groups: list[RolloutGroup], kind: str) -> None:
    """Write every sample's advantage within its group."""
    rewards_NG = torch.tensor([[s.reward for s in group.samples] for group in groups], dtype=torch.float64)
    for group, row in zip(groups, group_advantages(rewards_NG, kind).tolist(), strict=True):
        for one, advantage in zip(group.samples, row, strict=True):
            one.advantage = advantage


def has_signal(group: RolloutGroup) -> bool:
    """Whether the rewards of a group differ; equal rewards give no advantage."""
    return len({sample.reward for sample in group.samples}) > 1


def replay(records: Sequence[dict[str, Any]], prompts: Prompts) -> Round:
    """A round as its lines of the log hold it."""
    *groups, closing = records
    made = Round(closing["round"], closing["version"], closing["cursor"], [], {"generate": 0.0, "grade": 0.0})
    made.dropped = closing.get("dropped", [])
    for record in groups:
        row = prompts.rows[record["place"]]
        if row.id != record["prompt_id"]:
            raise TrainingError(
                f"the log's round {made.number} has prompt {record['prompt_id']!r} where the rows have {row.id!r}: "
                "it belongs to other prompts; delete the draft and run again"
            )
        samples = [_sample(one) for one in record["samples"]]
        begun = record.get("prompt_ids") or prompts.ids(record["place"])
        origin = GroupOrigin(*(record[name] for name in GroupOrigin._fields)) if "draw" in record else None
        made.groups.append(RolloutGroup(row, begun, samples, record["place"], origin))
    return made


def records_of(made: Round) -> list[dict[str, Any]]:
    """A round as the log holds it: each group, and a closing record."""
    streamed = {"dropped": made.dropped} if any(group.origin for group in made.groups) else {}
    closing = {"done": True, "version": made.version, "cursor": made.cursor, **streamed}
    return [*map(_record, made.groups), closing]


def _record(group: RolloutGroup) -> dict[str, Any]:
    """The log's line of a group."""
    episodes = {"prompt_ids": list(group.prompt_ids)} if any(s.turns for s in group.samples) else {}
    return {
        "place": group.place,
        "prompt_id": group.row.id,
        **(group.origin._asdict() if group.origin else {}),
        **episodes,
        "samples": [
            {
                "ids": list(s.completion.token_ids),
                "logps": list(s.completion.logps),
                "text": s.completion.text,
                "stop": s.completion.stop,
                "grade": [s.grade.score, s.grade.answer, s.grade.outcome, s.grade.detail],
                "score": s.score,
                "reward": s.reward,
                "parts": s.parts,
                "errors": s.errors,
                **({"mask": s.mask, "turns": s.turns, "said": s.said} if s.turns else {}),
            }
            for s in group.samples
        ],
    }


def _sample(record: dict[str, Any]) -> RolloutSample:
    completion = Completion(record["text"], tuple(record["ids"]), tuple(record["logps"]), record["stop"])
    errors = tuple(record["errors"])
    made = RolloutSample(
        completion, Grade(*record["grade"]), record["score"], record["reward"], record["parts"], errors
    )
    if turns := record.get("turns"):
        made.mask, made.said = tuple(record["mask"]), record["said"]
        made.turns = tuple(PaidTurn(*turn) for turn in turns)
    return made
