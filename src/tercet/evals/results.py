"""Per-item results: the append-only segment an exam writes while it runs, and the scores computed from its lines.

A result line is one JSON object that explains itself: the question, what was written, what was extracted, how it was
judged. So a changed judge can re-score it without generating again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tercet.stats import Estimate, mean, ratio

Result = dict[str, Any]  # {"task": "words@1", "item": "17", "output": "... 72", "answer": "72", "score": 1.0, ...}
OUTCOMES = ("graded", "unparsed", "truncated", "timeout", "error")
SYNC_EVERY = 8  # lines between fsyncs


class Segment:
    """An append-only file of result lines that survives SIGKILL."""

    def __init__(self, path: Path) -> None:
        """Open the file for appending, with what it holds in `results`; a torn last line is cut off."""
        self.path = path
        self.results: dict[tuple[str, str], Result] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("rb+") as stream:
            whole = stream.read()
            stream.truncate(whole.rfind(b"\n") + 1)
        for result in read_results(path):
            self._keep(result)
        self._stream = path.open("a", encoding="utf-8")
        self._waiting = 0

    def __enter__(self) -> Segment:
        """The segment itself, open for appending."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left to the disk and close."""
        self.sync()
        self._stream.close()

    def append(self, result: Result) -> None:
        """Add one finished item; a later line for the same item replaces an earlier one."""
        self._stream.write(dump(result))
        self._keep(result)
        self._waiting += 1
        if self._waiting >= SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Make every appended line durable."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._waiting = 0

    def has(self, task: str, item: str) -> bool:
        """Whether the item is finished; one whose judge failed is not, so that running again judges it again."""
        found = self.results.get((task, item))
        return found is not None and found["outcome"] != "error"

    def _keep(self, result: Result) -> None:
        self.results[result["task"], result["item"]] = result


def dump(result: Result) -> str:
    """One result as a line of JSON."""
    return json.dumps(result, allow_nan=False) + "\n"


def read_results(path: Path) -> list[Result]:
    """The lines of a results file; errors name file and line."""
    results = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                results.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not a result line ({error.msg}); remove the file to examine again"
                ) from None
    return results


def summary(card: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """What `scores.json` says of one task: score, error, 95 % interval, outcomes, and the card it was given under."""
    templates = [result["template"] for result in results]
    plain, clustered = estimate(results), None
    if 1 < len(set(templates)) < len(templates):
        clustered = estimate(results, clusters=templates)
    bounded = card["metric"] != "bpb"
    outcomes = [result["outcome"] for result in results]
    return {
        "metric": card["metric"],
        "score": plain.value,
        "n": plain.n,
        "stderr": _number(plain.stderr),
        "low": _number(max(0.0, plain.low) if bounded else plain.low),
        "high": _number(min(1.0, plain.high) if bounded else plain.high),
        "interval": "95 %, Student's t",
        "stderr_clustered": _number(clustered.stderr) if clustered else None,
        "num_clusters": len(set(templates)) if clustered else None,
        "outcomes": {outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        **_details(card["metric"], results),
        "card": card,
    }


def estimate(results: Sequence[Result], clusters: Sequence[str] | None = None) -> Estimate:
    """The headline of one task's results: mean score, or corpus bits per byte."""
    if results[0]["metric"] == "bpb":
        return ratio(column(results, "bits"), column(results, "num_bytes"), clusters)
    return mean(column(results, "score"), clusters)


def column(results: Iterable[Result], key: str) -> list[float]:
    """One number of every result, in order."""
    return [float(result[key]) for result in results]


def _details(metric: str, results: Sequence[Result]) -> dict[str, float]:
    """The other numbers of a task: every way to choose an option, or the instance mean beside the corpus value."""
    if metric == "choice":
        return {key: mean(column(results, key)).value for key in ("raw", "per_token", "per_byte")}
    if metric == "bpb":
        return {"corpus": estimate(results).value, "instance_mean": mean(column(results, "score")).value}
    return {"mean_tokens": mean(column(results, "num_tokens")).value}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
