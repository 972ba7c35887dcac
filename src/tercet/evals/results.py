"""Per-item results: the append-only segment an exam writes while it runs, and the scores computed from its lines.

A result line is one JSON object that explains itself: the question, what was written, what was extracted, how it was
judged. So a changed judge can re-score it without generating again.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tercet import journal
from tercet.evals.task import Item
from tercet.journal import Journal, Place, write_json
from tercet.rows import Completion
from tercet.stats import Estimate, macro, mean, minimum_detectable, ratio, t_quantile, wilson
from tercet.verify import Grade, Verifier, verifier
from tercet.verify.programs import pass_at_k, program

Result = dict[str, Any]  # {"task": "words@1", "item": "17", "output": "... 72", "answer": "72", "score": 1.0, ...}
OUTCOMES = ("graded", "unparsed", "truncated", "timeout", "error")
FITTABLE = 5  # verdicts that a length control needs
ALPACA = "alpaca_pairwise@1"
PROGRAM = "program@1"
USAGE = "usage.jsonl"  # beside the segments: what servers were asked and what it cost
SYNC_EVERY = 8  # lines between fsyncs


class Segment(Journal):
    """The journal of an exam: what it holds is in `results`, of several lines for one item the last."""

    def __init__(self, path: Path) -> None:
        self.results = {(one["task"], one["item"]): one for one in journal.read(path)}
        super().__init__(path, sync_every=SYNC_EVERY)

    def append(self, record: Result) -> Place:
        """Add one finished item."""
        self.results[record["task"], record["item"]] = record
        return super().append(record)

    def has(self, task: str, item: str) -> bool:
        """Whether the item is finished; one of which a sample failed is not, so that running again asks it again."""
        found = self.results.get((task, item))
        return found is not None and all(one["outcome"] != "error" for one in (found, *samples_of(found)))

    def forget(self, items: Iterable[tuple[str, str]]) -> None:
        """Leave out what will be asked again, so that old failures are not counted beside new answers."""
        for item in items:
            self.results.pop(item, None)


@runtime_checkable
class Metered(Protocol):
    """A generator that counts requests, tokens and what they cost."""

    @property
    def usage(self) -> Any:
        """Totals since it was opened, a dataclass of numbers."""
        ...


@contextmanager
def accounted(model: Any, ledger: Path, role: str = "") -> Iterator[None]:
    """Note in a ledger what a metered model spent meanwhile, also when it fails, so that a continued exam knows it."""
    try:
        yield
    finally:
        if isinstance(model, Metered):
            numbers = {role + key: value for key, value in asdict(model.usage).items() if value is not None}
            journal.append(ledger, numbers)


def spent(ledger: Path) -> dict[str, float]:
    """The sums of a ledger; what a killed process had asked for is not in it."""
    total: Counter[str] = Counter()
    for numbers in journal.read(ledger):
        total.update(numbers)
    return {key: float(value) for key, value in total.items()}


def asked(item: Item, card: dict[str, Any], prompt_ids: Sequence[int]) -> Result:
    """The part of a result that says what was asked."""
    return {
        "task": item.task,
        "item": item.item,
        "skill": item.skill,
        "template": item.template,
        "subset": item.subset,
        "metric": card["metric"],
        "aggregate": card["aggregate"],
        "digest": item.digest,
        "messages": [asdict(turn) for turn in item.messages],
        "prompt_ids": list(prompt_ids),
        "truth": item.truth,
    }


def graded(item: Item, completions: Sequence[Completion], card: dict[str, Any], prompt_ids: Sequence[int]) -> Result:
    """The result of an item whose answers a pure judge grades, or which still waits for its model-based judge."""
    written = [
        {
            "output": one.text,
            "num_tokens": one.num_tokens,
            "stop": one.stop,
            "outcome": "error" if one.error else "",
            "detail": one.error,
        }
        for one in completions
    ]
    return regraded({**asked(item, card, prompt_ids), "samples": written}, item.verifier, card)


def regraded(result: Result, judge: str, card: dict[str, Any]) -> Result:
    """The same result with its stored answers judged (again) by `judge`; no judge leaves them to be judged later."""
    grade = partial(program, sandbox=card.get("sandbox", "auto")) if judge == PROGRAM else judge and verifier(judge)
    samples = [{**one, **_verdict(one, result["truth"], grade or None)} for one in samples_of(result)]
    return {**result, **summed(samples, card)}


def samples_of(result: Result) -> list[Result]:
    """What was written for an item, one entry a sample: output, num_tokens, stop, and the verdict on it."""
    keys = ("output", "num_tokens", "stop", "answer", "score", "outcome", "detail", "numbers")
    return result.get("samples") or [{key: result[key] for key in keys if key in result}]


def summed(samples: list[Result], card: dict[str, Any]) -> Result:
    """An item's verdict from those on its samples: the mean score, or unbiased pass@k; one sample speaks for itself."""
    if len(samples) == 1:
        return {**samples[0], "samples": None}
    judged = [one for one in samples if one["outcome"] != "error"]
    right = sum(one["score"] >= 1 for one in judged)
    k = card["pass_k"]
    score = (
        pass_at_k(len(judged), right, k)
        if 0 < k <= len(judged)
        else sum(one["score"] for one in judged) / max(1, len(judged))
    )
    usable = len(judged) >= max(1, k)
    shown = judged[0] if usable else next(one for one in samples if one["outcome"] == "error")
    names = {name for one in judged for name in one["numbers"]}
    numbers = {name: sum(one["numbers"].get(name, 0.0) for one in judged) / len(judged) for name in sorted(names)}
    return {
        **shown,
        "score": score,
        "numbers": {**numbers, "first": shown["score"], "right": float(right)},
        "samples": samples,
    }


