"""A benchmark task: a value that says where items come from, how they are asked and how answers are graded.

The modules of `tasks` declare a `Task` each; `items` turns its records into the plain `Item`s that a `benchmark` stage
writes to `benchmark.parquet`. The `eval` stage needs only that folder, not this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tercet import hub
from tercet.evals.layout import Layout, Shot, laid_out
from tercet.records import Result, TaskCard, Think
from tercet.rows import Message, Messages, Row, Sampling, Source, messages_from, read_table
from tercet.stats import Estimate
from tercet.verify import verifier

Metric = Literal["accuracy", "choice", "mc2", "bpb"]
ChooseBy = Literal["raw", "per_token", "per_char", "per_byte", "unconditional"]
GREEDY = Sampling()
Choices = tuple[list[str], int]  # the options and the index of the right one: (["Paris", "Rome"], 0)


class TaskError(ValueError):
    """A benchmark task is unknown, wrongly declared, or cannot be built from what was given."""


@dataclass(frozen=True)
class Generated:
    """Items are test rows of a synth artifact, matched by `row.source`. Example: `Generated("words@1", 120)`."""

    generator: str
    rows: int


@dataclass(frozen=True)
class GoldAnswers:
    """How a verifier is checked: an answer it must accept and one it must refuse, made from a record."""

    right: Callable[[Any], str]
    wrong: Callable[[Any], str]


@dataclass(frozen=True)
class Task:
    """One task of a benchmark. `prompt`, `reference`, `options` and the like read one record: `Row` or dict.

    accuracy: the model writes, and the `verifier` grades, a pure one or an LLM judge; with `think = "keep"` it sees the
    thought before the answer too. choice: the option with the
    highest log-probability as the text after the prompt counts. mc2: the share of probability on the true options,
    which are the first `gold` ones. bpb: bits per byte of `reference` as the text after the prompt; lower is better.

    Shots come from `examples` (other sources, e.g. the dev split) through `shots(record, examples)`. `opening` is what
    stands before the first question; `prefix` opens the answer, and the model continues it. `layout`: "turns" (each
    shot a user and an assistant turn), "one turn" (all in one user turn, joined by `separator` and `glue`), "plain"
    (the same without a chat template).

    `fields` are the texts of a record that no training row may copy, raw and without the prompt's own words (the user
    turns where it is not given); `shown(examples)` are those of the examples that `shots` uses. `beside(record)` are
    texts without which a short question says little, and is no copy: its options.

    `unpack` makes records of all raw ones: it joins two sources, or drops rows. `subset` names the part of an item
    (subject); with `aggregate = "macro"` the headline is the mean over parts.
    `cluster` names items that share a source, for the clustered error. `measures` are the verifier's further numbers to
    report: `{"strict": ("strict",), "constraints": ("followed", "constraints")}` (a mean, or a ratio of two sums).
    With `pass_k` the headline is the unbiased pass@k over `sampling.n` samples; `headline(results)` makes another one
    of the graded results (or None), and the task's own numbers, which are kept beside it. `variant` says which side of
    a conflict between sources this declaration takes.
    """

    name: str
    version: int
    skill: str
    data: Generated | tuple[Source, ...]
    prompt: Callable[[Any], Messages]
    reference: Callable[[Any], str]
    metric: Metric = "accuracy"
    verifier: str = ""
    think: Think = "strip"
    options: Callable[[Any], Choices] | None = None
    split: str = "test"
    unpack: Callable[[list[Any]], Iterable[Any]] | None = None
    examples: tuple[Source, ...] = ()
    shots: Callable[[Any, Sequence[Any]], Sequence[Shot]] | None = None
    fields: Callable[[Any], tuple[str, ...]] | None = None
    beside: Callable[[Any], tuple[str, ...]] | None = None
    shown: Callable[[Sequence[Any]], Iterable[tuple[str, ...]]] | None = None
    layout: Layout = "turns"
    opening: Callable[[Any], str] | None = None
    separator: str = "\n\n"
    glue: str = " "
    prefix: str = ""
    sampling: Sampling = GREEDY
    choose_by: ChooseBy = "raw"
    subset: Callable[[Any], str] | None = None
    cluster: Callable[[Any], str] | None = None
    aggregate: Literal["micro", "macro"] = "micro"
    measures: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pass_k: int = 0
    headline: Callable[[Sequence[Result]], tuple[Estimate | None, dict[str, float]]] | None = None
    gold: GoldAnswers | None = None
    description: str = ""
    variant: str = ""
    licence: str = ""
    code: dict[str, str] | None = None  # where it comes from, if not from here: `my_tasks.py:mine` and its digest
    environment: dict[str, Any] | None = None  # what plays its items instead of a verifier that grades answers

    def __post_init__(self) -> None:
        """Refuse declarations that could not be evaluated."""
        if (self.metric == "accuracy") != bool(self.verifier or self.environment):
            raise TaskError(
                f"{self.id}: a verifier belongs to metric 'accuracy' and to no other; got verifier {self.verifier!r}"
            )
        if (self.metric in ("choice", "mc2")) != (self.options is not None):
            raise TaskError(f"{self.id}: an options function belongs to the metrics 'choice' and 'mc2' and to no other")
        if self.pass_k > self.sampling.n:
            raise TaskError(f"{self.id}: pass@{self.pass_k} needs as many samples, got sampling.n = {self.sampling.n}")
        if self.examples and self.shown is None:
            raise TaskError(f"{self.id}: has public examples, so `shown` must say which texts of them a prompt shows")

    @property
    def id(self) -> str:
        """Name and version, as recipes write it: `words@1`."""
        return f"{self.name}@{self.version}"

    @property
    def judge(self) -> str:
        """The verifier where it is an LLM judge, which is asked when everything is written; else nothing."""
        return self.verifier if self.verifier and verifier(self.verifier).asks_model else ""


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, ready to be put to any model; one row of `benchmark.parquet`.

    `fields` are what decontamination looks for, with what stands `beside` them where they are short; `asked` are the
    user turns of the item itself, without shots.
    """

    task: str
    item: str
    messages: Messages
    reference: str
    verifier: str
    options: tuple[str, ...]
    gold: int
    fields: tuple[str, ...]
    skill: str
    template: str  # items with one template (or passage, or parent question) are one cluster
    subset: str = ""
    judge: str = ""
    asked: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """What an LLM judge reads as the user's question; older folders hold it as the fields."""
        return "\n\n".join(self.asked or self.fields)

    @property
    def digest(self) -> str:
        """Sixteen hex digits of all that is asked and how it is graded; equal in two runs of one benchmark."""
        aside = ("fields", "beside", "asked", "skill", "template", "subset", *(() if self.judge else ("judge",)))
        kept = {key: value for key, value in asdict(self).items() if key not in aside}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """A worked example of a task's prompts, as decontamination looks for it: a row of `examples.parquet`.

    Its task is a label of its own, `gsm8k@2:examples`, so that the share of the benchmark's items stays what it is.
    """

    task: str
    item: str  # "example-3"
    fields: tuple[str, ...]


