"""The rows and pairs of a recipe's source: a stage, a local file or a hub id.

An adapter turns each raw object into a `Row` (`ADAPTERS`) or a `Pair` (`PAIRS`); `auto` recognises the layout and
reports it. Every object is checked here, so that later steps may trust it: it is kept, left out by policy or as a bad
row, each for a counted reason, or the reading stops (`reading`). One object is held at a time.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from tercet import hub
from tercet.data import tables
from tercet.data.adapters import ADAPTERS, PAIRS, UNFOLDS, WITH_EXAMPLES, fill
from tercet.data.columns import by_columns
from tercet.data.common_adapters import marked
from tercet.data.layouts import Adapter, Choice, Skip, filled, refusal
from tercet.data.raw_turns import Raw
from tercet.data.reading import Leftovers, Reading, carried_by
from tercet.outside import read_json
from tercet.recipe import KINDS, SourceSpec
from tercet.rows import Pair, Row, RowError, Source, Unpaired, row_from
from tercet.rows_file import Unreadable, read_file
from tercet.rows_limits import opened
from tercet.store import Artifact

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Row | Pair)
Raws = Iterator[tuple[Raw, str]]
NameOf = Callable[[Raw, str], str]  # of the adapter of an object
Inputs = Mapping[str, Artifact]

TEMPLATE = "tercet:hardcoded"  # the path of the built-in template of questions about the assistant itself
COLUMNS = ""  # the adapter of a source that names its prompt's column
PEEK = 50  # rows that a layout is recognised by
LENIENT = partial(read_file, lenient=True)  # a bad line is counted as a bad row


def load(source: SourceSpec, inputs: Inputs, mirror: Mapping[str, str], reading: Reading) -> Iterator[Row]:
    """The rows of one source, adapted and checked; `mirror` maps hub ids to local files or folders.

    `reading` counts rows that an adapter leaves out, public rows with an empty answer, and bad rows. In rows of our own
    layout, from a stage or a local file, an empty answer is an error. Of preference pairs the chosen side is the row.
    """
    source = source.model_copy(update={"adapter": "rows"}) if source.stage else source
    layout, raws = _begin(source, _raw(source, inputs, mirror, "rows.parquet"), reading, "rows")
    adapters = cache(partial(_reader, source=source, mirror=mirror))
    if source.prompt or source.adapter != "auto":
        adapters(COLUMNS if source.prompt else source.adapter)  # refuses a name before anything is read
    own = bool(source.stage or hub.is_local(source.path))

    def adapt(raw: Raw, where: str) -> tuple[Row, str]:
        name = layout(raw, where)
        row, public = adapters(name)(raw, where), name != "rows" or not own
        if name == "hardcoded":
            row = fill(row, source.values, where)
        if public and row.answer is not None and row.messages[-1].blank:
            raise Skip("empty answer")
        _check(row, where, require_answer=source.require_answer and not source.verifier)
        return row, name

    yield from _adapted(source, raws, adapt, reading)


def load_pairs(source: SourceSpec, inputs: Inputs, mirror: Mapping[str, str], reading: Reading) -> Iterator[Pair]:
    """The preference pairs of one source, as `load` gives rows; a stage of pairs needs no adapter."""
    source = source.model_copy(update={"adapter": "preference"}) if source.stage else source
    check_adapter(source, "pairs")
    layout, raws = _begin(source, _raw(source, inputs, mirror, "pairs.parquet"), reading, "pairs")

    def adapt(raw: Raw, where: str) -> tuple[Pair, str]:
        name = layout(raw, where)
        return _checked_pair(PAIRS[name](raw, where), where), name

    yield from _adapted(source, raws, adapt, reading)


def load_unpaired(
    source: SourceSpec, inputs: Inputs, mirror: Mapping[str, str], reading: Reading
) -> Iterator[Unpaired]:
    """The answers of one source with their labels, as `load` gives rows; a pair gives a good one and a bad one."""
    made = KINDS[inputs[source.stage].kind].produces if source.stage else ""
    source = source.model_copy(update={"adapter": "preference" if made == "pairs" else "rows"}) if made else source
    check_adapter(source, "unpaired")
    layout, raws = _begin(source, _raw(source, inputs, mirror, f"{made or 'unpaired'}.parquet"), reading, "unpaired")

    def adapt(raw: Raw, where: str) -> tuple[Pair | Unpaired, str]:
        if (name := layout(raw, where)) in PAIRS:
            return _checked_pair(PAIRS[name](raw, where), where), name
        row, good = (row_from(raw, where), bool(raw["good"])) if made else marked(raw, where)
        if row.answer is not None and row.messages[-1].blank:
            raise Skip("empty answer")
        _check(row, where, require_answer=True)
        return Unpaired(**vars(row), good=good), name

    for entry in _adapted(source, raws, adapt, reading):
        if isinstance(entry, Pair):
            reading.kept += 1  # two answers of one object
            yield from both_sides(entry)
        else:
            yield entry


LOADERS: dict[str, Callable[..., Iterator[Any]]] = {  # by what is to be read: what a stage produces
    "rows": load,
    "pairs": load_pairs,
    "unpaired": load_unpaired,
}


def check_adapter(source: SourceSpec, need: str) -> None:
    """RowError where the adapter that a source names does not exist, or gives something else than is needed."""
    fitting = {"rows": {*ADAPTERS, *PAIRS}, "pairs": {*PAIRS}, "unpaired": {"auto", "kto", "rows", *PAIRS}}[need]
    if source.stage or source.adapter in {"auto", *fitting}:
        return
    if need == "rows":
        raise _unknown_adapter(source)
    what = "pairs; the adapters of pairs are" if need == "pairs" else "answers with labels; the adapters that do are"
    raise RowError(f"source {label(source)!r}: {source.adapter!r} gives no {what} {', '.join(sorted(fitting))}")


def _unknown_adapter(source: SourceSpec) -> RowError:
    known, more = ", ".join(sorted(ADAPTERS)), f"of pairs: {', '.join(sorted(PAIRS))}; auto recognises the layout"
    said = f"unknown adapter {source.adapter!r}; the known adapters are {known}; {more}"
    return RowError(f"source {label(source)!r}: {said}")


def both_sides(pair: Pair) -> tuple[Unpaired, Unpaired]:
    """The chosen answer of a pair as a good one, the rejected one as a bad one."""
    good = Unpaired(f"{pair.id}+", pair.chosen, pair.source, pair.skill)
    return good, Unpaired(f"{pair.id}-", pair.rejected, pair.source, pair.skill, good=False)


def from_hub(source: SourceSpec, mirror: Mapping[str, str]) -> bool:
    """Whether the rows come over the network: from no stage, template, local file, or local stand-in of the mirror."""
    local = source.stage or source.path == TEMPLATE or hub.is_local(source.path)
    return not local and not stand_in(source, mirror)


def stand_in(source: SourceSpec, mirror: Mapping[str, str]) -> str:
    """The mirror's local file or folder for a hub data set, which may hold only a part of it; empty without one."""
    return hub.local_file(_place(source), mirror) if source.path else ""


