"""The rows that packages share, and how they are read and written.

A row is a conversation: with a final assistant turn it can be trained on, with a verifier and a reference answer it can
be rewarded or evaluated. A pair is two conversations that differ in the last turn. Artifacts hold rows as parquet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from tercet.outside import read_json
from tercet.rows_details import ROLE_NAMES, ROLES, calls_text, is_plain, read_turn, tools_text, untrained

PLAIN = "text"  # role of the one message of a prompt that is read as it stands, without a chat template


class RowError(ValueError):
    """A row is not what was expected; the message says where it stands and what to do."""


class SourceError(RowError):
    """What the recipe says of a source fits no row of it: nothing is left out, the reading stops."""


@dataclass(frozen=True)
class Message:
    """One turn. Example: `Message("user", "What is 2 + 2?")`."""

    role: str
    content: str

    @property
    def blank(self) -> bool:
        """Whether the turn says nothing and calls nothing."""
        return not self.content.strip()


@dataclass(frozen=True)
class DetailedMessage(Message):
    """A turn with more than its text: a thought, calls of tools, what a tool gave back, or the tools there are.

    Calls and tools are JSON lists as OpenAI has them, the arguments of a call an object. The tools of a conversation
    stand on its first turn. An `untrained` answer is context for later turns and never a target.
    Example: `DetailedMessage("assistant", "4", thought="2 and 2 is 4")`.
    """

    thought: str = ""
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""
    tools: str = ""
    untrained: bool = False

    @property
    def blank(self) -> bool:
        """Whether the turn says nothing and calls nothing."""
        return not self.content.strip() and not self.tool_calls


Messages = tuple[Message, ...]
DETAILS = tuple(field.name for field in fields(DetailedMessage)[2:])
CONVERSATIONS = ("messages", "chosen", "rejected")  # the columns that hold turns
THOUGHTS = ("thought", "reasoning_content", "thinking", "reasoning")  # what data call the thought of a turn


@dataclass(frozen=True)
class Row:
    """One conversation, optionally with a verifier (`verifier="gsm8k@1"`, `reference="72"`).

    `template` names the generator template or topic the row came from, so that splits can be checked.
    """

    id: str
    messages: Messages
    source: str = ""
    skill: str = ""
    verifier: str = ""
    reference: str = ""
    template: str = ""

    @property
    def prompt(self) -> Messages:
        """The turns before the final assistant turn."""
        return self.messages if self.answer is None else self.messages[:-1]

    @property
    def answer(self) -> str | None:
        """The final assistant turn, or None when the row is a bare prompt."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else None

    @property
    def user_turns(self) -> list[str]:
        """The contents of the user turns, in order."""
        return [message.content for message in self.messages if message.role == "user"]


@dataclass(frozen=True)
class Unpaired(Row):
    """A conversation whose answer is good or bad by itself, with no other answer to compare it with (KTO's data)."""

    good: bool = True


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ only in the last assistant turn (the public Tülu 3 preference layout)."""

    id: str
    chosen: Messages
    rejected: Messages
    source: str = ""
    skill: str = ""
    chosen_rating: float = 0.0
    rejected_rating: float = 0.0
    chosen_model: str = ""
    rejected_model: str = ""
    provenance: str = ""  # JSON: how the pair was made, e.g. {"rule": "persona_if", "dropped": 1, "seed": 3}

    @property
    def prompt(self) -> Messages:
        """The shared turns before the answers."""
        return self.chosen[:-1]


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `temperature = 0` is greedy; `top_k = 0` keeps the whole vocabulary.

    A completion ends before the first of the `stop` strings, at the end token, or after `max_new_tokens`. Where prompt
    and budget exceed the model's context, `fit` shortens the budget of that prompt; without it that is an error.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    fit: bool = False

    def stream(self, number: int) -> tuple[int, int]:
        """The seed of the random numbers of prompt `number` of a call, and a number beside the seed."""
        return self.seed, number


@dataclass(frozen=True)
class Seeded(Sampling):
    """Every prompt has its own seed, and draws what it would draw alone, whatever else is in the batch.

    (Kernels round by the size of a batch, which changes a token rarely in float32 and more often in bfloat16.)
    """

    seeds: tuple[int, ...] = ()

    def stream(self, number: int) -> tuple[int, int]:
        """The prompt's own seed, as if it were the only prompt."""
        return self.seeds[number], 0


