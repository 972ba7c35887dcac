"""Per-item results: the append-only log that an evaluation writes while it runs, and the scores computed from it.

A result line is one JSON object that explains itself: the question, what was written, what was extracted, how it was
graded. So a changed verifier can grade it again without a model.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tercet import journal
from tercet.evals.suite import averages, declared
from tercet.evals.task import Item
from tercet.journal import Journal, Place, write_json
from tercet.records import UNREAD, WAYS, Result, Sample, Score, TaskCard, dump
from tercet.rows import Completion, Messages
from tercet.stats import Estimate, estimate, interval, level, mean, minimum_detectable, ratio, widened
from tercet.verify import Grade, verifier
from tercet.verify.programs import pass_at_k
from tercet.verify.thoughts import answer_of

OUTCOMES = ("graded", "unparsed", "truncated", "timeout", "error")
USAGE = "usage.jsonl"  # beside the logs: what servers were asked and what it cost
SYNC_EVERY = 8  # lines between fsyncs


class ResultLog(Journal):
    """The journal of an evaluation; `results` holds the last line of each item."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """`say` is told of damaged lines, whose items are asked again."""
        journal.mend(path, say)
        self.results = {(one.task, one.item): one for one in map(Result.from_json, journal.read(path))}
        super().__init__(path, sync_every=SYNC_EVERY, checked=True)

    def append(self, record: Result) -> Place:
        """Add one finished item."""
        self.results[record.task, record.item] = record
        return super().append(record.to_json())

    def has(self, task: str, item: str) -> bool:
        """Whether the item is finished; with a lost sample it is not, so that running again asks it again."""
        found = self.results.get((task, item))
        return found is not None and not any(one.lost for one in (found, *found.tries))

    def forget(self, items: Iterable[tuple[str, str]]) -> None:
        """Leave out what will be asked again, so that old failures are not counted beside new answers."""
        for item in items:
            self.results.pop(item, None)


@contextmanager
def log_usage(model: Any, file: Path, role: str = "") -> Iterator[None]:
    """Append what a model with `usage` used meanwhile, also when it fails, so that a continued evaluation counts it."""
    try:
        yield
    finally:
        if (used := getattr(model, "usage", None)) is not None:
            known = {role + key: value for key, value in asdict(used).items() if value is not None}
            journal.append(file, known, checked=True)


def total_usage(file: Path) -> dict[str, float]:
    """The sums of a usage log; what a killed process had asked for is not in it."""
    total: Counter[str] = Counter()
    for numbers in journal.read(file):
        total.update(numbers)
    return {key: float(value) for key, value in total.items()}


def asked(item: Item, card: TaskCard, prompt_ids: Sequence[int]) -> Result:
    """The part of a result that says what was asked."""
    alike = ("task", "item", "skill", "template", "subset", "digest", "messages", "reference")
    same: dict[str, Any] = {key: getattr(item, key) for key in alike}
    if card.code:  # what other code has graded is not compared item by item
        same["digest"] = hashlib.sha256(f"{item.digest} {sorted(card.code.items())}".encode()).hexdigest()[:16]
    return Result(**same, metric=card.metric, aggregate=card.aggregate, prompt_ids=prompt_ids)


def graded(item: Item, completions: Sequence[Completion], card: TaskCard, prompt_ids: Sequence[int]) -> Result:
    """The result of an item whose answers a verifier grades, or which still waits for its LLM judge."""
    written = [
        Sample(one.text, one.num_tokens, one.stop, "error" if one.error else "", one.error) for one in completions
    ]
    return regraded(replace(asked(item, card, prompt_ids), samples=written), item.verifier, card)


def regraded(result: Result, name: str, card: TaskCard) -> Result:
    """The same result with its stored answers graded (again) by the verifier `name`; without one they wait."""
    verify = None
    if name:
        prompt = without_shots(result.messages, card)
        asked: dict[str, Any] = {"prompt": prompt, "source": result.subset, "think": card.think}
        verify = partial(verifier(name), sandbox=card.sandbox or "auto", **asked)
    return summed(result, [_graded(one, result.reference, verify) for one in result.tries], card)


def without_shots(messages: Messages, card: TaskCard) -> Messages:
    """The prompt without its worked examples, where they are turns of their own: what a row of RL has as its prompt."""
    system = int(messages[:1] != () and messages[0].role == "system")
    return (*messages[:system], *messages[system + 2 * (card.shots or 0) :])


def summed(result: Result, samples: Sequence[Sample], card: TaskCard) -> Result:
    """An item's result from those of its samples: the mean score, or unbiased pass@k; a single sample's own."""
    if len(samples) == 1:
        return replace(result, **{**vars(samples[0]), "samples": None})
    kept = [one for one in samples if not one.lost]
    right, k = sum(one.score >= 1 for one in kept), card.pass_k
    score = pass_at_k(len(kept), right, k) if 0 < k <= len(kept) else sum(one.score for one in kept) / max(1, len(kept))
    usable = len(kept) >= max(1, k)
    shown = kept[0] if usable else next(one for one in samples if one.lost)
    names = {name for one in kept for name in one.numbers}
    numbers = {name: sum(one.numbers.get(name, 0.0) for one in kept) / len(kept) for name in sorted(names)}
    numbers |= {"first": shown.score, "right": float(right)} | ({} if usable else shown.numbers)
    return replace(result, **{**vars(shown), "score": score, "numbers": numbers, "samples": samples})


def _graded(written: Sample, reference: str, verify: Callable[[str, str], Grade] | None) -> Sample:
    if written.stop == "error":
        return replace(written, answer="", score=0.0, outcome="error", numbers={})
    if verify is None:
        return replace(written, answer="", score=0.0, outcome="unjudged", detail="", numbers={})
    grade = verify(written.output, reference)
    return with_grade(written, grade, cut=written.stop == "length" and grade.outcome in ("graded", "unparsed"))


def with_grade(written: Sample, grade: Grade, *, cut: bool) -> Sample:
    """A sample with the grade of a verifier or judge; an answer that was `cut` off is marked so."""
    return replace(
        written,
        answer=grade.answer,
        score=float(grade.score),
        outcome="truncated" if cut else grade.outcome,
        detail=grade.detail,
        numbers=dict(grade.numbers),
    )


def write_scores(out: Path, cards: Sequence[TaskCard], results: Sequence[Result]) -> dict[str, Score]:
    """Write `results.jsonl`, `scores.json` and, where suites are complete, `averages.json`; returns the scores."""
    scores = {card.name: summary(card, [r for r in results if r.task == card.name]) for card in cards}
    entries = {name: score.to_json() for name, score in scores.items()}
    (out / "results.jsonl").write_text("".join(map(dump, results)), encoding="utf-8")
    write_json(out / "scores.json", entries, allow_nan=False)
    if whole := averages(entries):
        write_json(out / "averages.json", whole, allow_nan=False)
    return scores


def summary(card: TaskCard, results: Sequence[Result]) -> Score:
    """What `scores.json` says of one task: score, error, 95 % interval, outcomes and the task card.

    Items that could not be asked or graded, or whose verdict could not be read, are counted and left out: they are
    neither right nor wrong. A task may have a headline of its own, with further numbers.
    """
    scored = [result for result in results if not result.lost]
    clusters = [result.template for result in scored]
    task = declared(card)
    own_estimate, numbers = task.headline(scored) if task and task.headline else (None, None)
    plain = own_estimate or level(scored)
    clustered = estimate(scored, clusters) if 1 < len(set(clusters)) < len(clusters) else None
    clustered = clustered if clustered is None or clustered.stderr else widened(clustered, 1.0)
    low, high, how = interval(scored, plain)
    samples = [one for result in results for one in result.tries]
    ended = Counter(one.outcome for one in samples)
    return Score(
        metric=card.metric,
        score=plain.value,
        n=plain.n,
        stderr=_number(plain.stderr),
        low=_number(low),
        high=_number(high),
        interval=how,
        minimum_detectable=_number(minimum_detectable(plain.stderr * math.sqrt(2))) or None,
        stderr_clustered=_number(clustered.stderr) if clustered else None,
        num_clusters=len(set(clusters)) if clustered else None,
        outcomes={outcome: ended[outcome] for outcome in OUTCOMES},
        unread=sum(UNREAD in one.numbers for one in samples) or None,
        preference=numbers,
        card=card,
        **_details(card, scored),
    )


def _details(card: TaskCard, results: Sequence[Result]) -> dict[str, Any]:
    """The other numbers of a task: every way to choose an option, the verifier's measures, subsets, lengths."""
    found: dict[str, Any] = {}
    if card.metric == "choice":
        ways = [way for way in WAYS if getattr(results[0], way) is not None]
        found |= {way: mean([getattr(result, way) for result in results]).value for way in ways}
    elif card.metric == "bpb":
        instances = mean([result.score for result in results]).value
        found |= {"corpus": estimate(results).value, "instance_mean": instances}
    elif card.metric == "accuracy":
        found["mean_tokens"] = mean([float(one.num_tokens) for r in results for one in r.tries]).value
        found["thought_share"] = _thought_share([one.output for result in results for one in result.tries])
    measures = {"mc1": ["mc1"], **card.measures} if card.metric == "mc2" else card.measures
    for name, keys in measures.items():
        own = _measure(results, keys)
        found.setdefault("measures", {})[name] = {"value": own.value, "stderr": _number(own.stderr)}
    parts: dict[str, list[Result]] = {}
    for result in results:
        parts.setdefault(result.subset, []).append(result)
    if len(parts) > 1:
        found["subsets"] = {
            name: {"score": (one := level(part)).value, "stderr": _number(one.stderr), "n": one.n}
            for name, part in sorted(parts.items())
        }
        found["micro"] = estimate(results).value
        found["macro"] = mean([part["score"] for part in found["subsets"].values()]).value
    return found


def _thought_share(outputs: Sequence[str]) -> float | None:
    """Characters of thoughts over all that was written; None where nothing was thought."""
    thoughts = sum(len(answer_of(text).thought) for text in outputs)
    return thoughts / sum(map(len, outputs)) if thoughts else None


def _measure(results: Sequence[Result], keys: Sequence[str]) -> Estimate:
    """A verifier's number over items: a mean, or the ratio of two sums (its error is that of clusters of one item)."""
    columns = [[float(result.numbers.get(key, 0.0)) for result in results] for key in keys]
    return ratio(columns[0], columns[1]) if len(columns) > 1 else mean(columns[0])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