def label(source: SourceSpec) -> str:
    """The name of a source in tables: the stage, the hub id, or the local file's name (never its folder)."""
    name = Path(source.path).name if hub.is_local(source.path) else source.path
    return source.stage or (f"{name}:{source.subset}" if source.subset else name)


def draw(rows: Iterable[T], count: int, *, seed: int, key: Callable[[T], str]) -> list[T]:
    """A sample of `count` rows in their original order; which ones depends on the seed and the keys alone."""
    ranked = ((lot(seed, key(row)), number, row) for number, row in enumerate(rows))
    chosen = heapq.nsmallest(count, ranked, key=lambda entry: entry[:2])
    return [row for _, _, row in sorted(chosen, key=lambda entry: entry[1])]


def lot(seed: int, *parts: str) -> bytes:
    """A uniform hash of the arguments alone: rows sorted by it are shuffled, and the first of them are a sample."""
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


def graders(rows: Iterable[Any]) -> set[str]:
    """The verifiers that rows name, those in weighted sums too; pairs name none."""
    from tercet.verify.shaping import parts_of

    own = [row for row in rows if isinstance(row, Row) and row.verifier]
    inside = {part.verifier for row in own if row.verifier == "sum@1" for part in parts_of(row.reference)}
    return {row.verifier for row in own} | inside


