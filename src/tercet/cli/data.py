"""The verbs `decontaminate` and `data`."""

from __future__ import annotations

import argparse
import json
import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet import hub, machine, pipeline
from tercet.cli.output import emit, say, table
from tercet.recipe import AskingSpec, MixtureSpec, OnPolicyPairsSpec, kinds_of
from tercet.store import Store, StoreError

if TYPE_CHECKING:
    from tercet.data.benchmark_items import BenchmarkItem


def decontaminate(args: argparse.Namespace) -> int:
    """Write the clean rows; print sets against benchmarks, and both texts of each copy side by side."""
    from tercet.data.decontam import Index
    from tercet.data.decontaminate_files import clean
    from tercet.data.decontaminator import DecontaminationRule, Decontaminator
    from tercet.report.data import matrix, removed_texts

    for name in ("threshold", "share"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name}: expected a share between 0 and 1, got {getattr(args, name)}")
    benchmark, unseen = benchmark_of(args.against, args.mirror)
    index = Index(benchmark, args.ngram, exact=args.exact, published=args.published)
    rule = DecontaminationRule(args.threshold, args.share, unseen, args.spare)
    cleaner = Decontaminator(index, rule)
    found = clean(args.files, args.out, cleaner, args.workers or machine.cores(), where=args.where)
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.json:
        return emit(found)
    columns = ("source", "rows", "removed", "dropped for")
    table(columns, ((*_cells(one, columns[:3]), ", ".join(one["dropped_for"])) for one in found["sources"]))
    _say_matrix(matrix(found["matrix"], found["benchmarks"]))
    _say_copies(removed_texts(found["items"]), "the report")
    say(f"{found['rows']} rows, {found['tokens']} tokens read; {found['removed']} rows removed, {found['kept']} kept")
    searched = sum(one["items"] - one["unsearched"] for one in found["benchmarks"])
    proof = (
        f"{found['proof']['rows']} rows of {found['out']}, {found['proof']['copy']} copy one of the {searched:,} items"
    )
    say(f"second pass: {proof} that were looked for")
    return 0


def benchmark_of(against: str, mirror_file: str | None) -> tuple[list[BenchmarkItem], frozenset[str]]:
    """The items of a folder with `benchmark.parquet`, or of tasks and suites; and which tasks are unseen."""
    from tercet.data.benchmark_items import BenchmarkItem, read_benchmark
    from tercet.data.synth import GENERATORS
    from tercet.evals import suite
    from tercet.evals.task import Generated, examples_of, items, public_records

    for folder in (Path(against), Path(against) / "payload"):
        if (folder / "benchmark.parquet").is_file():
            return read_benchmark(folder)
    names = [name.strip() for name in against.split(",") if name.strip()]
    if not names or (len(names) == 1 and Path(against).is_dir()):
        raise ValueError(f"--against {against!r}: expected suites, tasks, or a folder that holds benchmark.parquet")
    mirror = pipeline.read_mirror(mirror_file)
    benchmark = []
    for wanted in suite.tasks(names):
        if isinstance(wanted.data, Generated):
            records: list[Any] = list(GENERATORS[wanted.data.generator](wanted.data.rows, "test", 17))
        else:
            records = public_records(wanted, mirror)
        examples = hub.records(wanted.examples, mirror)
        made = items(wanted, records, examples)
        benchmark += [BenchmarkItem(one.task, one.item, one.fields, one.beside) for one in made]
        benchmark += [BenchmarkItem(one.task, one.item, one.fields) for one in examples_of(wanted, examples)]
    return benchmark, frozenset(suite.locked(names))


def data(args: argparse.Namespace) -> int:
    """What a file of rows becomes; of an artifact the rows of each source, those removed, and copies of benchmarks."""
    from tercet.cli import preview
    from tercet.report.data import summary
    from tercet.report.data_page import write_page

    page = args.out or (Path("data.html") if args.open else None)
    if preview.is_rows(args.artifact, Store(args.store), pipeline.read_mirror(args.mirror)):
        return _shown(args, page, preview.rows(args, page))
    artifact = Store(args.store).open(args.artifact)
    if artifact.kind not in (kinds := kinds_of(MixtureSpec, AskingSpec, OnPolicyPairsSpec)):
        raise StoreError(f"{artifact.path.name} is of kind {artifact.kind}; expected a data stage: {', '.join(kinds)}")
    found = summary(artifact.kind, artifact.payload)
    if not found:
        raise StoreError(f"{artifact.payload}: has no summary.json; run `tercet check {artifact.path.name}`")
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(artifact, page)
    if args.json:
        emit({"artifact": artifact.path.name, **found} | ({"page": str(page)} if page else {}))
    elif artifact.kind in kinds_of(MixtureSpec):
        _say_mixture(found)
    else:
        _say_asked(found)
    return _shown(args, page, 0)


def _shown(args: argparse.Namespace, page: Path | None, code: int) -> int:
    """Say where the page is that was written, and open it on request; the exit code is handed on."""
    if page and not args.json:
        say(f"page: {page}")
    if page and args.open:
        webbrowser.open(page.absolute().as_uri())
    return code


