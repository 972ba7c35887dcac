"""Raw rows become conversations: hops 1 and 2 of the road.

A source is a stage of the recipe, a local file, or a hub id. An adapter is a small function from one raw object to a
`Row`; `ADAPTERS` names them all. Everything that enters is checked here, so that the later hops may trust it.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tercet.recipe import SourceSpec
from tercet.rows import Message, Row, RowError, messages_from, mirrored, read_file, row_from

if TYPE_CHECKING:
    from tercet.store import Artifact

Adapter = Callable[[dict[str, Any], str], Row]
T = TypeVar("T")

_DATA_FILE = re.compile(r"\.(jsonl|json|csv|parquet)(\.gz)?$")
_CALCULATION = re.compile(r"<<[^<>]*>>")
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


def load(source: SourceSpec, inputs: Mapping[str, Artifact], mirror: Mapping[str, str]) -> Iterator[Row]:
    """The rows of one source, adapted and checked; `mirror` maps hub ids to local files or folders."""
    if source.adapter not in ADAPTERS:
        known = ", ".join(sorted(ADAPTERS))
        raise RowError(f"source {label(source)!r}: unknown adapter {source.adapter!r}; the known adapters are {known}")
    adapt = ADAPTERS[source.adapter]
    name = label(source)
    for number, (raw, where) in enumerate(_raw(source, inputs, mirror), 1):
        identity = raw.get("id")
        raw["id"] = f"{Path(name).name}-{number}" if identity is None or identity == "" else str(identity)
        row = adapt(raw, where)
        _check(row, where, require_answer=source.require_answer)
        yield row if row.source else replace(row, source=name)


def label(source: SourceSpec) -> str:
    """What tables call a source: the stage, the hub id, or the name of the local file (never its folder)."""
    if source.stage:
        return source.stage
    name = Path(source.path).name if _is_local(source.path) else source.path
    return f"{name}:{source.subset}" if source.subset else name


def draw(rows: Iterable[T], count: int, *, seed: int, key: Callable[[T], str]) -> list[T]:
    """A sample of `count` rows in their original order; which ones depends on the seed and the keys alone."""
    ranked = ((lot(seed, key(row)), number, row) for number, row in enumerate(rows))
    chosen = heapq.nsmallest(count, ranked, key=lambda entry: entry[:2])
    return [row for _, _, row in sorted(chosen, key=lambda entry: entry[1])]


def lot(seed: int, *parts: str) -> bytes:
    """A fair draw that is a pure function of its arguments: sort by it to shuffle, cut it to sample."""
    return hashlib.sha256("\x1f".join((str(seed), *parts)).encode("utf-8", "surrogatepass")).digest()


def check_verifiers(rows: Iterable[Row]) -> None:
    """Stop at the first row whose verifier does not exist."""
    from tercet.verify import verifier

    known: set[str] = {""}
    for row in rows:
        if row.verifier in known:
            continue
        try:
            verifier(row.verifier)
        except ValueError as error:
            raise RowError(f"row {row.id!r} of {row.source or 'an unnamed source'}: {error}") from None
        known.add(row.verifier)


def _raw(
    source: SourceSpec, inputs: Mapping[str, Artifact], mirror: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Raw objects with the place where each stands."""
    if source.stage:
        yield from _numbered(inputs[source.stage].payload / "rows.parquet")
    elif local := mirrored(mirror, source.path, source.split):
        yield from _local(Path(local), source)
    elif _is_local(source.path):
        yield from _local(Path(source.path), source)
    else:
        yield from _hub(source)


def _is_local(path: str) -> bool:
    return bool(_DATA_FILE.search(path)) or Path(path).exists()


def _local(path: Path, source: SourceSpec) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.is_dir():
        yield from _numbered(path)
        return
    folder = path / source.subset if source.subset else path
    files = sorted(f for f in folder.rglob(f"{source.split}*") if f.is_file() and _DATA_FILE.search(f.name))
    if not files:
        raise RowError(
            f"{folder}: no file named {source.split}*.jsonl, .json, .csv or .parquet (optionally .gz) in this folder; "
            f"name the file itself, or put the split {source.split!r} there"
        )
    for file in files:
        yield from _numbered(file)


