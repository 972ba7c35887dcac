"""A large made-up run whose names, numbers and curves are as awkward as they may be: for tests of how pages look."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from fake_rollouts import write_rewarded
from fake_run import CHANCE, FakeRun, key_of

from tercet.recipe import MonitorSpec, Recipe

LONG = "of-the-instructions-that-nobody-has-ever-followed-to-the-letter"
SHAPES: dict[str, tuple[int, float, float]] = {  # curve -> points, offset, scale
    "loss": (1000, 0.7, 1.0),
    "reward": (1, -3.25, 0.0),
    "kl": (1000, 0.0, 1e-7),
    "length": (1000, 123_456.0, 0.4),
    "entropy": (3, 0.5, 1e-9),
    "grad_norm": (1000, 0.0, 1e12),
    "lr": (2, 5e-7, 0.0),
    "accuracy": (40, 0.999_999, 1e-7),
    "margin": (40, -1e6, 1e5),
    "rewarded": (40, 0.0, 0.0),
    "logp_gap": (40, 0.009, 1e-4),
    "a_metric_with_a_name_that_is_far_too_long_for_any_heading": (40, -0.5, 1.0),
}


def write_large(store: Path) -> FakeRun:
    """Twelve stages that train, one after the other, and five evaluations."""
    fake = write_rewarded(store)
    recipe = fake.recipe.model_dump(mode="json", exclude_unset=True)
    model = "ppo"
    kinds = ("sft", "dpo", "grpo")
    names = [f"{kinds[i % 3]}-{i}-{LONG if i % 2 else 'short'}" for i in range(9)]
    data = {"sft": {"rows": "sft-data"}, "dpo": {"pairs": "choices"}, "grpo": {"prompts": "sft-data", "rounds": 40}}
    for i, name in enumerate(names):
        kind = kinds[i % 3]
        recipe["stage"][name] = {"kind": kind, "model": model, **data[kind]}
        model = name
    last = f"eval-{LONG}"
    recipe["stage"][last] = {"kind": "eval", "model": model, "benchmark": "benchmark"}
    recipe["stage"]["page"] |= {
        "evals": [*CHANCE, last],
        "title": "Post-training_of_a_model_whose_name_has_no_place_to_break_whatsoever_and_goes_on_and_on_and_on",
    }
    fake.recipe = fake.context.recipe = Recipe.model_validate(recipe)
    for name in (*names, last):
        _artifact(fake, name)
    for name in ("scores.json", "results.jsonl"):
        text = (fake.folder("eval-rlvr") / "payload" / name).read_text()
        (fake.folder(last) / "payload" / name).write_text(text)
    _awkward_answers(fake.folder(last) / "payload" / "results.jsonl")
    for i, name in enumerate(names):
        (fake.folder(name) / "metrics.jsonl").write_text("" if i == 3 else _metrics(random.Random(i)))
    return fake


def _artifact(fake: FakeRun, name: str) -> None:
    record = json.loads((fake.folder("rlvr") / "artifact.json").read_text())
    inputs = {need: key_of(need) for need in fake.recipe.needs(name)}
    monitor = {"monitor": MonitorSpec().model_dump(mode="json")} if name.startswith("grpo") else {}
    record |= {"name": name, "key": key_of(name), "kind": fake.recipe.kind(name), "inputs": inputs, "spec": monitor}
    record["seconds"] = 98_765.0 if LONG in name else 0.04
    (fake.folder(name) / "payload" / "tercet").mkdir(parents=True)
    (fake.folder(name) / "artifact.json").write_text(json.dumps(record))


def _metrics(rng: random.Random) -> str:
    lines: dict[int, dict[str, Any]] = {}
    for name, (num, offset, scale) in SHAPES.items():
        for i in range(1, num + 1):
            value: float | None = offset + scale * (math.exp(-5 * i / num) + 0.1 * rng.gauss(0, 1))
            value = None if name == "loss" and i % 50 == 0 else value
            lines.setdefault(i, {"step": i})[name] = value
        lines[1]["unparsed"] = None  # a series without one number
    return "".join(json.dumps(line) + "\n" for line in lines.values())


def _awkward_answers(file: Path) -> None:
    """Answers without a place to break, of two hundred lines, and empty ones."""
    texts = ("x" * 3000, "a line\n" * 200, "", "|" * 400, "wide " + "W" * 600, "中文字符" * 300)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for i, line in enumerate(lines):
        line["output"] = line["answer"] = texts[i % len(texts)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