def _say_mixture(found: dict[str, Any]) -> None:
    """Datasheet, sources, matrix, copies side by side, and a few rows that other rules removed."""
    if found["sheet"]:
        keys = ("part", "source", "rows", "tokens", "turns", "licence", "commercial")
        columns = ("part", "source", found["of"], found["counted"], *keys[4:])
        total = {"part": "all", **found["total"]}
        # A source that is one part of the same name is named once.
        lines = ({**line, "source": ""} if line.get("source") == line["part"] else line for line in found["sheet"])
        table(columns, (_cells(line, keys) for line in (*lines, total)))
    for sentence in (*filter(None, [found["balance"]]), *found["licences"]):
        say(sentence)
    columns = ("source", "read", *found["columns"])
    rows = (
        (*_cells(row, columns), *_cells(row["removed"], found["rules"]), _tally(row.get("skipped") or {}))
        for row in found["sources"]
    )
    table((*columns, *found["rules"], "skipped"), rows)
    for row in found["sources"]:
        _say_reading(row)
    expected = found["expected"] or {}
    if expected.get("rows") is not None:
        say(f"expected {expected['rows']:,} rows, found {expected['found']:,}")
    for row in expected.get("differences", ()):
        say(f"{row['source']}: expected {row['expected']:,}, found {row['found']:,}")
    _say_matrix(found["matrix"] or {"lines": []})
    _say_copies(found, "removed.parquet")
    for row in found["others"]:
        say(f"{row['rule']}: {row['detail']} ({row['row']} of {row['source']})\n  row   {_line(row['row_text'])}")


def _say_reading(row: dict[str, Any]) -> None:
    """How a source was read, and what of it is bad or left behind."""
    for line in row.get("said") or ():
        say(line)
    for one in row.get("bad") or ():
        say(f"{row['source']}: {one['rows']:,} rows cannot be read: {one['reason']}")
        say("\n".join(f"  {example}" for example in one["examples"]))
    if row.get("left"):
        say(f"{row['source']}: left behind, rows of each: {_tally(row['left'])}")


def _say_matrix(matrix: dict[str, Any]) -> None:
    if matrix["lines"]:
        say("share of each benchmark's items that a part copies, in %; ! where the part was dropped whole")
        table(("part", *matrix["tasks"]), ((line["part"], *map(_percent, line["cells"])) for line in matrix["lines"]))
    if matrix.get("untouched"):
        say(f"not copied at all: {', '.join(matrix['untouched'])}")
    if matrix.get("unsearched"):
        say(f"items with too few words to be looked for, of which nothing is said: {_tally(matrix['unsearched'])}")


def _percent(cell: dict[str, Any] | None) -> str:
    """One decimal; a mark where the whole set is dropped."""
    return f"{100 * cell['share']:.1f}{' !' if cell['verdict'] == 'set dropped' else ''}" if cell else ""


def _say_copies(found: dict[str, Any], rest: str) -> None:
    """Copies with both texts side by side, and where the `rest` is."""
    for row in found["copies"]:
        say(f"{row['task']} {row['item']}: {row['coverage']:.0%} in {row['row']} of {row['source']}")
        say(f"  benchmark  {_line(row['benchmark_text'])}\n  row   {_line(row['row_text'])}")
    if found["num_copies"] > len(found["copies"]):
        say(f"{found['num_copies'] - len(found['copies'])} more copies are in {rest}")


def _say_asked(found: dict[str, Any]) -> None:
    """The rows or pairs of a stage that asks models, which models won, and what the requests cost."""
    numbers = {key: found[key] for key in ("prompts", "repeats", "seeds", "rows", "pairs") if found[key] is not None}
    say(", ".join(f"{key} {number:,}" for key, number in numbers.items()))
    for key in ("rules", "no_pair", "dropped", "skipped", "ratings"):
        if found[key] and not (key == "dropped" and found["no_pair"]):
            say(f"{key.replace('_', ' ')}: {_tally(found[key])}")
    if found["models"]:
        rows = (
            (name, line["rated_pairs"], f"{line['chosen']:.1%}", f"{line['rejected']:.1%}")
            for name, line in found["models"].items()
        )
        table(("answers of", "rated pairs", "chosen", "rejected"), rows)
    for key, unit in (("mean_words", "words"), ("mean_length", "tokens")):
        if sides := found[key]:
            say(f"chosen answers have {sides['chosen']:.0f} {unit} in the mean, rejected ones {sides['rejected']:.0f}")
    for aspect, share in found["agreement"].items():
        say(f"{aspect.replace('_', ' ')} orders {share:.1%} of the compared answers as the mean of all aspects does")
    if found["accounts"]:
        columns = ("model", "asked", "failed", "read", "wrote", "cost")
        table(columns, (_cells(line, columns) for line in found["accounts"]))
        say(f"cost {found['requests'].get('cost', 0):.4g}, budget {_cell(found['budget'])}")


def _cells(row: dict[str, Any], keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(_cell(row.get(key)) for key in keys)


def _cell(value: Any) -> str:
    """A text, or a number with commas; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:159] + "…"
