"""The mixture: filter, dedupe, decontaminate and shuffle sources into one table (hops 2 to 4 of the road).

Every row that enters is either kept or listed in `removed.parquet` with the rule that removed it, or it was left out
by the sample the recipe asked for: kept + removed = sampled <= read, per source. Which rows are sampled and the order
of the result are functions of the seed and the row ids alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.data.decontam import ExamItem, Hit, Index, excerpt
from tercet.data.sources import check_verifiers, draw, label, load, lot
from tercet.recipe import Mix, SourceSpec
from tercet.rows import Row, RowError, read_table, write_table

if TYPE_CHECKING:
    from tercet.store import Artifact, Context

KEYWORDS = (  # other makers and models, as the paper's conversion scripts list them; looked for in assistant turns
    *("OpenAI", "Open AI", "ChatGPT", "Chat GPT", "BingChat", "Bing Chat", "LAION", "Open Assistant", "OpenAssistant"),
    *("GPT-3", "GPT3", "GPT 3", "GPT-3.5", "GPT3.5", "GPT 3.5", "GPT-4", "GPT4", "GPT 4"),
)

_KEYWORD = re.compile(rf"\b(?:{'|'.join(map(re.escape, KEYWORDS))})\b", re.IGNORECASE)
_WIDTH = 320  # longest excerpt in removed.parquet, in characters


@dataclass(frozen=True)
class Reason:
    """Why a row goes. For a contaminated row: which exam item it copies most of, and both texts side by side."""

    detail: str
    task: str = ""
    item: str = ""
    coverage: float = 0.0
    row_text: str = ""
    exam_text: str = ""


@dataclass(frozen=True)
class Removed:
    """One line of `removed.parquet`."""

    source: str
    row: str
    rule: str
    detail: str
    task: str
    item: str
    coverage: float
    row_text: str
    exam_text: str


@dataclass
class Tally:
    """What happened to one source."""

    source: str
    read: int
    sampled: int
    kept: int
    removed: Counter[str]


Rule = Callable[[Row], Reason | None]


def run(spec: Mix, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `rows.parquet`, `removed.parquet` and `summary.json`."""
    exam = [item for name in spec.against for item in exam_items(inputs[name].payload / "exam.parquet")]
    decontaminate = Decontaminate(Index(exam, spec.ngram), spec.threshold)
    rules = _rules(spec, decontaminate)
    names: set[str] = set()
    ids: set[str] = set()
    kept: list[tuple[str, Row]] = []
    removed: list[Removed] = []
    tallies: list[Tally] = []
    for number, source in enumerate(spec.sources):
        name = _unique(label(source), names)
        rows, num_read = _sample(source, inputs, ctx, name)
        check_verifiers(rows)
        stays, goes = sift(rows, name, rules)
        kept += [(name, replace(row, id=_unique(row.id, ids))) for row in stays]
        removed += goes
        tallies.append(Tally(name, num_read, len(rows), len(stays), Counter(gone.rule for gone in goes)))
        ctx.track.log(number, read=num_read, sampled=len(rows), kept=len(stays), removed=len(goes))
        ctx.track.progress(number + 1, len(spec.sources), name)
    if not kept:
        raise RowError(f"mix {ctx.name!r}: no row is left of {len(removed)}; see the rules: {dict(_by_rule(removed))}")
    shuffled = [row for name, row in sorted(kept, key=lambda entry: lot(ctx.seed, "order", entry[0], entry[1].id))]
    prove_clean(shuffled, decontaminate)
    write_table(out / "rows.parquet", shuffled)
    _write_removed(out / "removed.parquet", removed)
    _write_summary(out / "summary.json", tallies, removed, decontaminate)
    contaminated = _by_rule(removed)["contaminated"]
    return {"rows": float(len(kept)), "removed": float(len(removed)), "contaminated": float(contaminated)}


def sift(rows: Iterable[Row], source: str, rules: Mapping[str, Rule]) -> tuple[list[Row], list[Removed]]:
    """Part the rows: those no rule objects to, and those that go, each with the first rule that did."""
    stays: list[Row] = []
    goes: list[Removed] = []
    for row in rows:
        verdicts = ((name, rule(row)) for name, rule in rules.items())
        name, reason = next(((name, reason) for name, reason in verdicts if reason), ("", None))
        if reason is None:
            stays.append(row)
        else:
            text = reason.row_text or _clip(row.messages[-1].content)
            goes.append(Removed(source, row.id, name, **{**asdict(reason), "row_text": text}))
    return stays, goes


