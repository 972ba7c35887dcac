"""A trace over a million rows: how long the index takes, how large it is, how long an answer takes.

The rows are the real training rows of `--data` (a folder of files of any layout), each copied with one word in ten
replaced by another of theirs until there are `--rows` of them, so that copies share spans of many lengths. Answers
are rows again, with one word in fifteen replaced, and fresh ones. The index is built in a process of its own, whose
peak memory is counted.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tercet import machine
from tercet.data.preview import need_of
from tercet.data.reading import Reading
from tercet.data.sources import LOADERS
from tercet.recipe import SourceSpec
from tercet.rows import Message, Pair, Row, RowError
from tercet.rows_table import TableWriter
from tercet.store import Artifact, Identity, Store
from tercet.trace import Tracer

KINDS = (".json", ".jsonl", ".gz", ".csv", ".parquet")
CHILD = "import bench.tracing as b, sys; b.build_side(sys.argv[1])"


def real_rows(data: Path) -> list[Row]:
    """The rows of every file that can be read; of pairs the chosen side."""
    found: list[Row] = []
    for file in sorted(path for path in data.rglob("*") if path.suffix in KINDS):
        source = SourceSpec(path=str(file), max_bad=1.0, require_answer=False)
        try:
            entries = list(LOADERS[need_of(source, {})](source, {}, {}, Reading()))
        except RowError:
            continue
        for one in entries:
            found.append(Row(one.id, one.chosen if isinstance(one, Pair) else one.messages, file.stem))
    return found


def varied(text: str, pool: list[str], rng: random.Random, every: int) -> str:
    """A text with one word in `every` replaced by another."""
    words = text.split(" ")
    for at in range(len(words)):
        if rng.random() * every < 1:
            words[at] = rng.choice(pool)
    return " ".join(words)


def copies(rows: list[Row], total: int) -> Iterator[Row]:
    """The rows, then varied copies of them, `total` in all."""
    rng = random.Random(17)
    pool = [word for row in rows[::7] for turn in row.messages for word in turn.content.split()]
    for number in range(total):
        row = rows[number % len(rows)]
        turns = (
            row.messages
            if number < len(rows)
            else (*(Message(turn.role, varied(turn.content, pool, rng, 10)) for turn in row.messages),)
        )
        yield Row(f"{number}", turns, row.source)


def store_of(work: Path, data: Path, total: int) -> tuple[Store, list[Row]]:
    """A store with a data artifact of `total` rows and a stage that learned from it; made once."""
    store, rows = Store(work / "runs"), real_rows(data)
    identity = Identity("mix", 1, {"rows": total}, {})
    if store.find("data", identity.key):
        return store, rows
    draft = store.draft("data", identity.key)
    draft.open()
    with TableWriter(draft.payload / "rows.parquet", Row) as table:
        some: list[Row] = []
        for row in copies(rows, total):
            some.append(row)
            if len(some) == 10_000:
                table.write(some)
                some = []
        table.write(some)
    made = draft.commit(identity, {}, 0.0)
    learned = Identity("sft", 1, {"rows": "data"}, {"data": made.key})
    draft = store.draft("sft", learned.key)
    draft.open()
    draft.commit(learned, {}, 0.0)
    return store, rows


def build_side(root: str) -> None:
    """In a process of its own: open the tracer, which builds the index; print seconds and peak memory."""
    store, began = Store(root), time.monotonic()
    tracer = Tracer.open(store, opened_sft(store))
    seconds, memory = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_bytes": memory, **tracer.about[0]}))


def opened_sft(store: Store) -> Artifact:
    """The stage that learned."""
    return Artifact.read(store.folder("sft"))


def answers(rows: list[Row], number: int) -> list[tuple[str, str]]:
    """Prompts and answers: half of them rows with one word in fifteen replaced, half of them shuffled words."""
    rng = random.Random(29)
    long = [row for row in rows if row.answer and len(row.answer.split()) > 80]
    pool = [word for row in rows[::7] for turn in row.messages for word in turn.content.split()]
    picked = rng.sample(long, number)
    near = [(row.prompt[-1].content, varied(row.answer or "", pool, rng, 15)) for row in picked[::2]]
    fresh = [(row.prompt[-1].content, " ".join(rng.choices(pool, k=300))) for row in picked[1::2]]
    return near + fresh


def main() -> None:
    """Build, trace, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--answers", type=int, default=100)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/results/tracing.json"))
    args = parser.parse_args()
    store, rows = store_of(args.work, args.data, args.rows)
    child = [sys.executable, "-c", CHILD, str(store.root)]
    built = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    folder = next(path for path in (store.cache / "trace").iterdir() if path.is_dir())
    built["disk_bytes"] = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    began = time.monotonic()
    tracer = Tracer.open(store, opened_sft(store))
    opening, taken, spent, spans, words = time.monotonic() - began, list[float](), list[float](), 0, list[int]()
    for prompt, text in answers(rows, args.answers):
        began, cpu = time.monotonic(), time.process_time()
        found = tracer.trace(text, prompt)
        taken.append(time.monotonic() - began)
        spent.append(time.process_time() - cpu)
        spans += len(found.spans)
        words.append(found.words)
    found_figures = {
        "machine": f"{machine.processor()}, {machine.cores()} cores",
        "real_rows": len(rows),
        "index": built | {"disk_total": sum(built["disk_bytes"].values())},
        "open_seconds": round(opening, 3),
        "answers": {"number": len(taken), "mean_words": round(statistics.mean(words)), "spans": spans},
        "trace_seconds": {
            "first": round(taken[0], 4),
            "median": round(statistics.median(taken), 4),
            "p95": round(sorted(taken)[int(0.95 * len(taken))], 4),
            "most": round(max(taken), 4),
            "most_in_cpu_seconds": round(max(spent), 4),
        },
    }
    args.out.write_text(json.dumps(found_figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found_figures, indent=2))
    shutil.rmtree(store.cache / "trace")


if __name__ == "__main__":
    main()
