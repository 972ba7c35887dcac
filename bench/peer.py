"""Side by side with TRL: its own environment, one process a measurement, alternating order, one table."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "src"))  # for the peer's interpreter, where Tercet is not installed
from tercet import machine  # noqa: E402

PEER = HERE / ".peer-venv"
RESULTS = HERE / "results"
REQUIREMENTS = ("trl==1.16.*", "transformers==5.23.0", "datasets", "accelerate")

Job = dict[str, Any]


@dataclass
class Side:
    """One way to do the work: a name, the command that does it, and what it measured in every round."""

    name: str
    command: list[str]
    job: Job
    rounds: list[dict[str, Any]] = field(default_factory=list)


def peer_python(folder: Path = PEER, requirements: Sequence[str] = REQUIREMENTS, unwanted: Sequence[str] = ()) -> str:
    """The interpreter of a peer's own environment, made on first use (about a minute)."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        print(f"making {folder} with {', '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip: list[str] = [str(python), "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "torch==2.13.0"], check=True)
        subprocess.run([*pip, "install", *requirements], check=True)
        if unwanted:
            subprocess.run([*pip, "uninstall", "-y", *unwanted], check=True)
        ready.touch()
    return str(python)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every comparison has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="file of real rows")
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder; SmolLM2-135M-Instruct from the cache when absent"
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="optimiser steps of one measurement; the first is not counted"
    )
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each side, in alternating order")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="CPU threads of each side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--micro-tokens", type=int, default=4096, help="tokens in one of Tercet's forward passes")
    parser.add_argument("--peer-micro", type=int, default=8, help="rows in one of TRL's forward passes")
    parser.add_argument(
        "--peer-weights",
        choices=["bfloat16", "float32"],
        default="float32",
        help="TRL's stored weights; float32 is its default and ours",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="compute precision of both sides; auto: what this machine has matrix units for",
    )
    parser.add_argument(
        "--peer-checkpointing", action="store_true", help="TRL with activation checkpointing: slower, smaller"
    )
    parser.add_argument("--only", choices=["tercet", "trl"], help="measure one side only")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser


def base_job(options: argparse.Namespace) -> Job:
    """The part of a job that both sides and all methods share."""
    names = (
        "steps",
        "threads",
        "seed",
        "learning_rate",
        "micro_tokens",
        "peer_micro",
        "peer_weights",
        "peer_checkpointing",
    )
    from tercet.precision import resolve

    about = {"model": str(model_folder(options)), "dtype": resolve(options.dtype)}
    return {name: getattr(options, name) for name in names} | about


def yardstick(job: Job) -> dict[str, Any]:
    """What this machine's plain products reach on the model's shapes, printed at the head of a bench."""
    asked = ["--dtype", job["dtype"], "--seconds", "5", "--json"]
    command = [sys.executable, "-m", "tercet", "speed", job["model"], *asked]
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    rate = found["products"][0]["flops"] / 1e9
    print(
        f"{found['processor']}, {found['threads']} threads, {job['dtype']} ({found['auto']}): plain products "
        f"{rate:,.0f} GFLOP/s, memory {found['bandwidth'] / 1e9:.0f} GB/s",
        flush=True,
    )
    return found


def model_folder(options: argparse.Namespace) -> Path:
    """The model both sides load."""
    if options.model:
        return options.model.resolve()
    from tercet.models import base_model

    return base_model.smollm()


def read(path: Path) -> list[dict[str, Any]]:
    """Objects of a jsonl or json file, plain or gzipped."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
        text = stream.read()
    if path.name.removesuffix(".gz").endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line]


def ours(script: str) -> list[str]:
    """The command of Tercet's side: the comparison's own script, called with a job."""
    return [sys.executable, str(HERE / script), "--job"]


def theirs(script: str) -> list[str]:
    """The command of TRL's side."""
    return [peer_python(), str(HERE / script)]


