"""Speed of evaluating against lm-evaluation-harness 0.4.13 with its Hugging Face back-end: GSM8K and MMLU.

GSM8K with eight examples (200 items, 256 new tokens, the same stop strings) and MMLU with five (100 items of each of
five subjects, at equal distances in their list). Same rows, model folder, dtype and threads; one process a measurement,
in alternating order. The harness first tries some batch sizes on a part of the rows and then runs with its best.
Counted is the evaluation itself, with building prompts, grading and keeping results; imports and loading are not.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lm_eval_common as common
from lm_eval_common import Benchmark
from peer import HERE, Job, Side, model_folder, once, save

GSM8K, MMLU = 200, 500
SUBJECTS = 5
SWEEP = ("8", "16", "32", "64")
SWEEP_ITEMS = {"gsm8k": 64, "mmlu": 100}  # rows of a sweep, for MMLU of all subjects together: fills the largest batch
Build = Callable[[Path, int], Benchmark]


def main() -> None:
    """Measure both sides on both benchmarks, print the table, keep every figure; or do one job of our side."""
    options = parser().parse_args()
    if options.job:
        evaluate(options.job)
        return
    common.settle(options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, too_long)
    kept = []
    with tempfile.TemporaryDirectory() as name:
        for benchmark in options.benchmarks:
            build, count = builder(benchmark, options)
            tried = {size: measured(options, build, (benchmark, size), Path(name)) for size in options.sweep}
            best = min(tried, key=lambda size: tried[size] or math.inf)
            print(f"{benchmark}: the harness runs with batch size {best}", flush=True)
            sides = compared(benchmark, build(Path(name) / "rows", count), best, options)
            run(benchmark, sides, Path(name), options.rounds)
            kept += [record(benchmark, side, tried) for side in sides]
            print(table(benchmark, sides), flush=True)
    save("eval_speed", kept)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = common.arguments(__doc__ or "")
    found.add_argument("--benchmarks", nargs="+", choices=["gsm8k", "mmlu"], default=["gsm8k", "mmlu"])
    found.add_argument("--limit", type=int, help=f"items of each benchmark; {GSM8K} and {MMLU} when absent")
    found.add_argument("--rounds", type=int, default=3, help="measurements of each side")
    found.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    found.add_argument("--sweep", nargs="+", default=SWEEP, help="the harness's batch sizes: numbers or auto")
    found.add_argument("--sweep-seconds", type=int, default=900, help="a batch size that takes longer is given up")
    found.add_argument("--rows", type=int, default=64, help="most completions that Tercet decodes at once")
    found.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return found


def builder(benchmark: str, options: argparse.Namespace) -> tuple[Build, int]:
    """How the benchmark's rows are written for both sides, and how many."""
    if benchmark == "gsm8k":
        return lambda folder, count: common.gsm8k(options.data, folder, count), options.limit or GSM8K
    names = sorted({row["subject"] for row in common.read(options.data / "eval/mmlu/dev.jsonl.gz")})
    subjects = [row["subject"] for row in common.spread([{"subject": name} for name in names], SUBJECTS)]

    def build(folder: Path, count: int) -> Benchmark:
        return common.mmlu(options.data, folder, max(1, count // SUBJECTS), subjects)

    return build, options.limit or MMLU


# ---- the measurements ----


def compared(benchmark: str, rows: Benchmark, size: str, options: argparse.Namespace) -> list[Side]:
    """Both sides of one benchmark."""
    theirs = peer(rows, size, options)
    shared = ("threads", "max_new_tokens", "dtype")
    job: Job = {key: getattr(options, key) for key in shared} | {"model": str(model_folder(options))}
    job = job | {"task": rows.task.id, "mirror": rows.mirror, "decoded_at_once": options.rows}
    return [Side("Tercet", [sys.executable, str(HERE / "eval_speed.py"), "--job"], job), theirs]


def peer(rows: Benchmark, size: str, options: argparse.Namespace) -> Side:
    """The harness with one batch size."""
    batch: int | str = int(size) if size.isdigit() else size
    return common.peer_side(options, benchmarks=rows.theirs, batch_size=batch, dtype=options.dtype)


def measured(options: argparse.Namespace, build: Build, which: tuple[str, str], folder: Path) -> float | None:
    """Seconds of the harness with one batch size on a part of the rows; None when it fails or takes too long."""
    if len(options.sweep) == 1:
        return None  # nothing to choose from
    benchmark, size = which
    rows = build(folder / "sweep", min(SWEEP_ITEMS[benchmark], options.limit or MMLU))
    signal.alarm(options.sweep_seconds)
    try:
        seconds = float(once(peer(rows, size, options), folder)["seconds"])
    except (SystemExit, TimeoutError) as error:
        print(f"{benchmark}: batch size {size} fails: {str(error)[-300:]}", flush=True)
        return None
    finally:
        signal.alarm(0)
    print(f"{benchmark}: batch size {size}: {seconds:.1f} s for {len(rows.items())} items", flush=True)
    return seconds


def too_long(*_: Any) -> None:
    """A sweep took longer than it may."""
    raise TimeoutError("took too long")


def run(benchmark: str, sides: list[Side], folder: Path, rounds: int) -> None:
    """Every side once a round, in turn from either end."""
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            found = once(side, folder)
            samples = found.pop("samples", {})
            found.pop("graded", None)
            if samples:
                found |= {"items": sum(map(len, samples.values())), "score": score(samples)}
            side.rounds.append(found)
            print(f"round {number + 1}: {benchmark}: {side.name}: {line(found)}", flush=True)


def score(samples: dict[str, list[dict[str, Any]]]) -> float:
    """The harness's mean verdict: over its subjects for MMLU, the flexible filter for GSM8K."""
    means = []
    for own in samples.values():
        verdicts = [row["verdicts"].get("flexible-extract") or row["verdicts"]["none"] for row in own]
        means.append(statistics.fmean(float(v["exact_match"] if "exact_match" in v else v["acc"]) for v in verdicts))
    return statistics.fmean(means)


def line(found: dict[str, Any]) -> str:
    """One measurement."""
    cores = found["cpu_seconds"] / found["wall_seconds"]  # far below the threads: the machine had other work
    speed = f"{found['items'] / found['seconds']:.2f} items/s, {found['tokens'] / found['seconds']:.0f} new tokens/s"
    rest = f"{found['peak_mib']:.0f} MiB, score {found['score']:.4f}, {cores:.1f} cores"
    return f"{found['seconds']:.1f} s, {speed}, {rest}"


def medians(side: Side) -> dict[str, float]:
    """The middle of the rounds."""
    names = ("seconds", "tokens", "items", "score", "peak_mib")
    return {name: statistics.median(figures[name] for figures in side.rounds) for name in names}


def table(benchmark: str, sides: list[Side]) -> str:
    """Both sides, and what ours makes of the other: times its speed, share of its memory."""
    lines = [f"\n| {benchmark} | s | items/s | new tokens | peak MiB | score |", "|---|--:|--:|--:|--:|--:|"]
    ours, theirs = (medians(side) for side in sides)
    for side, found in zip(sides, (ours, theirs), strict=True):
        rate = found["items"] / found["seconds"]
        cells = (f"{found['seconds']:.1f}", f"{rate:.2f}", f"{found['tokens']:.0f}", f"{found['peak_mib']:.0f}")
        lines.append(f"| {side.name} | {' | '.join(cells)} | {found['score']:.4f} |")
    faster, smaller = theirs["seconds"] / ours["seconds"], ours["peak_mib"] / theirs["peak_mib"]
    return "\n".join([*lines, f"{benchmark}: {faster:.2f} times as fast, with {smaller:.2f} of the memory\n"])


def record(benchmark: str, side: Side, sweep: dict[str, float | None]) -> dict[str, Any]:
    """What is kept of one side."""
    names = ("threads", "max_new_tokens", "dtype", "batch_size", "decoded_at_once")
    job = {name: side.job[name] for name in names if name in side.job}
    tried = {"sweep_seconds": sweep} if side.name != "Tercet" else {}
    return {
        "benchmark": benchmark,
        "name": side.name,
        "job": job,
        **tried,
        "median": medians(side),
        "rounds": side.rounds,
    }


# ---- our side ----


def evaluate(file: Path) -> None:
    """The benchmark and eval stages' own functions, with a model that is loaded already."""
    import torch

    from tercet.evals import benchmark, run
    from tercet.models.generate import LocalGenerator
    from tercet.recipe import BaseSpec, BenchmarkSpec, EvalSpec, Recipe
    from tercet.store import Artifact, Context
    from tercet.track import Tracker

    job = json.loads(file.read_text())
    torch.set_num_threads(job["threads"])
    model = LocalGenerator.open(Path(job["model"]), job["dtype"], rows=job["decoded_at_once"])
    with tempfile.TemporaryDirectory() as name:
        folders = {part: SimpleNamespace(payload=Path(name) / part) for part in ("base", "benchmark", "scores", "work")}
        for folder in folders.values():
            folder.payload.mkdir()
        recipe = Recipe(name="bench", base=BaseSpec(model=job["model"]), stage={})
        track = cast(Tracker, SimpleNamespace(progress=lambda *_, **__: None))
        ctx = Context("bench", 0, recipe, folders["work"].payload, track, job["mirror"], lambda *_, **__: model)
        inputs = cast(dict[str, Artifact], folders)
        began = time.perf_counter()
        benchmark.run(BenchmarkSpec(tasks=(job["task"],)), inputs, folders["benchmark"].payload, ctx)
        spec = EvalSpec(model="base", benchmark="benchmark", dtype=job["dtype"], max_new_tokens=job["max_new_tokens"])
        run.run(spec, inputs, folders["scores"].payload, ctx)
        seconds = time.perf_counter() - began
        lines = (folders["scores"].payload / "results.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        (scores,) = json.loads((folders["scores"].payload / "scores.json").read_text(encoding="utf-8")).values()
    outputs = [result["output"] for result in map(json.loads, lines) if not result.get("options")]
    tokens = sum(len(model.chat.tokenizer(text, add_special_tokens=False).input_ids) for text in outputs)
    figures = {"seconds": seconds, "tokens": tokens, "items": len(lines), "score": scores["score"]}
    Path(job["out"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