def _verdict(written: Result, truth: str, judge: Verifier | None) -> Result:
    if written["stop"] == "error":
        return {"answer": "", "score": 0.0, "outcome": "error", "detail": written["detail"], "numbers": {}}
    if judge is None:
        return {"answer": "", "score": 0.0, "outcome": "unjudged", "detail": "", "numbers": {}}
    grade = judge(written["output"], truth)
    return verdict_of(grade, cut=written["stop"] == "length" and grade.outcome in ("graded", "unparsed"))


def verdict_of(grade: Grade, *, cut: bool) -> Result:
    """A judge's grade as the fields of a sample; an answer that was `cut` off is marked so."""
    return {
        "answer": grade.answer,
        "score": float(grade.score),
        "outcome": "truncated" if cut else grade.outcome,
        "detail": grade.detail,
        "numbers": dict(grade.numbers),
    }


def write_scores(out: Path, cards: Sequence[dict[str, Any]], results: Sequence[Result]) -> dict[str, Any]:
    """Write `results.jsonl`, `scores.json` and, where suites are complete, `averages.json`; returns the scores."""
    from tercet.evals.suite import averages

    scores = {card["name"]: summary(card, [r for r in results if r["task"] == card["name"]]) for card in cards}
    lines = (json.dumps(result, allow_nan=False) + "\n" for result in results)
    (out / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(out / "scores.json", scores, allow_nan=False)
    if whole := averages(scores):
        write_json(out / "averages.json", whole, allow_nan=False)
    return scores


def summary(card: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """What `scores.json` says of one task: score, error, 95 % interval, outcomes, and the card it was given under.

    Items that could not be asked or judged are counted and left out: they are neither right nor wrong.
    """
    scored = [result for result in results if result["outcome"] != "error"]
    clusters = [result["template"] for result in scored]
    won = _alpaca(card, scored)
    plain, clustered = _headline(card, scored, won), None
    if 1 < len(set(clusters)) < len(clusters):
        clustered = estimate(scored, clusters=clusters)
    low, high, interval = _interval(card, scored, plain)
    return {
        "metric": card["metric"],
        "score": plain.value,
        "n": plain.n,
        "stderr": _number(plain.stderr),
        "low": _number(low),
        "high": _number(high),
        "interval": interval,
        "minimum_detectable": _number(minimum_detectable(plain.stderr * math.sqrt(2))) or None,
        "stderr_clustered": _number(clustered.stderr) if clustered else None,
        "num_clusters": len(set(clusters)) if clustered else None,
        "outcomes": _outcomes(results),
        **_details(card, scored, won),
        "card": card,
    }


def _interval(card: dict[str, Any], results: Sequence[Result], plain: Estimate) -> tuple[float, float, str]:
    """The 95 % interval: Wilson's for a share of 0/1 items, Student's t for everything else."""
    scores = column(results, "score")
    if {*scores} <= {0.0, 1.0} and card["metric"] != "bpb" and card["aggregate"] != "macro":
        return *wilson(sum(scores), len(scores)), "95 %, Wilson"
    if card["metric"] == "bpb":
        return plain.low, plain.high, "95 %, Student's t"
    return max(0.0, plain.low), min(1.0, plain.high), "95 %, Student's t"


def _headline(card: dict[str, Any], results: Sequence[Result], won: dict[str, float]) -> Estimate:
    """The number a task is quoted by: over all items, the mean over its subsets, or a length-controlled win rate."""
    if won:
        rate, error = won["lc_win_rate"] / 100, won["lc_win_rate_stderr"] / 100
        half = t_quantile(len(results) - 1) * error
        return Estimate(rate, error, rate - half, rate + half, len(results), len(results) - 1)
    if card["aggregate"] == "macro":
        return macro(by_subset(results, column(results, "score")))
    return estimate(results)


def estimate(results: Sequence[Result], clusters: Sequence[str] | None = None) -> Estimate:
    """The mean score over items, or corpus bits per byte."""
    if results[0]["metric"] == "bpb":
        return ratio(column(results, "bits"), column(results, "num_bytes"), clusters)
    return mean(column(results, "score"), clusters)


def column(results: Iterable[Result], key: str) -> list[float]:
    """One number of every result, in order."""
    return [float(result[key]) for result in results]


def by_subset(results: Sequence[Result], values: Sequence[float]) -> list[list[float]]:
    """One number of every result, grouped by the subset it belongs to."""
    parts: dict[str, list[float]] = {}
    for result, value in zip(results, values, strict=True):
        parts.setdefault(result["subset"], []).append(value)
    return list(parts.values())


def _subsets(results: Sequence[Result]) -> dict[str, list[Result]]:
    parts: dict[str, list[Result]] = {}
    for result in results:
        parts.setdefault(result["subset"], []).append(result)
    return parts


def _outcomes(results: Sequence[Result]) -> dict[str, int]:
    """How often each class came, over samples."""
    counted = Counter(one["outcome"] for result in results for one in samples_of(result))
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def _details(card: dict[str, Any], results: Sequence[Result], won: dict[str, float]) -> dict[str, Any]:
    """The other numbers of a task: every way to choose an option, the judge's measures, subsets, lengths."""
    found: dict[str, Any] = {}
    if card["metric"] == "choice":
        ways = [key for key in ("raw", "per_token", "per_char", "per_byte", "unconditional") if key in results[0]]
        found |= {key: mean(column(results, key)).value for key in ways}
    elif card["metric"] == "bpb":
        found |= {"corpus": estimate(results).value, "instance_mean": mean(column(results, "score")).value}
    elif card["metric"] == "accuracy":
        found["mean_tokens"] = mean([float(one["num_tokens"]) for r in results for one in samples_of(r)]).value
    measures = {"mc1": ("mc1",), **card["measures"]} if card["metric"] == "mc2" else card["measures"]
    for name, keys in measures.items():
        own = _measure(results, keys)
        found.setdefault("measures", {})[name] = {"value": own.value, "stderr": _number(own.stderr)}
    if card["judge"] == ALPACA:
        found["preference"] = won
    parts = _subsets(results)
    if len(parts) > 1:
        found["subsets"] = {
            name: {"score": (one := estimate(part)).value, "stderr": _number(one.stderr), "n": one.n}
            for name, part in sorted(parts.items())
        }
        found["micro"], found["macro"] = (
            estimate(results).value,
            mean([p["score"] for p in found["subsets"].values()]).value,
        )
    return found


def _alpaca(card: dict[str, Any], results: Sequence[Result]) -> dict[str, float]:
    """All numbers of AlpacaEval 2 where every instruction's difficulty is known; else nothing."""
    if card["judge"] != ALPACA or len(results) < FITTABLE:
        return {}
    truths = [json.loads(result["truth"]) for result in results]
    if any(truth.get("difficulty") is None for truth in truths):
        return {}
    from tercet.evals import preference

    return preference.summary(
        [
            preference.Verdict(1 + result["score"], result["output"], len(truth["baseline"]), truth["difficulty"])
            for result, truth in zip(results, truths, strict=True)
        ]
    )


def _measure(results: Sequence[Result], keys: Sequence[str]) -> Estimate:
    """A judge's number over items: a mean, or the ratio of two sums (its error is that of clusters of one item)."""
    columns = [[float(result["numbers"].get(key, 0.0)) for result in results] for key in keys]
    return ratio(columns[0], columns[1]) if len(columns) > 1 else mean(columns[0])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