@dataclass(frozen=True)
class Completion:
    """A model's text, its token ids (with the end token when it stopped by itself) and log-probabilities in nats.

    `error` is set when a request failed for good; the text is then empty. A server gives no token ids, but may give
    their number in `counted`.
    """

    text: str
    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    stop: str  # "eos", "stop" (a stop string came), "length" or "error"
    error: str = ""
    counted: int = 0

    @property
    def num_tokens(self) -> int:
        """How many tokens were written; 0 where that is unknown."""
        return len(self.token_ids) or self.counted


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of one continuation: summed nats, number of tokens, whether greedy decoding would write it.

    `error` is set, and `logp` NaN, when the request failed.
    """

    logp: float
    num_tokens: int
    greedy: bool = False
    error: str = ""


Prompts = Sequence[Messages]
Options = Sequence[Sequence[str]]  # the texts that may follow each prompt
Completions = list[list[Completion]]  # of each prompt
Likelihoods = list[list[Likelihood]]  # of each prompt's options
Done = Callable[[int, list[Completion]], None]  # given the number of a prompt that is finished


class Generator(Protocol):
    """Anything that generates and scores text: a local model, an engine, an endpoint, a fake in a test.

    A prompt is a conversation without its answer. Where its last turn is the assistant's, the answer continues that
    turn. A prompt of one message with the role `text` is read as it is, without a chat template.
    """

    def complete(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> Completions:
        """`sampling.n` completions of each prompt; `done(i, completions)` is called as prompt i finishes."""

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """Score each option as the text that follows the prompt; `close=True` includes the end-of-turn token."""


def speed_of(generator: Generator) -> dict[str, float]:
    """Tokens a second and efficiency since the last call, of a generator that measures its work; else nothing."""
    work = getattr(generator, "work", None)
    return {} if work is None else dict(work.taken())


@dataclass(frozen=True)
class Source:
    """Where raw rows come from: a hub id with subset, split and pinned revision, or a local file."""

    path: str
    subset: str = ""
    split: str = "train"
    revision: str = ""


def messages_from(value: Iterable[Any], where: str = "row") -> Messages:
    """Check and freeze a list of `{role, content}`, also with thoughts and tool calls; errors name `where`."""
    turns = []
    for number, turn in enumerate(value):
        if isinstance(turn, Message) or is_plain(turn):
            turns.append(turn if isinstance(turn, Message) else Message(turn["role"], turn["content"]))
            continue
        if (
            not isinstance(turn, dict)
            or "role" not in turn
            or not turn.keys() & {"content", "tool_calls", "function_call"}
        ):
            raise RowError(f"{where}: turn {number} must be an object with 'role' and 'content', got {turn!r:.80}")
        if turn["role"] not in (*ROLES, PLAIN, *ROLE_NAMES):
            raise RowError(f"{where}: turn {number} has role {turn['role']!r}; expected one of {', '.join(ROLES)}")
        try:
            turns.append(message_of(read_turn(turn)))
        except ValueError as error:
            raise RowError(f"{where}: turn {number}: {error}") from None
    if not turns:
        raise RowError(f"{where}: has no messages; give at least one user turn")
    return tuple(turns)


def message_of(turn: Mapping[str, Any]) -> Message:
    """A turn of role and content, with the details that it has; ValueError says which cannot be read."""
    if len(turn) == 2:
        return Message(turn["role"], turn["content"])
    more = read_json(str(turn["details"])) if turn.get("details") else {}
    if not isinstance(more, dict) or not more.keys() <= DetailedMessage.__dataclass_fields__.keys() - {
        "role",
        "content",
    }:
        raise ValueError(f"has details that only rows of our own have: {turn['details']!r:.80}")
    named = {"thought": next((turn[key] for key in THOUGHTS if turn.get(key)), "")}
    named |= {key: turn.get(key) or "" for key in ("tool_call_id", "name")}
    if wrong := [key for key, text in named.items() if not isinstance(text, str)]:
        raise ValueError(f"expected text under {wrong[0]}, got {named[wrong[0]]!r:.60}")
    lists = {"tool_calls": calls_text(turn.get("tool_calls")), "tools": tools_text(turn.get("tools"))}
    context = {"untrained": turn["role"] == "assistant" and untrained(turn)}
    found = {key: value for key, value in (named | lists | context | more).items() if value}
    if set(found) <= {"name"} and turn["role"] != "tool":  # who speaks is no part of what is read
        return Message(turn["role"], turn["content"])
    return DetailedMessage(turn["role"], turn["content"], **found)


def is_context(turn: Message) -> bool:
    """Whether a turn is never trained, although it may be an answer."""
    return isinstance(turn, DetailedMessage) and turn.untrained


def with_tools(messages: Messages, tools: Any, where: str = "row") -> Messages:
    """The conversation with the tools that its answers may call: a JSON list, or what is read from one."""
    try:
        text = tools_text(tools)
    except ValueError as error:
        raise RowError(f"{where}: {error}") from None
    if not messages or not text:
        return messages
    first = messages[0]
    own = {key: getattr(first, key) for key in DETAILS} if isinstance(first, DetailedMessage) else {}
    return (DetailedMessage(first.role, first.content, **own | {"tools": text}), *messages[1:])


def row_from(value: dict[str, Any], where: str = "row") -> Row:
    """Build a Row from a stored object."""
    if "messages" not in value:
        raise RowError(f"{where}: expected a 'messages' list, got the keys {sorted(value)}")
    text = {k: str(value.get(k) or "") for k in ("source", "skill", "verifier", "reference", "template")}
    turns = with_tools(messages_from(value["messages"], where), value.get("tools"), where)
    return Row(id=str(value.get("id") or where), messages=turns, **text)


def pair_from(value: dict[str, Any], where: str = "row") -> Pair:
    """Build a Pair from a stored object; chosen and rejected must share everything but the last assistant turn."""
    if missing := [key for key in ("chosen", "rejected") if not value.get(key)]:
        raise RowError(f"{where}: expected 'chosen' and 'rejected' conversations, missing {' and '.join(missing)}")
    tools = value.get("tools")
    sides = (messages_from(value[key], f"{where}.{key}") for key in ("chosen", "rejected"))
    chosen, rejected = (with_tools(turns, tools, where) for turns in sides)
    if chosen[:-1] != rejected[:-1] or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise RowError(f"{where}: chosen and rejected must differ only in a last assistant turn")
    if any(is_context(side[-1]) for side in (chosen, rejected)):
        raise RowError(
            f"{where}: an answer of the pair is marked as context (weight 0 or train false); remove the mark"
        )
    text = {k: str(value.get(k) or "") for k in ("source", "skill", "chosen_model", "rejected_model", "provenance")}
    good, bad = (float(value.get(k) or 0.0) for k in ("chosen_rating", "rejected_rating"))
    name = str(value.get("id") or where)
    return Pair(id=name, chosen=chosen, rejected=rejected, chosen_rating=good, rejected_rating=bad, **text)


def plain(value: Any) -> dict[str, Any]:
    """A dataclass (or dict) as it is stored: details of turns as JSON, and only where a turn has some."""
    found: dict[str, Any] = value if isinstance(value, dict) else asdict(value)
    for key in CONVERSATIONS:
        turns = getattr(value, key, None)
        if isinstance(turns, tuple) and any(type(turn) is DetailedMessage for turn in turns):
            found[key] = [plain_turn(turn) for turn in turns]
    return found


def plain_turn(turn: Message) -> dict[str, str]:
    """A turn as it is stored."""
    found = {"role": turn.role, "content": turn.content}
    if not isinstance(turn, DetailedMessage):
        return found
    details = {name: getattr(turn, name) for name in DETAILS if getattr(turn, name)}
    return found | {"details": json.dumps(details, ensure_ascii=False)}


def write_table(path: Path, rows: Sequence[Any]) -> None:
    """Write dataclasses or dicts as parquet. Same rows, same bytes (for one pyarrow version)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = [plain(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(stored) if stored else pa.table({"id": pa.array([], pa.string())})
    pq.write_table(table, path, compression="zstd")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a parquet file into plain objects."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def read_rows(path: Path) -> list[Row]:
    """Rows of an artifact written by `write_table`."""
    return [row_from(value, f"{path}: row {i}") for i, value in enumerate(read_table(path))]


def stream_rows(path: Path) -> Iterator[Row]:
    """Rows of an artifact, few in memory at a time; whole columns are read, which is several times as fast."""
    import numpy as np
    import pyarrow.parquet as pq

    names = [field.name for field in fields(Row) if field.name != "messages"]
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
        if missing := {"messages", *names} - set(table.schema_arrow.names):
            raise RowError(f"{path}: expected a table of rows, the columns {', '.join(sorted(missing))} are missing")
        for piece in table.iter_batches(1000):
            made = _made(piece.column("messages").flatten())
            ends = np.cumsum(piece.column("messages").value_lengths()).tolist()
            columns = [piece.column(name).to_pylist() for name in names]
            for start, end, name, *rest in zip((0, *ends[:-1]), ends, *columns, strict=True):
                yield Row(name, tuple(made[start:end]), *rest)


def _made(turns: Any) -> list[Message]:
    """The messages of a column of turns, most of which have no details."""
    made = list(map(Message, *(turns.field(name).to_pylist() for name in ("role", "content"))))
    names = [turns.type.field(number).name for number in range(turns.type.num_fields)]
    for number, details in enumerate(turns.field("details").to_pylist() if "details" in names else ()):
        if details:
            made[number] = DetailedMessage(made[number].role, made[number].content, **json.loads(details))
    return made


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of an artifact written by `write_table`."""
    return [pair_from(value, f"{path}: row {i}") for i, value in enumerate(read_table(path))]
