"""What an exam task is: a value that says where items come from, how they are asked and how they are judged.

Hop 11 of the road starts here. A `Task` is declared in `suite`; `items` turns its records into the plain `Item`s that
a `prompts` stage writes to `exam.parquet`. Whoever examines a model afterwards needs only that folder, not this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tercet.rows import Messages, Row, Sampling, Source, messages_from, read_table

Metric = Literal["accuracy", "choice", "bpb"]
ChooseBy = Literal["raw", "per_token", "per_byte"]
GREEDY = Sampling()
Choices = tuple[list[str], int]  # the options and the index of the right one: (["Paris", "Rome"], 0)


class TaskError(ValueError):
    """An exam task is unknown, wrongly declared, or cannot be built from what was given."""


@dataclass(frozen=True)
class Generated:
    """Items are exam rows of a synth artefact, matched by `row.source`. Example: `Generated("words@1", 120)`."""

    generator: str
    rows: int


@dataclass(frozen=True)
class Task:
    """One exam task. `prompt`, `truth` and `options` are small functions of one record (a `Row`, or a raw object).

    accuracy: the model writes, `verifier` grades. choice: the option with the highest log-probability as the
    assistant's turn counts. bpb: bits per byte of `truth` as the assistant's turn; lower is better.
    """

    name: str
    version: int
    skill: str
    data: Generated | Source
    prompt: Callable[[Any], Messages]
    truth: Callable[[Any], str]
    metric: Metric = "accuracy"
    verifier: str = ""
    options: Callable[[Any], Choices] | None = None
    split: str = "exam"
    shots: tuple[Messages, ...] = ()
    sampling: Sampling = GREEDY
    choose_by: ChooseBy = "raw"
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse declarations that could not be examined."""
        if (self.metric == "accuracy") != bool(self.verifier):
            raise TaskError(
                f"{self.id}: a verifier belongs to metric 'accuracy' and to no other; got {self.verifier!r}"
            )
        if (self.metric == "choice") != (self.options is not None):
            raise TaskError(f"{self.id}: an options function belongs to metric 'choice' and to no other")
        if self.sampling.n != 1:
            raise TaskError(f"{self.id}: one completion per item is graded, got sampling.n = {self.sampling.n}")

    @property
    def id(self) -> str:
        """Name and version, as recipes write it: `words@1`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Item:
    """One question of an exam, ready to be put to any model; one row of `exam.parquet`."""

    task: str
    item: str
    messages: Messages
    truth: str
    verifier: str
    options: tuple[str, ...]
    gold: int
    fields: tuple[str, ...]
    skill: str
    template: str

    @property
    def digest(self) -> str:
        """Sixteen hex digits of everything that is asked and how it is judged; equal for two runs of one exam."""
        asked = {key: value for key, value in asdict(self).items() if key not in ("fields", "skill", "template")}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def items(task: Task, records: Iterable[Any]) -> list[Item]:
    """The items of a task; a record that cannot be examined, or an id that comes twice, is an error."""
    made: dict[str, Item] = {}
    for number, record in enumerate(records):
        item = _item(task, record, number)
        _check(item, task.metric)
        if item.item in made:
            raise TaskError(f"{task.id}: two items have the id {item.item!r}; ids must be unique within a task")
        made[item.item] = item
    return list(made.values())


def card(task: Task, num_items: int) -> dict[str, Any]:
    """The task card kept beside every score: one entry of `tasks.json`."""
    return {
        "name": task.id,
        "skill": task.skill,
        "metric": task.metric,
        "verifier": task.verifier,
        "choose_by": task.choose_by,
        "sampling": asdict(task.sampling),
        "shots": len(task.shots),
        "data": asdict(task.data) if isinstance(task.data, Generated) else _pinned(task.data),
        "split": task.split,
        "description": task.description,
        "num_items": num_items,
    }


def read_exam(folder: Path) -> tuple[list[dict[str, Any]], list[Item]]:
    """Task cards and items of a prompts payload folder."""
    cards = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    table = []
    for number, value in enumerate(read_table(folder / "exam.parquet")):
        turns = messages_from(value["messages"], f"{folder / 'exam.parquet'}: row {number}")
        frozen = {key: tuple(value[key]) for key in ("options", "fields")}
        table.append(Item(**{**value, "messages": turns, **frozen}))
    return cards, table


def _item(task: Task, record: Any, number: int) -> Item:
    prompt = task.prompt(record)
    truth = task.truth(record)
    options, gold = ([truth], 0) if task.metric == "bpb" else ([], -1)
    if task.options is not None:
        options, gold = task.options(record)
    return Item(
        task=task.id,
        item=record.id if isinstance(record, Row) else f"{task.split}-{number}",
        messages=_with_shots(prompt, task.shots),
        truth=truth,
        verifier=task.verifier,
        options=tuple(options),
        gold=gold,
        fields=tuple(turn.content for turn in prompt if turn.role == "user"),
        skill=task.skill,
        template=record.template if isinstance(record, Row) else "",
    )


def _with_shots(prompt: Messages, shots: tuple[Messages, ...]) -> Messages:
    system = prompt[:1] if prompt and prompt[0].role == "system" else ()
    return (*system, *(turn for shot in shots for turn in shot), *prompt[len(system) :])


def _check(item: Item, metric: Metric) -> None:
    where = f"{item.task}, item {item.item!r}"
    if not item.messages or item.messages[-1].role != "user":
        raise TaskError(f"{where}: the prompt must end with a user turn for the model to answer")
    if not item.truth:
        raise TaskError(f"{where}: has no truth to be judged by")
    if metric == "choice" and (len(set(item.options)) < 2 or len(set(item.options)) != len(item.options)):
        raise TaskError(f"{where}: expected at least two different options, got {list(item.options)}")
    if metric != "accuracy" and not all(item.options):
        raise TaskError(f"{where}: an option is empty, so it has no log-probability")
    if metric != "accuracy" and not 0 <= item.gold < len(item.options):
        raise TaskError(f"{where}: the right option has index {item.gold}, but there are {len(item.options)} options")


def _pinned(source: Source) -> dict[str, str]:
    return {"path": source.path, "subset": source.subset, "split": source.split, "revision": source.revision}
