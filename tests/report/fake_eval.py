"""An evaluation on fourteen tasks as its payload would look: subsets, shots, samples, errors, an LLM judge."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from tercet.stats import Estimate, macro, mean, minimum_detectable, ratio

OUTCOMES = ("graded", "unparsed", "truncated", "timeout", "error")
SUBJECTS = ("abstract_algebra", "anatomy", "business_ethics", "college_physics", "virology", "world_religions")
PUZZLES = ("boolean_expressions", "date_understanding", "navigate", "web_of_lies")
OPENING = "Answer the following question and close with the answer on a line of its own."
DEV: dict[str, dict[str, Any]] = {  # task -> how it differs from a plain generated one
    "mmlu:cot@1": {"skill": "knowledge", "items": 240, "subsets": SUBJECTS, "aggregate": "macro", "hard": 0.5},
    "mmlu:mc@1": {"skill": "knowledge", "items": 240, "subsets": SUBJECTS, "metric": "choice", "aggregate": "macro"},
    "popqa@1": {"skill": "knowledge", "items": 300, "shots": 15, "hard": 0.75, "verifier": "contains@1"},
    "truthfulqa@1": {"skill": "truthfulness", "items": 160, "metric": "mc2"},
    "bbh@1": {"skill": "reasoning", "items": 200, "subsets": PUZZLES, "shots": 3, "hard": 0.6},
    "drop@1": {"skill": "reading", "items": 180, "clusters": 30, "hard": 0.6},
    "gsm8k@2": {"skill": "maths", "items": 260, "shots": 8, "hard": 0.45},
    "math@1": {"skill": "maths", "items": 150, "shots": 4, "hard": 0.8},
    "humaneval@1": {"skill": "code", "items": 80, "samples": 6, "hard": 0.5},
    "humanevalplus@1": {"skill": "code", "items": 80, "samples": 6, "hard": 0.55},
    "ifeval@1": {"skill": "constraints", "items": 200, "hard": 0.5, "verifier": "ifeval@1"},
    "alpacaeval@1": {"skill": "chat", "items": 120, "judge": "alpaca_pairwise@1", "hard": 0.9},
    "xstest@1": {"skill": "safety", "items": 100, "judge": "wildguard@1", "hard": 0.2},
    "gsm8k:bpb@2": {"skill": "maths", "items": 260, "metric": "bpb"},
}
ROWS = {
    "MMLU": ("mmlu:cot@1",),
    "BBH": ("bbh@1",),
    "DROP": ("drop@1",),
    "Code": ("humaneval@1", "humanevalplus@1"),
    "IFEval": ("ifeval@1",),
}
MEASURES = {"strict": ("strict",), "instruction_loose": ("followed_loose", "constraints")}


def write_evaluation(folder: Path, gain: float, *, seed: int = 5, scale: float = 1.0) -> None:
    """results.jsonl, scores.json and averages.json of a model that is `gain` better; the questions do not depend on it.

    `scale` multiplies the number of items. Some answers are cut, some could not be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = {}
    with (folder / "results.jsonl").open("w", encoding="utf-8") as stream:
        for number, (task, kind) in enumerate(DEV.items()):
            asked, luck = random.Random(seed + number), random.Random(f"{seed}/{gain}/{number}")
            num = round(kind["items"] * scale)
            results = [result(task, i, asked, luck, gain) for i in range(num)]
            stream.writelines(json.dumps(one) + "\n" for one in results)
            scores[task] = score(card(task) | {"num_items": num}, results)
    rows = {label: {**average([scores[one] for one in names]), "tasks": list(names)} for label, names in ROWS.items()}
    few = [label for label in rows if label != "DROP"]
    averages = {
        "5 rows": average(list(rows.values())) | {"rows": list(rows)},
        "4 rows": average([rows[label] for label in few]) | {"rows": few},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "averages.json").write_text(json.dumps({"dev": {"rows": rows, "averages": averages}}))