def measure(sides: list[Side], rows: list[dict[str, Any]], rounds: int) -> None:
    """Run every side once a round, in turn from either end, each in its own process on the same rows."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for number in range(rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                side.rounds.append(once(side, Path(folder)))
                print(f"round {number + 1}: {side.name}: {summary(side.rounds[-1])}", flush=True)


def once(side: Side, folder: Path) -> dict[str, Any]:
    """One process: its figures, and its own peak memory as the system counted it."""
    job = side.job | {"rows": str(folder / "rows.jsonl"), "out": str(folder / "figures.json")}
    (folder / "job.json").write_text(json.dumps(job))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    log = folder / "log.txt"
    began = time.perf_counter()
    with log.open("w") as stream:
        child = subprocess.Popen(
            [*side.command, str(folder / "job.json")], stdout=stream, stderr=stream, env=environment
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()  # whoever stops the comparison stops the measurement too
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{side.name} failed with exit code {child.returncode}:\n{log.read_text()[-4000:]}")
    whole = {"wall_seconds": time.perf_counter() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    whole["peak_mib"] = machine.peak_rss_bytes(usage.ru_maxrss) / 2**20
    return json.loads((folder / "figures.json").read_text()) | whole


def rates(figures: dict[str, Any]) -> dict[str, float]:
    """Speed without the first step, which warms up caches and allocators."""
    ahead = figures.get("reference_seconds", 0.0) / len(figures["seconds"])  # a pass before the first step
    seconds = [ahead + step for step in figures["seconds"][1:]]
    found = {"seconds_per_step": sum(seconds) / len(seconds), "peak_mib": figures["peak_mib"]}
    for name in ("trained", "tokens"):
        if name in figures:
            found[f"{name}_per_second"] = sum(figures[name][1:]) / sum(seconds)
    return found


def summary(figures: dict[str, Any]) -> str:
    """One line."""
    if "trained" not in figures and "efficiency" in figures:  # a measurement without a peer
        return f"{figures['tokens_per_second']:.1f} tokens/s, {figures['efficiency']:.0%} of plain products"
    found = rates(figures)
    speeds = [
        f"{found[name]:.1f} {name.replace('_per_second', ' tokens/s').replace('tokens tokens', 'read tokens')}"
        for name in found
        if name.endswith("_per_second")
    ]
    cores = figures["cpu_seconds"] / figures["wall_seconds"]  # far below the threads: the machine had other work
    rest = (f"{found['seconds_per_step']:.2f} s a step", f"{found['peak_mib']:.0f} MiB", f"{cores:.1f} cores")
    return ", ".join([*speeds, *rest])


def medians(side: Side) -> dict[str, float]:
    """The middle of the rounds for every figure."""
    found = [rates(figures) for figures in side.rounds]
    return {name: statistics.median(values[name] for values in found) for name in found[0]}


def compared(pair: list[Side]) -> dict[str, float]:
    """What the first side makes of the second; `loss` is the relative distance of their losses."""
    (mine, other), (a, b) = map(medians, pair), (one.rounds[0]["losses"] for one in pair)
    return {
        "speed": mine["trained_per_second"] / other["trained_per_second"],
        "memory": mine["peak_mib"] / other["peak_mib"],
        "loss": max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True)),
    }


def table(sides: list[Side], rate: str) -> str:
    """Every side, with what the first one (ours) makes of it: times its speed, times its memory."""
    unit = rate.replace("_per_second", " tokens/s")
    lines = [f"| side | {unit} | s/step | peak MiB | speed | memory |", "|---|--:|--:|--:|--:|--:|"]
    first = medians(sides[0])
    for side in sides:
        found = medians(side)
        speed, memory = first[rate] / found[rate], first["peak_mib"] / found["peak_mib"]
        cells = (f"{found[rate]:.1f}", f"{found['seconds_per_step']:.2f}", f"{found['peak_mib']:.0f}")
        lines.append(f"| {side.name} | {' | '.join(cells)} | {speed:.2f}x | {memory:.2f}x |")
    return "\n".join(lines)


def compare(
    name: str, sides: list[Side], rows: list[dict[str, Any]], *, rate: str, options: argparse.Namespace
) -> None:
    """Measure every side, print the table, keep every figure in results/."""
    measured = yardstick(sides[0].job)
    kept = [side for side in sides if options.only in (None, "trl" if side.name.startswith("TRL") else "tercet")]
    measure(kept, rows, options.rounds)
    print(f"\n{table(kept, rate)}")
    if options.only is None:
        save(
            name,
            [
                {"name": side.name, "job": public(side.job), "median": medians(side), "rounds": side.rounds}
                for side in kept
            ],
            measured,
        )


def save(name: str, sides: list[dict[str, Any]], yardstick: dict[str, Any] | None = None) -> None:
    """Write results/NAME.json with the machine it was measured on, and what its plain products reach."""
    RESULTS.mkdir(exist_ok=True)
    about: dict[str, Any] = {
        "processor": machine.processor(),
        "cpus": machine.cores(),
        "python": platform.python_version(),
    }
    if yardstick is not None:
        about["yardstick"] = yardstick
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": about, "sides": sides}, indent=1) + "\n")
    print(f"\nkept in {RESULTS / name}.json")


def public(job: Job) -> Job:
    """The job without paths."""
    return {key: value for key, value in job.items() if key != "model"}


def compare_losses(name: str, sides: list[Side], rows: list[dict[str, Any]], tolerance: float = 1e-3) -> None:
    """Step by step the two losses and their relative distance; exit code 1 when they do not agree."""
    measure(sides, rows, 1)
    mine, other = (side.rounds[0]["losses"] for side in sides)
    worst = 0.0
    for step, (a, b) in enumerate(zip(mine, other, strict=True), 1):
        worst = max(worst, distance := abs(a - b) / abs(b))
        print(f"step {step:2d}   {a:.6f}   {b:.6f}   {distance:.1e}")
    save(name, [{"name": side.name, "job": public(side.job), "losses": side.rounds[0]["losses"]} for side in sides])
    print(f"largest relative distance {worst:.1e}")
    if not worst <= tolerance:
        raise SystemExit(f"the loss curves do not agree to {tolerance:g}")