def names_a_model(row: Row) -> Reason | None:
    """An assistant turn names another maker's model (whole word, any case)."""
    for turn in row.messages:
        found = _KEYWORD.search(turn.content) if turn.role == "assistant" else None
        if found:
            start = max(0, found.start() - _WIDTH // 2)
            return Reason(f"assistant says {found.group()!r}", row_text=_clip(turn.content[start:]))
    return None


def has_blank_turn(row: Row) -> Reason | None:
    """A message is empty or holds only white space."""
    blank = [f"turn {i} ({turn.role})" for i, turn in enumerate(row.messages) if not turn.content.strip()]
    return Reason(f"blank: {', '.join(blank)}") if blank else None


class Dedupe:
    """A rule with a memory: a prompt seen before, up to case and white space; the first one stays."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: dict[bytes, str] = {}

    def __call__(self, row: Row) -> Reason | None:
        """The reason names the row that came first."""
        turns = (f"{turn.role}\x1e{' '.join(turn.content.casefold().split())}" for turn in row.prompt)
        key = lot(0, *turns)
        if key in self._seen:
            return Reason(f"same prompt as {self._seen[key]}", row_text=_clip(row.prompt[-1].content))
        self._seen[key] = row.id
        return None


class Decontaminate:
    """A rule that counts: the row copies more than `threshold` of an exam item (see `decontam`)."""

    def __init__(self, index: Index, threshold: float) -> None:
        """Look rows up in `index`."""
        self.index = index
        self.threshold = threshold
        self.copied: dict[str, set[str]] = {item.task: set() for item in index.items}

    def __call__(self, row: Row) -> Reason | None:
        """The reason shows the item that is copied most."""
        hits = self.hits(row)
        if not hits:
            return None
        for hit in hits:
            self.copied[hit.item.task].add(hit.item.item)
        worst = max(hits, key=lambda hit: hit.coverage)
        return Reason(
            f"copies {len(hits)} exam item{'s' if len(hits) > 1 else ''}",
            task=worst.item.task,
            item=worst.item.item,
            coverage=worst.coverage,
            row_text=excerpt(row.user_turns[worst.document], worst.matched, n=self.index.n, width=_WIDTH),
            exam_text=excerpt(worst.item.fields[worst.field], worst.matched, n=self.index.n, width=_WIDTH),
        )

    def hits(self, row: Row) -> list[Hit]:
        """What the row copies, without counting it."""
        return self.index.hits(row.user_turns, self.threshold)


def exam_items(path: Path) -> list[ExamItem]:
    """The items of a prompts artefact, with the fields that training rows must not copy."""
    items = []
    for number, value in enumerate(read_table(path)):
        if "fields" not in value or "task" not in value or "item" not in value:
            raise RowError(f"{path}, row {number}: expected task, item and fields, got the keys {sorted(value)}")
        items.append(ExamItem(value["task"], str(value["item"]), tuple(value["fields"] or ())))
    return items


def prove_clean(rows: Iterable[Row], decontaminate: Decontaminate) -> None:
    """A second pass over what stays: nothing may copy the exam."""
    for row in rows:
        hits = decontaminate.hits(row)
        if hits:
            copied = ", ".join(f"{hit.item.task}/{hit.item.item} ({hit.coverage:.0%})" for hit in hits)
            raise RuntimeError(f"row {row.id!r} still copies {copied} after decontamination; this is a bug, report it")


def _rules(spec: Mix, decontaminate: Decontaminate) -> dict[str, Rule]:
    rules: dict[str, Rule] = {"keywords": names_a_model} if spec.keywords else {}
    rules["blank"] = has_blank_turn
    if spec.dedupe:
        rules["duplicate"] = Dedupe()
    rules["contaminated"] = decontaminate
    return rules


def _sample(source: SourceSpec, inputs: dict[str, Artifact], ctx: Context, name: str) -> tuple[list[Row], int]:
    """The source's rows, or the sample the recipe asks for, and how many were read."""
    num_read = 0

    def counted() -> Iterable[Row]:
        nonlocal num_read
        for row in load(source, inputs, ctx.mirror):
            num_read += 1
            yield row

    if source.rows is None:
        rows = list(counted())
        return rows, num_read
    rows = draw(counted(), source.rows, seed=ctx.seed, key=lambda row: f"{name}\x1f{row.id}")
    if len(rows) < source.rows:
        raise RowError(f"source {name!r} has {num_read} rows, the recipe asks for {source.rows}; lower its `rows`")
    return rows, num_read


def _unique(name: str, taken: set[str]) -> str:
    """The name, with ~2, ~3, ... behind it when it is taken; marks it as taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}~{number}"
    taken.add(candidate)
    return candidate


def _clip(text: str) -> str:
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "…"


def _by_rule(removed: Sequence[Removed]) -> Counter[str]:
    return Counter(gone.rule for gone in removed)


def _write_removed(path: Path, removed: Sequence[Removed]) -> None:
    """Parquet with the same columns whether or not anything was removed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: pa.float64() if name == "coverage" else pa.string() for name in Removed.__dataclass_fields__}
    table = pa.Table.from_pylist([asdict(gone) for gone in removed], schema=pa.schema(list(columns.items())))
    pq.write_table(table, path, compression="zstd")


def _write_summary(path: Path, tallies: Sequence[Tally], removed: Sequence[Removed], judge: Decontaminate) -> None:
    """Per source what was read, sampled, kept and removed; per exam task how many of its items were copied."""
    num_items = Counter(item.task for item in judge.index.items)
    exams = [
        {"task": task, "items": num_items[task], "copied": len(copied), "share": len(copied) / num_items[task]}
        for task, copied in sorted(judge.copied.items())
    ]
    value: dict[str, Any] = {
        "rows": sum(tally.kept for tally in tallies),
        "removed": dict(sorted(_by_rule(removed).items())),
        "sources": [{**asdict(tally), "removed": dict(sorted(tally.removed.items()))} for tally in tallies],
        "exams": exams,
        "ngram": judge.index.n,
        "threshold": judge.threshold,
    }
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