def card(task: str) -> dict[str, Any]:
    """A task card with everything that a `benchmark` and an `eval` stage write into it."""
    kind = DEV[task]
    sampling = {"max_new_tokens": 512, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "n": kind.get("samples", 1)}
    source = {"path": f"public/{task.split('@')[0].replace(':', '-')}", "split": "test", "revision": "c0ffee12" * 5}
    sources = [source | {"subset": name} for name in kind.get("subsets", ("",))]
    return {
        "name": task,
        "skill": kind["skill"],
        "metric": kind.get("metric", "accuracy"),
        "verifier": "" if "judge" in kind or "metric" in kind else kind.get("verifier", "gsm8k@1"),
        "judge": kind.get("judge", ""),
        "choose_by": "raw",
        "sampling": sampling | {"seed": 0, "stop": ["\n\nQuestion:"]},
        "layout": "turns",
        "shots": kind.get("shots", 0),
        "prefix": "Answer:" if task == "popqa@1" else "",
        "pass_k": 1 if "samples" in kind else 0,
        "aggregate": kind.get("aggregate", "micro"),
        "measures": {name: list(keys) for name, keys in MEASURES.items()} if task == "ifeval@1" else {},
        "data": sources,
        "examples": [],
        "split": "test",
        "licence": "MIT",
        "variant": "as the paper's table has it",
        "description": f"The public items of {task}.",
        "num_items": kind["items"],
        "num_subsets": len(kind.get("subsets", ("",))),
        "locked": False,
        "dtype": "bfloat16",
        "engine": "local",
        "repeats": 1,
        **({"sandbox": "auto", "isolation": "namespaces, no network"} if "samples" in kind else {}),
    }


def result(task: str, i: int, asked: random.Random, luck: random.Random, gain: float) -> dict[str, Any]:
    """One line of results.jsonl."""
    kind, hard = DEV[task], asked.random()
    subset = kind["subsets"][i % len(kind["subsets"])] if "subsets" in kind else ""
    a, b = asked.randint(12, 98), asked.randint(3, 40)
    shots: list[dict[str, str]] = []
    for k in range(kind.get("shots", 0)):
        shots += [{"role": "user", "content": f"Question: What is {k + 20} plus {k}?"}]
        shots += [{"role": "assistant", "content": f"The sum is {2 * k + 20}."}]
    question = f"{OPENING}\n\nQuestion: A shed holds {a} crates of tools and {b} leave on Monday. How many stay?"
    head = {
        "task": task,
        "item": f"test-{i}",
        "skill": kind["skill"],
        "template": f"passage-{i % kind['clusters']}" if "clusters" in kind else "",
        "subset": subset,
        "metric": kind.get("metric", "accuracy"),
        "aggregate": kind.get("aggregate", "micro"),
        "digest": f"{task}/{i}",
        "messages": [*shots, {"role": "user", "content": question}],
        "prompt_ids": list(range(40)),
        "reference": str(a - b),
    }
    wish = 1 - kind.get("hard", 0.5) + gain
    if head["metric"] != "accuracy":
        return head | _scored(head["metric"], hard, luck, wish, a - b)
    samples = [_written(a - b, hard, luck, wish) for _ in range(kind.get("samples", 1))]
    if task == "alpacaeval@1":
        for one in samples:
            one["score"] = min(1.0, max(0.0, luck.gauss(wish, 0.2)))
    if task == "ifeval@1":
        for one in samples:
            followed = 2.0 if one["score"] else float(luck.random() < 0.5)
            strict = float(one["score"] and luck.random() < 0.9)
            one["numbers"] = {"strict": strict, "followed_loose": followed, "constraints": 2.0}
    if len(samples) == 1:
        return head | samples[0] | {"samples": None}
    right = sum(one["score"] for one in samples)
    return head | samples[0] | {"score": right / len(samples), "numbers": {"right": right}, "samples": samples}


def _written(answer: int, hard: float, luck: random.Random, wish: float) -> dict[str, Any]:
    right = 0.7 * hard + 0.3 * luck.random() < wish
    number = answer if right else answer + luck.randint(1, 9)
    text = (
        f"First count the crates that are there, then take away those that leave.\n\nSo {number} crates stay.\n{number}"
    )
    one = {"output": text, "num_tokens": 30, "stop": "eos", "answer": str(number), "score": float(right)}
    one |= {"outcome": "graded", "detail": "", "numbers": {}}
    fate = luck.random()
    if fate < 0.004:
        failed = {"outcome": "error", "detail": "the server answered 503 five times", "stop": "error", "score": 0.0}
        return one | failed | {"output": "", "answer": ""}
    if not right and fate < 0.1:
        return one | {"outcome": "truncated", "stop": "length", "answer": "", "output": f"{text[:90]} " * 3}
    return one | {"outcome": "unparsed", "answer": ""} if not right and fate < 0.14 else one


