"""A reward model and PPO, added to the fake run: with alerts, and with rollouts as RL stages write them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from fake_run import NAMES, SCRIPT, TOPICS, FakeRun, key_of, write_run

from tercet.folders import payload_digest
from tercet.recipe import MonitorSpec, Recipe, ReportSpec
from tercet.rows import write_table

ALERTS = [
    {
        "alert": "hollow",
        "round": 21,
        "last": 27,
        "value": 0.31,
        "threshold": 0.2,
        "message": "`hollow` in round 21: the share of rewarded completions that carry no answer was above 0.2 for 5 "
        "rounds in a row (0.22, 0.25, 0.26, 0.3, 0.31). Try: raise kl_beta, or add a rubric as a gate",
    },
    {
        "alert": "entropy",
        "round": 34,
        "value": 0.014,
        "threshold": 0.02,
        "message": "`entropy` in round 34: the mean entropy (nats per token) was below 0.02 (0.014). Try: clip_high",
    },
]
STAGES: dict[str, Any] = {
    "scorer": {"kind": "reward_model", "model": "sft", "pairs": "choices"},
    "ppo": {"kind": "ppo", "model": "dpo", "prompts": "sft-data", "value": "scorer", "rounds": 40},
    "eval-ppo": {"kind": "eval", "model": "ppo", "benchmark": "benchmark"},
}
HOLLOW = '[{"func_name": "verify_keywords", "keyword_list": ["harbour", "lantern"]}]'


def write_rewarded(store: Path) -> FakeRun:
    """The fake run that ends with a PPO model with two alerts; the GRPO stage has monitors but no alert."""
    fake = write_run(store)
    recipe = fake.recipe.model_dump(mode="json", exclude_unset=True)
    recipe["stage"] |= STAGES
    recipe["stage"]["page"]["evals"] = ["eval-base", "eval-sft", "eval-rlvr", "eval-ppo"]
    fake.recipe = fake.context.recipe = Recipe.model_validate(recipe)
    for name in STAGES:
        inputs = {need: key_of(need) for need in fake.recipe.needs(name)}
        record = json.loads((fake.folder("rlvr") / "artifact.json").read_text())
        record |= {"name": name, "key": key_of(name), "kind": fake.recipe.kind(name), "inputs": inputs}
        (fake.folder(name) / "payload" / "tercet").mkdir(parents=True)
        _record(fake, name, record)
    for name in ("scores.json", "results.jsonl"):
        text = (fake.folder("eval-rlvr") / "payload" / name).read_text()
        (fake.folder("eval-ppo") / "payload" / name).write_text(text)
    for name in ("rlvr", "ppo"):
        record = json.loads((fake.folder(name) / "artifact.json").read_text())
        record["spec"] = {"monitor": MonitorSpec().model_dump(mode="json")}
        _record(fake, name, record)
    (_tercet(fake, "rlvr") / "alerts.json").write_text("[]")
    (_tercet(fake, "ppo") / "alerts.json").write_text(json.dumps(ALERTS))
    (_tercet(fake, "scorer") / "accuracy.json").write_text(json.dumps(_accuracy()))
    rng = random.Random(11)
    _metrics(fake, rng)
    write_table(_tercet(fake, "ppo") / "rollouts.parquet", rollouts(rng, advantage=False))
    assert isinstance(fake.spec, ReportSpec)
    for file in store.glob("*/artifact.json"):
        record = json.loads(file.read_text()) | {"digest": payload_digest(file.parent / "payload")}
        file.write_text(json.dumps(record))
    return fake


def rollouts(rng: random.Random, *, num_rounds: int = 40, advantage: bool = True) -> list[dict[str, Any]]:
    """Rows as RL stages write them: six groups a round, four completions each; PPO has no advantages."""
    rows = []
    for step in range(num_rounds):
        for group in range(6):
            words = group % 2
            prompt = f"How many tiles are left of {group + 20}?" if words else f"Tell me about {TOPICS[group]}."
            verifier, reference = ("gsm8k@1", "12") if words else ("tulu_if@1", HOLLOW)
            row = {"step": step, "verifier": verifier, "reference": reference}
            row |= {"prompt_id": f"{'words' if words else 'orders'}-{group + 6 * step % 30}", "prompt": prompt}
            for sample in range(4):
                rows.append(row | _completion(rng, step, sample, bool(words)))
                if advantage:
                    rows[-1]["advantage"] = rng.gauss(0, 1)
    return rows


def _completion(rng: random.Random, step: int, sample: int, words: bool) -> dict[str, Any]:
    score = float(rng.random() < 0.3 + step / 80)
    number = "12" if score else str(rng.randint(13, 90))
    long = f"The harbour is lit by a lantern, says {rng.choice(NAMES)}. " * rng.randint(1, 4)
    text = long if words or rng.random() > step / 60 else "Harbour lantern."
    text = f"There are {number} left.\n#### {number}" if words else text
    text = f"{SCRIPT}</script><!-- {text}" if step == 2 and sample == 1 else text
    stop = "length" if rng.random() < 0.1 else "eos"
    parts = {"gsm8k@1" if words else "tulu_if@1": score, "length@1": 0.5}
    made = {"sample": sample, "text": text, "answer": number if words else "", "score": score + 0.25, "stop": stop}
    made |= {"outcome": "graded", "reward": 10 * score + 2.5, "parts": json.dumps(parts)}
    return made | {"length": 12 + len(text) // 4, "version": max(0, step - sample % 2)}


def _record(fake: FakeRun, name: str, record: dict[str, Any]) -> None:
    (fake.folder(name) / "artifact.json").write_text(json.dumps(record))


def _tercet(fake: FakeRun, name: str) -> Path:
    return fake.folder(name) / "payload" / "tercet"


def _accuracy() -> dict[str, Any]:
    def part(accuracy: float, n: int) -> dict[str, Any]:
        return {"accuracy": accuracy, "stderr": math.sqrt(accuracy * (1 - accuracy) / n), "n": n}

    subsets = {"alpacaeval-easy": part(0.94, 100), "llmbar-natural": part(0.71, 100), "donotanswer": part(0.62, 136)}
    sections = {"Chat": part(0.94, 100), "Chat Hard": part(0.71, 100), "Safety": part(0.62, 136)}
    lone = {"accuracy": 1.0, "stderr": None, "n": 1}
    held = part(0.78, 412) | {"subsets": {"words@1": part(0.81, 411), "orders": lone}}
    return {"held_out": held, "tests": {"bench": part(0.75, 336) | {"subsets": subsets, "rewardbench": sections}}}


def _metrics(fake: FakeRun, rng: random.Random) -> None:
    lines = []
    for i in range(40):
        grown = 1 - math.exp(-i / 12)
        line = {"step": i + 1, "loss": rng.gauss(0, 0.02), "critic_loss": 2 * math.exp(-i / 8) + rng.random() * 0.1}
        line |= {"reward": 3 + 4 * grown + rng.gauss(0, 0.4), "reward_gsm8k@1": 2 + 4 * grown, "kl": 0.002 * i}
        line |= {"rewarded": 0.3 + 0.4 * grown, "length": 60 + 3.6 * i, "truncated": 0.06, "zero_variance": 0.0}
        line |= {"entropy": 0.5 * math.exp(-i / 9) + 0.006, "logp_gap": 0.011, "repetition": 0.004 * i}
        hollow = 0.34 * math.exp(-(((i - 24) / 6) ** 2))
        lines.append(line | {"hollow": hollow, "score_length@1": 0.5, "lr": 3e-7, "grad_norm": 1 + rng.random()})
    (fake.folder("ppo") / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [{"step": i, "loss": 0.7 - 0.01 * i, "accuracy": 0.5 + 0.015 * i, "margin": 0.1 * i} for i in range(1, 21)]
    (fake.folder("scorer") / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