def items(task: Task, records: Iterable[Any], examples: Sequence[Any] = ()) -> list[Item]:
    """The items of a task; a record that cannot be evaluated, or an id that comes twice, is an error."""
    made: dict[str, Item] = {}
    for number, record in enumerate(records):
        try:
            item = _item(task, record, number, examples)
        except TaskError:
            raise
        except Exception as error:  # the functions of a user's task may raise anything
            keys = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise TaskError(
                f"{task.id}, record {number}: is not in the expected layout ({type(error).__name__}: {error}); "
                f"it has {keys}"
            ) from error
        _check_types(item)
        _check(item, task.metric)
        if item.item in made:
            raise TaskError(f"{task.id}: two items have the id {item.item!r}; ids must be unique within a task")
        made[item.item] = item
    return list(made.values())


def examples_of(task: Task, examples: Sequence[Any]) -> list[Example]:
    """The worked examples that prompts of a task show, each once."""
    texts = dict.fromkeys(task.shown(examples) if task.shown else ())
    return [Example(f"{task.id}:examples", f"example-{i}", fields) for i, fields in enumerate(texts, 1)]


def public_records(task: Task, mirror: Mapping[str, str]) -> list[Any]:
    """The records of a task whose items come from public sources."""
    if isinstance(task.data, Generated):
        raise TaskError(f"{task.id}: its items come from the generator {task.data.generator}, not from a public source")
    found = hub.records(task.data, mirror)
    return list(task.unpack(found)) if task.unpack else found


def bits_per_byte(task: Task) -> Task:
    """The `:bpb` version of a task: the same prompt, scored by the bits per byte of the right answer's text."""
    right = task.gold.right if task.gold else task.reference

    def answer(record: Any) -> str:
        if task.options is None:
            return right(record)
        texts, gold = task.options(record)
        return texts[0 if task.metric == "mc2" else gold]

    plain: dict[str, Any] = {"verifier": "", "options": None, "pass_k": 0, "headline": None, "measures": {}}
    about = f"Bits per byte of the right answers of {task.id}."
    name = f"{task.name}:bpb"
    return replace(task, name=name, metric="bpb", reference=answer, sampling=GREEDY, description=about, **plain)


