"""The records that packages share: how a task asks (`TaskCard`), a `Result` an item, a `Score` a task, a `CheckResult`.

`results.jsonl` holds a `Result` a line, `scores.json` the `Score` of every task with its card. The order of the keys is
part of the format: the same evaluation ends in the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from tercet.rows import Messages, Sampling, Source, message_of, plain_turn
from tercet.rows_file import read_file
from tercet.store import Artifact

Think = Literal["strip", "keep"]
UNREAD = "unread"  # among a sample's numbers: an LLM judge replied, and its reply holds no verdict
WAYS = ("raw", "per_token", "per_char", "per_byte", "unconditional")  # to choose an option by its log-probability

OK, WARNING, STOPS, UNTRIED = "ok", "warning", "cannot work", "not tried"  # what may come of a check


class CheckResult(NamedTuple):
    """A check before a run and what came of it: `CheckResult("disk", "ok", "3.1 GB of 80 GB free will be written")`."""

    check: str
    state: str
    what: str
    advice: str = ""  # what to do where it does not hold
    stage: str = ""


@dataclass(frozen=True)
class TaskCard:
    """How a task asks and grades: an entry of `tasks.json`. The last six are what an eval stage decides, else None.

    `think`: thoughts before an answer are left out ("strip") or graded with it ("keep"). `data` are public sources, a
    generator's settings, or the stage that made the rows; `shots` is None where examples are not turns of their own.
    `code` is a user's own, the task's and its verifier's: name -> digest.
    """

    name: str
    skill: str = ""
    metric: str = "accuracy"
    verifier: str = ""
    judge: str = ""
    think: Think = "strip"
    choose_by: str = "raw"
    sampling: Sampling = field(default_factory=Sampling)
    layout: str = "turns"
    shots: int | None = None
    prefix: str = ""
    pass_k: int = 0
    aggregate: str = "micro"
    measures: dict[str, list[str]] = field(default_factory=dict)
    data: Sequence[Source] | dict[str, Any] = ()
    examples: Sequence[Source] = ()
    split: str = ""
    licence: str = ""
    variant: str = ""
    description: str = ""
    num_items: int = 0
    num_subsets: int = 0
    locked: bool = False
    code: dict[str, str] | None = None
    environment: dict[str, Any] | None = None  # which plays the items, its arguments, turns and seconds
    dtype: str | None = None
    engine: str | None = None
    repeats: int | None = None
    sandbox: str | None = None
    isolation: str | None = None
    chat_template: dict[str, Any] | None = None  # its SHA-256, the arguments that a recipe fixed, the date it is told

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The card of a stored object."""
        lists = [key for key in ("data", "examples") if isinstance(value.get(key), list)]
        typed: dict[str, Any] = {key: [Source(**source) for source in value[key]] for key in lists}
        drawn = value.get("sampling", {})
        typed["sampling"] = Sampling(**drawn | {"stop": tuple(drawn.get("stop", ()))})
        return cls(**{**_known(cls, value), **typed})

    def to_json(self) -> dict[str, Any]:
        """The card as it is stored, without what no eval stage has decided yet."""
        undecided = ("code", "environment", "dtype", "engine", "repeats", "sandbox", "isolation", "chat_template")
        found = {key: value for key, value in asdict(self).items() if value is not None or key not in undecided}
        found["sampling"]["stop"] = list(self.sampling.stop)
        return found


@dataclass(frozen=True)
class Sample:
    """What was written for an item, and the verdict on it. `num_tokens` is a list where it counts every option's."""

    output: str = ""
    num_tokens: Any = 0
    stop: str = ""
    outcome: str = ""
    detail: str = ""
    answer: str = ""
    score: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> bool:
        """Whether it is neither right nor wrong: it could not be had or graded, or the judge's verdict not be read."""
        return self.outcome == "error" or UNREAD in self.numbers