def _begin(source: SourceSpec, raws: Raws, reading: Reading, need: str) -> tuple[NameOf, Raws]:
    """Which adapter reads each object (recognised where the recipe says `auto`), and the counted objects."""
    name, counted = COLUMNS if source.prompt else source.adapter, _counted(raws, source, reading)
    if name != "auto":
        return lambda raw, where: name, UNFOLDS[name](counted) if name in UNFOLDS else counted
    first = list(islice(counted, PEEK))
    if not first:
        reading.finish(source.max_bad)  # not a line could be read
    try:
        choice = Choice([raw for raw, _ in first], need)
    except RowError as error:
        raise RowError(f"source {label(source)!r}: {error}") from None
    reading.said.append(f"{label(source)} {choice.why()}")
    objects = chain(first, counted)
    if choice.main and choice.main.adapter in UNFOLDS:
        whole = choice.main.adapter
        return lambda raw, where: whole, UNFOLDS[whole](objects)
    return partial(_recognised, choice, reading, label(source)), objects


def _recognised(choice: Choice, reading: Reading, name: str, raw: Raw, where: str) -> str:
    """The adapter of one row; the first row of a layout that the file's first rows have not is said."""
    layout = choice.of(raw) or choice.main
    if layout is None:
        raise RowError(f"{where}: has none of the known layouts, with the keys {filled(raw)}")
    if layout.gives == "nothing":
        raise RowError(f"{where}: {refusal(layout)}")
    if layout not in choice.counts:
        choice.counts[layout] += 1
        about = f"{' and '.join(layout.keys)}: {layout.meaning}"
        place = where.rpartition("/")[2]
        reading.said.append(f"{name}: {place} is the first of rows that are read as {layout.adapter!r} ({about})")
    return layout.adapter


def _counted(raws: Raws, source: SourceSpec, reading: Reading) -> Raws:
    for raw, where in raws:
        reading.read += 1
        if isinstance(raw, Unreadable):
            reading.refuse(raw.error, where, source.max_bad)
        else:
            yield raw, where


def _reader(name: str, *, source: SourceSpec, mirror: Mapping[str, str]) -> Adapter:
    """The function of this name, with the columns that the source names."""
    adapter = _adapter(name, source, mirror) if name != COLUMNS else None
    return by_columns(source, adapter) if source.by_columns or adapter is None else adapter


def _adapter(adapter: str, source: SourceSpec, mirror: Mapping[str, str]) -> Adapter:
    """The function of this name, with the worked examples that the source names."""
    if source.examples:
        return _with_examples(adapter, label(source), Source(**source.examples.model_dump()), mirror)
    if adapter in PAIRS:
        return lambda raw, where: chosen_side(PAIRS[adapter](raw, where))
    if adapter not in ADAPTERS:
        raise _unknown_adapter(source)
    return ADAPTERS[adapter]


def chosen_side(pair: Pair) -> Row:
    """The chosen conversation of a pair as a row."""
    return Row(pair.id, pair.chosen, pair.source, pair.skill)


def _with_examples(adapter: str, source: str, examples_of: Source, mirror: Mapping[str, str]) -> Adapter:
    """The adapter with the first worked examples of its data set."""
    who = f"source {source!r}"
    if adapter not in WITH_EXAMPLES:
        raise RowError(f"{who}: {adapter!r} takes no worked examples; {' and '.join(sorted(WITH_EXAMPLES))} do")
    function, shots, keys = WITH_EXAMPLES[adapter]
    who = f"{who}, worked examples of {hub.local_file(examples_of, mirror) or examples_of.path}"
    try:
        examples = hub.rows_with(hub.records([examples_of], mirror), *keys)
    except RowError as error:
        raise RowError(f"{who}: {error}") from None
    if len(examples) < shots:
        raise RowError(f"{who}: expected {shots} worked examples, got {len(examples)}")
    for number, example in enumerate(examples[:shots], 1):
        if missing := [key for key in keys if not isinstance(example.get(key), str)]:
            raise RowError(f"{who}: worked example {number}: expected text under {' and '.join(missing)}")
    return partial(function, examples=examples[:shots])


