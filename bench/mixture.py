"""A whole mixture of a million rows through the `mix` stage: seconds, and peak memory beside that of a tenth of it.

python bench/mixture.py --data ../shared/data

The rows are those of bench/decontam.py: conversations made of sentences of real training files, some of them copies of
benchmarks. The stage reads them, applies the paper's filters, removes exact duplicates and every row that copies one
of the benchmarks, draws a sample first, shuffles, counts words and proves by a second pass that what it wrote is
clean. Memory is that of the stage's process and its workers together, looked at several times a second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import decontam
from tercet.data import mix
from tercet.recipe import BaseSpec, MixSpec, Placement, Recipe, SourceSpec
from tercet.rows import write_table
from tercet.store import Artifact, Context
from tercet.track import Tracker


def main() -> None:
    """Make the rows, mix a tenth and all of them, write the results."""
    parser = argparse.ArgumentParser(description="mix a million rows")
    parser.add_argument("--data", type=Path, default=decontam.HERE.parents[1] / "shared" / "data")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=decontam.HERE / "results" / "mixture.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(mixed(json.loads(args.side))))
        return
    with tempfile.TemporaryDirectory(prefix="tercet-mixture-") as name:
        folder = Path(name)
        benchmark = decontam.benchmarks(args.data / "eval")
        items = [{"task": task, "item": item, "fields": fields} for task, item, fields in benchmark]
        write_table(folder / "benchmark" / "payload" / "benchmark.parquet", items)
        rows = folder / "rows.jsonl"
        made = decontam.make(args.data / "train", benchmark, rows, args.rows, args.seed)
        sides = {}
        for count in (args.rows // 10, args.rows):
            part = decontam.first_rows(rows, folder / f"first-{count}.jsonl", count)
            job = {"rows": str(part), "folder": str(folder), "workers": args.workers, "count": count}
            sides[count] = decontam.run([sys.executable, __file__, "--side"], job)
            print(count, sides[count], flush=True)
    few, many = sides.values()
    found = {"mixture": {"rows": args.rows, "seed": args.seed, **made}, "tenth": few, "all": many}
    found["peak of all over peak of a tenth"] = many["peak_bytes"] / few["peak_bytes"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def mixed(job: decontam.Job) -> decontam.Job:
    """The stage as a recipe runs it: a sample of one row in a hundred, then all that is not in the sample."""
    folder, out = Path(job["folder"]), Path(job["folder"]) / f"out-{job['count']}"
    (out / "work").mkdir(parents=True)
    whole = SourceSpec(path=job["rows"])
    sampled = SourceSpec(path=job["rows"], rows=job["count"] // 100, filters=("keywords",))
    recipe = Recipe(name="bench", base=BaseSpec(model="tiny:"), stage={}, placement=Placement(workers=job["workers"]))
    ctx = Context("sft-data", 17, recipe, out / "work", Tracker(None), {}, open_model=lambda *_: None)
    inputs = {"benchmark": Artifact("benchmark", "benchmark", "0" * 64, folder / "benchmark", {}, {})}
    start = time.perf_counter()
    spec = MixSpec(sources=(sampled, whole), against=("benchmark",))
    metrics = mix.run(spec, inputs, out, ctx)
    seconds = time.perf_counter() - start
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "rows_per_second": job["count"] / seconds, "removed": summary["removed"], **metrics}


if __name__ == "__main__":
    main()