@dataclass(frozen=True, kw_only=True)
class Result(Sample):
    """One item of an evaluation; its own sample speaks for all `samples`, which is None where there is only one.

    Where options are scored, `options` to `num_bytes` say how, and `raw` and its like whether that way chose right.
    Example: `Result(task="words@1", item="17", output="... 72", answer="72", score=1.0, outcome="graded")`.
    """

    task: str
    item: str
    skill: str = ""
    template: str = ""
    subset: str = ""
    metric: str = "accuracy"
    aggregate: str = "micro"
    digest: str = ""
    messages: Messages = ()
    prompt_ids: Sequence[int] = ()
    reference: str = ""
    samples: Sequence[Sample] | None = None
    options: Sequence[str] = ()
    gold: int = -1
    logps: Sequence[float] = ()
    greedy: Sequence[bool] = ()
    num_bytes: Any = 0
    bits: float | None = None
    raw: float | None = None
    per_token: float | None = None
    per_char: float | None = None
    per_byte: float | None = None
    unconditional: float | None = None

    @property
    def tries(self) -> Sequence[Sample]:
        """Every sample of the item, one or several."""
        return self.samples or [self]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The result of a stored object."""
        turns = tuple(message_of(turn) for turn in value.get("messages", ()))
        samples = value.get("samples") and [Sample(**one) for one in value["samples"]]
        return cls(**{**_known(cls, value), "messages": turns, "samples": samples})

    def to_json(self) -> dict[str, Any]:
        """The result as it is stored: a written answer, scored options, or options that could not be scored."""
        own, verdict = ([one.name for one in fields(kind)] for kind in (Result, Sample))
        asked = own[len(verdict) : own.index("samples")]
        if self.metric == "accuracy":
            names = ["samples", *verdict]
        elif self.stop == "error":
            names = ["output", "stop", "answer", "score", "outcome", "detail"]
        else:
            names = ["output", "stop", "answer", "outcome", "detail", *_OPTIONS, "score"]
            names += [name for name in (*WAYS, "bits") if getattr(self, name) is not None]
            names += ["numbers"] if self.numbers else []
        found = {name: getattr(self, name) for name in (*asked, *names)}
        found["messages"] = [plain_turn(turn) for turn in self.messages]
        return found | ({"samples": [asdict(one) for one in self.samples]} if self.samples else {})


_OPTIONS = ("options", "gold", "logps", "greedy", "num_tokens", "num_bytes")


@dataclass(frozen=True)
class Score:
    """The number of one task with its error, 95 % interval, and how answers ended; what a metric lacks is None.

    `n` counts items; `outcomes` counts samples, `unread` those whose verdict could not be read (None where there are
    none). `thought_share` is the share of what was written that is thought. `subsets` are `{"score", "stderr", "n"}`,
    `measures` are `{"value", "stderr"}` each, `preference` are a task's own numbers.
    """

    metric: str
    score: float
    n: int
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    minimum_detectable: float | None = None
    stderr_clustered: float | None = None
    num_clusters: int | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    unread: int | None = None
    raw: float | None = None
    per_token: float | None = None
    per_char: float | None = None
    per_byte: float | None = None
    unconditional: float | None = None
    corpus: float | None = None
    instance_mean: float | None = None
    mean_tokens: float | None = None
    thought_share: float | None = None
    measures: dict[str, dict[str, Any]] | None = None
    preference: dict[str, float] | None = None
    subsets: dict[str, dict[str, Any]] | None = None
    micro: float | None = None
    macro: float | None = None
    card: TaskCard = TaskCard("")

    @property
    def lower_is_better(self) -> bool:
        """True for bits per byte."""
        return self.metric == "bpb"

    @classmethod
    def from_json(cls, value: Mapping[str, Any], **more: Any) -> Self:
        """The score of a stored object."""
        card = TaskCard.from_json(value["card"]) if "card" in value else TaskCard("")
        return cls(**{**_known(cls, value), "card": card, **more})

    def to_json(self) -> dict[str, Any]:
        """The entry as it is stored."""
        always = ("stderr", "low", "high", "minimum_detectable", "stderr_clustered", "num_clusters")
        kept = {key: value for key, value in vars(self).items() if value is not None or key in always}
        return {**kept, "card": self.card.to_json()}


def dump(result: Result) -> str:
    """One result as a line of JSON."""
    return json.dumps(result.to_json(), allow_nan=False) + "\n"


def read_results(path: Path) -> Iterator[Result]:
    """The lines of a results file; errors name file and line."""
    return map(Result.from_json, read_file(path, mend=True))


def read_scores(payload: Path) -> dict[str, Score]:
    """The scores of an eval payload, by task."""
    found = json.loads((payload / "scores.json").read_text(encoding="utf-8"))
    return {task: Score.from_json(entry) for task, entry in found.items()}


def _known(kind: type[TaskCard | Result | Score], value: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {key: one for key, one in value.items() if key in names}


def summary_of(payload: Path) -> dict[str, Any]:
    """The `summary.json` of a stage that makes rows; empty where it has none."""
    file = payload / "summary.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def stated_licences(line: Iterable[Artifact]) -> dict[str, str]:
    """Every part of the data in a lineage with the licence that its data sheet states."""
    return {
        str(row["part"] or row["source"]): str(row["licence"])
        for artifact in line
        for row in summary_of(artifact.payload).get("sheet", [])
    }