def _numbered(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    number = 0
    try:
        for number, raw in enumerate(read_file(path), 1):
            yield dict(raw), f"{path}, row {number}"
    except RowError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise RowError(f"{path}: cannot be read after row {number} ({error}); is the file whole and UTF-8?") from error


def _hub(source: SourceSpec) -> Iterator[tuple[dict[str, Any], str]]:
    if not source.revision:
        raise RowError(f'hub source {source.path!r} has no revision; pin one with `revision = "<commit>"`')
    import datasets

    try:
        rows = datasets.load_dataset(
            source.path, source.subset or None, split=source.split, revision=source.revision, streaming=False
        )
    except (OSError, ValueError) as error:
        raise RowError(
            f"hub source {source.path!r} (revision {source.revision}) cannot be loaded: {error}; check the id and the "
            f'network, or map it to a local file with `--mirror FILE.toml` holding "{source.path}" = "rows.jsonl"'
        ) from error
    for number, raw in enumerate(rows, 1):
        yield dict(raw), f"{source.path}, row {number}"


def _check(row: Row, where: str, *, require_answer: bool) -> None:
    if not row.user_turns:
        raise RowError(f"{where}: has no user turn; a conversation needs a question before its answer")
    if row.answer is None and require_answer:
        raise RowError(
            f"{where}: has no assistant turn at its end, so there is nothing to imitate; add the answer, remove the "
            f"row, or set `require_answer = false` for prompts that are only rewarded"
        )
    if row.answer is not None and not row.answer.strip():
        raise RowError(f"{where}: has an empty completion (its last assistant turn is blank); fill or remove the row")
    try:
        "".join((row.id, row.source, row.truth, *(turn.content for turn in row.messages))).encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: holds half of a character ({error.reason}); repair the text's encoding") from None


def _conversation(raw: dict[str, Any], where: str) -> Row:
    """The layout of `Row` and of the public mixtures: a list of `{role, content}` under `messages`."""
    turns = raw.get("messages")
    if not isinstance(turns, list | tuple):
        raise RowError(f"{where}: expected a 'messages' list, got the keys {_keys(raw)}; choose another adapter")
    blanked = [{**t, "content": ""} if isinstance(t, dict) and t.get("content", "") is None else t for t in turns]
    return row_from({**raw, "messages": blanked}, where)


def _tulu_sft(raw: dict[str, Any], where: str) -> Row:
    """`id, messages, source`, the layout of the public Tülu 3 SFT mixture; other columns are left behind."""
    return _conversation({key: raw[key] for key in ("id", "messages", "source") if key in raw}, where)


def _gsm8k(raw: dict[str, Any], where: str) -> Row:
    """`question, answer`: calculator marks `<<48/2=24>>` go, the truth stands after `####` without commas."""
    question, answer = _texts(raw, where, "question", "answer")
    _, mark, truth = answer.rpartition("####")
    if not mark or not truth.strip():
        raise RowError(f"{where}: the answer must end in '#### NUMBER', got {answer[-60:]!r}")
    turns = (Message("user", question), Message("assistant", _CALCULATION.sub("", answer)))
    return Row(raw["id"], turns, skill="words", verifier="gsm8k@1", truth=truth.strip().replace(",", ""))


def _alpaca(raw: dict[str, Any], where: str) -> Row:
    """`instruction, input, output` (some files say `response`); a non-empty input follows after a blank line."""
    instruction, answer = _texts(raw, where, "instruction", "response" if "output" not in raw else "output")
    context = raw.get("input")
    question = f"{instruction}\n\n{context}" if isinstance(context, str) and context.strip() else instruction
    return Row(raw["id"], (Message("user", question), Message("assistant", answer)))


def _sharegpt(raw: dict[str, Any], where: str) -> Row:
    """`conversations` of `{from, value}`, optionally a `system` text."""
    turns = raw.get("conversations")
    if not isinstance(turns, list | tuple):
        raise RowError(f"{where}: expected a 'conversations' list, got the keys {_keys(raw)}; choose another adapter")
    start = [Message("system", raw["system"])] if isinstance(raw.get("system"), str) and raw["system"].strip() else []
    return Row(raw["id"], messages_from([*start, *(_turn(turn, where) for turn in turns)], where))


def _turn(turn: Any, where: str) -> Message | dict[str, Any]:
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RowError(f"{where}: each turn must be an object with 'from' and 'value', got {turn!r:.80}")
    if turn["from"] not in _SPEAKERS:
        known = ", ".join(sorted(_SPEAKERS))
        raise RowError(f"{where}: a turn is from {turn['from']!r}; expected {known}; remove rows with tool calls")
    value = "" if turn["value"] is None else turn["value"]
    return {"role": _SPEAKERS[turn["from"]], "content": value}


def _texts(raw: dict[str, Any], where: str, *names: str) -> list[str]:
    missing = [name for name in names if not isinstance(raw.get(name), str)]
    if missing:
        raise RowError(f"{where}: expected text under {' and '.join(missing)}, got the keys {_keys(raw)}")
    return [raw[name] for name in names]


def _keys(raw: dict[str, Any]) -> str:
    return ", ".join(sorted(str(key) for key in raw if key != "id")) or "none"


ADAPTERS: dict[str, Adapter] = {
    "rows": _conversation,
    "tulu_sft": _tulu_sft,
    "gsm8k": _gsm8k,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}