def _scored(metric: str, hard: float, luck: random.Random, wish: float, answer: int) -> dict[str, Any]:
    blank = {"output": "", "stop": "", "answer": "", "outcome": "graded", "detail": ""}
    if metric == "bpb":
        bits = 40 * (1.1 - 0.3 * wish + 0.2 * hard + luck.gauss(0, 0.02))
        size = {"bits": bits, "num_bytes": 40, "num_tokens": 12}
        return blank | size | {"score": bits / 40, "options": [str(answer)], "gold": 0}
    options = [str(answer), str(answer + 3), str(answer - 4), str(answer + 11)]
    picked = 0 if 0.7 * hard + 0.3 * luck.random() < wish else 2
    found = {"options": options, "gold": 0, "logps": [-1.0] * 4, "num_tokens": [2] * 4, "num_bytes": [2] * 4}
    found |= {"output": options[picked], "answer": options[picked], "score": float(picked == 0)}
    if metric == "mc2":
        return blank | found | {"gold": 2, "score": min(1.0, max(0.0, luck.gauss(wish, 0.2))), "numbers": {"mc1": 1.0}}
    return blank | found | {way: float(picked == 0) for way in ("raw", "per_token", "per_char", "per_byte")}


def score(card: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry of scores.json, with the fields and meanings of the eval stage."""
    kept = [one for one in results if one["outcome"] != "error"]
    clusters = [one["template"] for one in kept]
    parts: dict[str, list[dict[str, Any]]] = {}
    for one in kept:
        parts.setdefault(one["subset"], []).append(one)
    plain = macro([_values(part) for part in parts.values()]) if card["aggregate"] == "macro" else _mean(kept)
    grouped = _mean(kept, clusters) if 1 < len(set(clusters)) < len(clusters) else None
    bounded = card["metric"] != "bpb"
    samples = [one for line in results for one in line.get("samples") or [line]]
    entry = {
        "metric": card["metric"],
        "score": plain.value,
        "n": plain.n,
        "stderr": _number(plain.stderr),
        "low": _number(max(0.0, plain.low) if bounded else plain.low),
        "high": _number(min(1.0, plain.high) if bounded else plain.high),
        "interval": "95 %, Student's t",
        "minimum_detectable": _number(minimum_detectable(plain.stderr * math.sqrt(2))),
        "stderr_clustered": grouped.stderr if grouped else None,
        "num_clusters": len(set(clusters)) if grouped else None,
        "outcomes": {name: sum(one["outcome"] == name for one in samples) for name in OUTCOMES},
        "card": card,
    }
    if card["metric"] == "accuracy":
        entry["mean_tokens"] = 30.0
    if card["metric"] == "choice":
        entry |= {way: mean([one[way] for one in kept]).value for way in ("raw", "per_token")}
    for name, keys in card["measures"].items():
        columns = [[float(one["numbers"].get(key, 0.0)) for one in kept] for key in keys]
        own = ratio(columns[0], columns[1]) if len(columns) > 1 else mean(columns[0])
        entry.setdefault("measures", {})[name] = {"value": own.value, "stderr": own.stderr}
    if card["judge"] == "alpaca_pairwise@1":
        rates = {"win_rate": 91 * plain.value, "win_rate_stderr": 1.4, "discrete_win_rate": 90 * plain.value}
        lengths = {"mean_length": 1620.0, "duplicates": 0.0, "lc_suspect": 0.0, "n": float(plain.n), "missing": 0.0}
        entry["preference"] = rates | {"lc_win_rate": 100 * plain.value, "lc_win_rate_stderr": 1.2} | lengths
    if len(parts) > 1:
        found = {name: _mean(part) for name, part in sorted(parts.items())}
        entry["subsets"] = {
            name: {"score": one.value, "stderr": _number(one.stderr), "n": one.n} for name, one in found.items()
        }
        entry |= {"micro": _mean(kept).value, "macro": mean([one.value for one in found.values()]).value}
    return entry


def average(parts: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of scores; errors add in squares."""
    square = math.fsum(part["stderr"] ** 2 for part in parts)
    return {"score": math.fsum(part["score"] for part in parts) / len(parts), "stderr": math.sqrt(square) / len(parts)}


def _mean(results: list[dict[str, Any]], clusters: list[str] | None = None) -> Estimate:
    if results[0]["metric"] == "bpb":
        return ratio([one["bits"] for one in results], [one["num_bytes"] for one in results], clusters)
    return mean(_values(results), clusters)


def _values(results: list[dict[str, Any]]) -> list[float]:
    return [float(one["score"]) for one in results]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