def _adapted(
    source: SourceSpec, raws: Raws, adapt: Callable[[Raw, str], tuple[Entry, str]], reading: Reading
) -> Iterator[Entry]:
    """The rows or pairs of the objects; those that are left out are counted. An object without an id is numbered.

    `adapt` gives each with the name of the adapter that read it, which decides what is left behind.
    """
    name, column = label(source), hub.COLUMNS.get(source.path, "")
    leftovers = cache(partial(Leftovers, source=source))
    for number, (raw, where) in enumerate(raws, 1):
        identity = raw.get("id")
        raw["id"] = f"{Path(name).name}-{number}" if identity in (None, "") else str(identity)
        try:
            if isinstance(raw, Unreadable):  # an object that could not be unfolded into rows
                raise raw.error
            if column and source.subset and raw.get(column) != source.subset:
                raise Skip("of another part of the set")
            entry, reader = adapt(raw, where)
            if left := leftovers(reader).of(raw, carried_by(entry)):
                if source.strict:
                    raise leftovers(reader).complaint(left, where)
                reading.left.update(left)
        except Skip as reason:
            reading.skipped[str(reason)] += 1
            continue
        except RowError as error:
            reading.refuse(error, where, source.max_bad)
            continue
        reading.kept += 1
        yield entry if entry.source else replace(entry, source=name)
    reading.finish(source.max_bad)


def _raw(source: SourceSpec, inputs: Inputs, mirror: Mapping[str, str], table: str) -> Raws:
    """Raw objects with the place where each stands."""
    if source.path == TEMPLATE:
        for number, (question, answer) in enumerate(tables.entries("hardcoded.jsonl", tuple[str, str]), 1):
            yield {"instruction": question, "output": answer}, f"{TEMPLATE}, row {number}"
        return
    if from_hub(source, mirror) and not source.revision:
        raise RowError(
            f'hub source {source.path!r} has no revision; pin one with `revision = "<commit>"`, or write '
            '`revision = "main"` to take, unpinned, whatever stands there on the day'
        )
    place = Source(str(inputs[source.stage].payload / table)) if source.stage else _place(source)
    yield from hub.stream(place, mirror, _tree if source.adapter == "prompt_tree" else LENIENT)


def _place(source: SourceSpec) -> Source:
    return Source(source.path, source.subset, source.split, source.revision)


def _tree(path: Path) -> Iterator[Raw]:
    """The texts in nested JSON lists and objects as prompts; `template` holds the keys on the path to each."""
    with opened(path) as stream:
        waiting: list[tuple[str, Any]] = [("", read_json(stream.whole().decode()))]
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{keys}/{key}".strip("/"), below) for key, below in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(keys, below) for below in reversed(value)]
        elif isinstance(value, str):
            yield {"prompt": value, "template": keys}
        else:
            raise RowError(f"{path}: expected nested lists and objects of texts, got {value!r:.40} under {keys!r}")


def _check(row: Row, where: str, *, require_answer: bool) -> None:
    if not row.user_turns:
        raise RowError(f"{where}: has no user turn; a conversation needs a question before its answer")
    if row.answer is None and require_answer:
        raise RowError(
            f"{where}: has no assistant turn at its end, so there is nothing to train on; add the answer, remove the "
            f"row, or set `require_answer = false` for prompts that are only rewarded"
        )
    if row.answer is not None and row.messages[-1].blank:
        raise RowError(f"{where}: has an empty completion (its last assistant turn is blank); fill or remove the row")
    plain = (row.id, row.source, row.skill, row.verifier, row.reference, row.template)
    _check_texts(where, *plain, *carried_by(row))


def _checked_pair(pair: Pair, where: str) -> Pair:
    for side in (pair.chosen, pair.rejected):
        _check(Row(pair.id, side, pair.source, pair.skill), where, require_answer=True)
    _check_texts(where, pair.chosen_model, pair.rejected_model, pair.provenance)
    return pair


def _check_texts(where: str, *texts: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: holds half of a character ({error.reason}); repair the text's encoding") from None