def card(task: Task, made: Sequence[Item]) -> TaskCard:
    """The task card kept beside every score: one entry of `tasks.json`."""
    first, known = made[0], {one.name: getattr(task, one.name) for one in fields(TaskCard) if hasattr(task, one.name)}
    known |= {
        "name": task.id,
        "verifier": "" if task.judge else task.verifier,
        "shots": (len(first.messages) - len(first.asked)) // 2 if task.layout == "turns" else None,
        "measures": {name: list(keys) for name, keys in task.measures.items()},
        "data": asdict(task.data) if isinstance(task.data, Generated) else task.data,
    }
    return TaskCard(**known, num_items=len(made), num_subsets=len({item.subset for item in made}))


def read_benchmark(folder: Path) -> tuple[list[TaskCard], list[Item]]:
    """Task cards and items of the payload of a benchmark artifact."""
    cards = [TaskCard.from_json(one) for one in json.loads((folder / "tasks.json").read_text(encoding="utf-8"))]
    table = []
    for number, value in enumerate(read_table(folder / "benchmark.parquet")):
        turns = messages_from(value["messages"], f"{folder / 'benchmark.parquet'}: row {number}")
        frozen: dict[str, Any] = {
            key: tuple(value[key]) for key in ("options", "fields", "asked", "beside") if key in value
        }
        table.append(Item(**{**value, "messages": turns, **frozen}))
    return cards, table


def _item(task: Task, record: Any, number: int, examples: Sequence[Any]) -> Item:
    prompt = task.prompt(record)
    if not prompt or prompt[-1].role != "user":
        raise TaskError(f"{task.id}, record {number}: the prompt must end with a user turn for the model to answer")
    reference = task.reference(record)
    options, gold = ([reference], 0) if task.metric == "bpb" else ([], -1)
    if task.options is not None:
        options, gold = task.options(record)
    row = record if isinstance(record, Row) else None
    subset = task.subset(record) if task.subset else ""
    asked = tuple(turn.content for turn in prompt if turn.role == "user")
    return Item(
        task=task.id,
        item=row.id if row else "-".join(filter(None, (task.split, subset, str(number)))),
        messages=laid_out(
            prompt,
            list(task.shots(record, examples)) if task.shots else [],
            layout=task.layout,
            opening=task.opening(record) if task.opening else "",
            joints=(task.separator, task.glue),
            prefix=task.prefix,
        ),
        reference=reference,
        verifier="" if task.judge else task.verifier,
        options=tuple(options),
        gold=gold,
        fields=task.fields(record) if task.fields else asked,
        skill=task.skill,
        template=task.cluster(record) if task.cluster else row.template if row else "",
        subset=subset,
        judge=task.judge,
        asked=asked,
        beside=task.beside(record) if task.beside else (),
    )


def _check_types(item: Item) -> None:
    """Refuse an item whose parts are of another type than declared, as functions of a user may make it."""
    where = f"{item.task}, item {item.item!r}"
    for name in ("reference", "template", "subset"):
        if not isinstance(value := getattr(item, name), str):
            raise TaskError(f"{where}: {name} must be a text, got {value!r:.80}")
    for name in ("options", "fields", "asked", "beside"):
        if wrong := [one for one in getattr(item, name) if not isinstance(one, str)]:
            raise TaskError(f"{where}: {name} must be texts, got {wrong[0]!r:.80}")
    if isinstance(item.gold, bool) or not isinstance(item.gold, int):
        raise TaskError(f"{where}: the right option must be a whole number, got {item.gold!r:.80}")
    if wrong := [one for one in item.messages if not (isinstance(one, Message) and isinstance(one.content, str))]:
        raise TaskError(f"{where}: the prompt must be messages with a text each, got {wrong[0]!r:.80}")


def _check(item: Item, metric: Metric) -> None:
    where = f"{item.task}, item {item.item!r}"
    grader = item.verifier or item.judge
    played = metric == "accuracy" and not grader  # by an environment, whose class knows what it needs
    if not (item.reference or played) and not (grader and not verifier(grader).needs_reference):
        raise TaskError(f"{where}: has no reference answer to be graded by")
    if metric in ("choice", "mc2") and (len(set(item.options)) < 2 or len(set(item.options)) != len(item.options)):
        raise TaskError(f"{where}: expected at least two different options, got {list(item.options)}")
    if metric != "accuracy" and not all(item.options):
        raise TaskError(f"{where}: an option is empty, so it has no log-probability")
    if metric == "mc2" and not 0 < item.gold < len(item.options):
        raise TaskError(f"{where}: expected true and untrue options, got {item.gold} true of {len(item.options)}")
    if metric in ("choice", "bpb") and not 0 <= item.gold < len(item.options):
        raise TaskError(f"{where}: the right option has index {item.gold}, but there are {len(item.options)} options")
