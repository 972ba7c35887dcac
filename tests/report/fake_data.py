"""Summaries as stages of kind `mix`, `pair_mix`, `personas` and `rated_pairs` write them, with numbers that add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tercet.rows import Message, Pair, write_table

Object = dict[str, Any]
OLD = ("rows", "removed", "benchmarks")  # the keys of a summary before it had a data sheet


def source(name: str, read: int, kept: int, removed: dict[str, int], **more: Any) -> Object:
    sampled = kept + sum(removed.values())
    found = {"source": name, "read": read, "skipped": {}, "entered": sampled, "sampled": sampled}
    return found | {"removed": removed, "kept": kept, "repeated": 0, "expected": None} | more


def line(part: str, rows: int, tokens: int, licence: str, commercial: str, **more: Any) -> Object:
    found = {"source": part, "part": part, "rows": rows, "tokens": tokens, "turns": 2.0}
    return found | {"licence": licence, "commercial": commercial} | more


def cell(part: str, task: str, copied: int, items: int, verdict: str = "rows removed") -> Object:
    return {"source": part, "task": task, "copied": copied, "items": items, "share": copied / items, "verdict": verdict}


RULE = {"ngram": 8, "threshold": 0.5, "share": 0.02, "exact": False}
BENCHMARKS = [
    {"task": "constraints@1", "items": 80, "copied": 0, "share": 0.0},
    {"task": "gpqa@1", "items": 448, "copied": 31, "share": 31 / 448},
    {"task": "words@1", "items": 120, "copied": 3, "share": 0.025},
    {"task": "words@1:examples", "items": 8, "copied": 1, "share": 0.125},
]
MATRIX = [
    cell("quiz-bowl", "gpqa@1", 31, 448, "set dropped"),
    cell("words@1", "words@1", 3, 120),
    cell("words@1", "words@1:examples", 1, 8),
]
BAD = {"reason": "not valid JSON", "rows": 2, "examples": ["orders.jsonl, line 9: not valid JSON; fix the line"]}
SFT_DATA = {
    "of": "rows",
    "rows": 595,
    "removed": {"contaminated": 3, "contaminated set": 90, "duplicate": 1, "keywords": 1},
    "sources": [
        source("words", 400, 297, {"contaminated": 3}, entered=400),
        source("orders", 305, 298, {"duplicate": 1, "keywords": 1}, skipped={"no user turn": 4, "a turn is empty": 1})
        | {"bad": [BAD], "left": {"images": 12, "messages.score": 3}},
        source("someone/quiz-bowl", 90, 0, {"contaminated set": 90}, expected=100),
    ],
    "sheet": [
        line("words@1", 297, 20_790, "CC-BY-4.0", "yes", source="words"),
        line("constraints@1", 298, 1_192_000, "not known here", "unknown", source="orders"),
    ],
    "counted": "words",
    "benchmarks": BENCHMARKS,
    "matrix": MATRIX,
    "rule": RULE,
    "licences": ["orders may not be sold, and the recipe asks for commercial use."],
    "expected": {
        "rows": 700,
        "found": 688,
        "differences": [{"source": "someone/quiz-bowl", "expected": 100, "found": 90}],
    },
}
CHOICES = SFT_DATA | {
    "of": "pairs",
    "rows": 77,
    "sources": [source("preference-data", 40, 39, {"duplicate": 1}), source("verdicts", 38, 38, {})],
    "sheet": [
        line("preference-data", 39, 5_000, "CC-BY-4.0", "yes"),
        line("verdicts", 38, 6_000, "CC-BY-NC-4.0", "no"),
    ],
    "benchmarks": [BENCHMARKS[0]],
    "matrix": [],
    "licences": [],
    "expected": None,
    "counted": "tokens of base",
}


def account(name: str, **more: Any) -> Object:
    """Requests to one model."""
    line = {"asked": 120, "answered": 118, "failed": 2, "tokens": 9_000, "read": 31_000, "wrote": 9_000, "cost": 0.42}
    total = {key: line[key] for key in ("asked", "answered", "failed", "cost")}
    return {"requests": total | {"models": {name: line}}, "spent": {}, "budget": None} | more


STORIES = {
    "of": "rows",
    "write": "persona_gsm",
    "model": "author-0123456789ab",
    "source": "personas.jsonl",
    "read": 5_000,
    "skipped": {},
    "bad": [BAD],
    "seeds": 60,
    "rows": 41,
    "dropped": {"answers disagree": 14, "no question": 5},
} | account("author-0123456789ab", budget=2.0)
VERDICTS = {
    "of": "pairs",
    "prompts": 50,
    "repeats": 2,
    "rules": {"rated_pairs": 38},
    "no_pair": {"all answers are as good": 9, "an answer could not be had": 3},
    "read": 47,
    "pairs": 38,
    "dropped": {"all answers are as good": 9},
    "ratings": {"not applicable": 12, "rated": 364},
    "models": {
        "author-0123456789ab": {"rated_pairs": 38, "chosen": 0.605, "rejected": 0.395},
        "base-ba5eba5eba5e": {"rated_pairs": 38, "chosen": 0.395, "rejected": 0.605},
    },
    "mean_words": {"chosen": 112.3, "rejected": 95.8},
    "aspect_agreement": {"helpfulness": 0.91, "honesty": 0.74, "instruction_following": 0.88, "truthfulness": 0.7},
} | account("author-0123456789ab (judge)")


def write_data(payload: Callable[[str], Path]) -> None:
    """The summaries of the run's data stages, and a pair that the LLM judge rated."""
    summaries = {"sft-data": SFT_DATA, "choices": CHOICES, "stories": STORIES, "verdicts": VERDICTS}
    for name, summary in summaries.items():
        (payload(name) / "summary.json").write_text(json.dumps(summary))
    asked, good, bad = (Message("user", "Why is the sea salt?"), *(Message("assistant", f"Rivers {k}.") for k in "ab"))
    made = json.dumps({"rule": "rated_pairs", "judge": "author-0123456789ab"})
    models = {"chosen_model": "author-0123456789ab", "rejected_model": "base-ba5eba5eba5e"}
    ratings = {"chosen_rating": 4.25, "rejected_rating": 3.0}
    pair = Pair("j-1", (asked, good), (asked, bad), "stories", "chat", provenance=made, **models, **ratings)  # type: ignore[arg-type]
    write_table(payload("verdicts") / "pairs.parquet", [pair])


def age(path: Path) -> None:
    """Make a summary of a mixture one of an older version."""
    summary = json.loads(path.read_text())
    kept = ("source", "read", "sampled", "kept", "removed")
    sources = [{key: row[key] for key in kept} for row in summary["sources"]]
    old = {key: summary[key] for key in OLD} | {"sources": sources, "ngram": 8, "threshold": 0.5}
    path.write_text(json.dumps(old))
