"""Which texts the page shows: exam answers side by side, rollouts, preference pairs, contaminated rows (hop 12).

Nothing is hand-picked. Within each group the items with the smallest hash of their name are taken, so the choice is
the same on every machine and has no taste. Long texts are cut, and say so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tercet.report.facts import Checkpoint, Object, Stage
from tercet.rows import read_pairs, read_table

MOST_TEXT = 2400  # characters of one shown text
CHANGES = {
    "gained": ("wrong → right", 6),
    "lost": ("right → wrong", 6),
    "wavered": ("changed in between", 3),
    "always right": ("always right", 3),
    "always wrong": ("always wrong", 3),
    "scored": ("scored by likelihood", 2),
}


@dataclass(frozen=True)
class Answer:
    """What one checkpoint made of one item; `right` is None where there is no right or wrong."""

    label: str
    output: str
    extracted: str
    detail: str
    score: float
    outcome: str
    stop: str
    right: bool | None


@dataclass(frozen=True)
class Item:
    """One exam item with the answers of the checkpoints, in their order (None where one was not examined on it)."""

    task: str
    item: str
    change: str
    prompt: list[Object]
    truth: str
    options: list[str]
    answers: list[Answer | None]


def exam_samples(points: Sequence[Checkpoint]) -> list[Item]:
    """A few items of each task and each kind of change; the rest stays in the artefacts."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key in points[-1].results:
        groups.setdefault((key[0], _change(points, key)), []).append(key)
    tasks = list(dict.fromkeys(task for task, _ in points[-1].results))
    ranked = [
        (rank, key, change)
        for task in tasks
        for change, (_, most) in CHANGES.items()
        for rank, key in enumerate(_by_hash(groups.get((task, change), []), most))
    ]
    ranked.sort(key=lambda one: one[0])  # the first of every kind come first
    return [_item(key, change, points) for _, key, change in ranked]


def change_counts(points: Sequence[Checkpoint]) -> dict[str, dict[str, int]]:
    """How many items of each task belong to each kind of change."""
    counts: dict[str, dict[str, int]] = {}
    for key in points[-1].results:
        row = counts.setdefault(key[0], dict.fromkeys(CHANGES, 0))
        row[_change(points, key)] += 1
    return counts


def rollouts(stage: Stage, *, num_steps: int = 6, num_groups: int = 3, most: int = 8) -> list[Object]:
    """Groups of completions from evenly spaced rounds: first those whose rewards differ, from which it learns."""
    path = stage.file("tercet/rollouts.parquet")
    table: dict[int, dict[str, list[Object]]] = {}
    for row in read_table(path) if path else []:
        table.setdefault(row["step"], {}).setdefault(row["prompt_id"], []).append(row)
    picked = []
    for step in _spaced(sorted(table), num_steps):
        groups = table[step]
        ranked = sorted(groups, key=lambda name: (not _differ(groups[name]), _hash(f"{step}/{name}")))
        picked += [groups[name] for name in ranked[:num_groups]]
    return [_group(rows, most) for rows in picked]


def pair_samples(stage: Stage, most: int = 3) -> list[Object]:
    """A few preference pairs of every way of making them, with their provenance."""
    path = stage.file("pairs.parquet")
    pairs = {pair.id: pair for pair in (read_pairs(path) if path else [])}
    rules: dict[str, list[str]] = {}
    for pair in pairs.values():
        rules.setdefault(_rule(pair.provenance, pair.source), []).append(pair.id)
    return [
        {
            "rule": rule,
            "count": len(names),
            "prompt": shown([{"role": m.role, "content": m.content} for m in pairs[name].prompt]),
            "chosen": cut(pairs[name].chosen[-1].content),
            "rejected": cut(pairs[name].rejected[-1].content),
            "chosen_rating": pairs[name].chosen_rating,
            "rejected_rating": pairs[name].rejected_rating,
            "models": f"{pairs[name].chosen_model} / {pairs[name].rejected_model}",
            "provenance": pairs[name].provenance,
        }
        for rule, names in sorted(rules.items())
        for name in _by_hash(names, most)
    ]


def contaminated(rows: Sequence[Object], most: int = 20) -> list[Object]:
    """Removed rows that copy an exam item, the largest coverage first."""
    hits = [row for row in rows if row["task"]]
    return sorted(hits, key=lambda row: (-row["coverage"], row["source"], row["row"]))[:most]


def refused(rows: Sequence[Object], most: int = 4) -> list[Object]:
    """A few rows of every other rule."""
    rules: dict[str, list[Object]] = {}
    for row in rows:
        if not row["task"]:
            rules.setdefault(row["rule"], []).append(row)
    return [row for _, found in sorted(rules.items()) for row in found[:most]]


def shown(turns: Iterable[Object]) -> list[Object]:
    """Turns of a conversation with long texts cut."""
    return [{"role": turn["role"], "content": cut(turn["content"])} for turn in turns]


def cut(text: str, most: int = MOST_TEXT) -> str:
    """The text, or its first `most` characters and a note of how many are missing."""
    return text if len(text) <= most else f"{text[:most]}… [{len(text) - most} more characters]"


def _group(rows: Sequence[Object], most: int) -> Object:
    """One prompt with its completions, as the page shows it."""
    return {
        "step": rows[0]["step"],
        "prompt": shown([{"role": "user", "content": rows[0]["prompt"]}]),
        "verifier": rows[0]["verifier"],
        "signal": _differ(rows),
        "rows": [{**row, "text": cut(row["text"])} for row in rows[:most]],
        "more": max(0, len(rows) - most),
    }


def _item(key: tuple[str, str], change: str, points: Sequence[Checkpoint]) -> Item:
    answers = [_answer(point, key) if key in point.results else None for point in points]
    record = points[-1].results[key]
    options = [str(option) for option in record.get("options", [])]
    truth = options[record["gold"]] if options else str(record["truth"])
    return Item(*key, change, shown(record["messages"]), cut(truth, 600), options, answers)


def _answer(point: Checkpoint, key: tuple[str, str]) -> Answer:
    record = point.results[key]
    return Answer(
        label=point.label,
        output=cut(record["output"]),
        extracted=cut(record["answer"], 200),
        detail=cut(record["detail"], 300),
        score=float(record["score"]),
        outcome=record["outcome"],
        stop=record["stop"],
        right=None if point.scores[key[0]].lower_is_better else _right(point, key),
    )


def _right(point: Checkpoint, key: tuple[str, str]) -> bool:
    return float(point.results[key]["score"]) >= 0.5


def _change(points: Sequence[Checkpoint], key: tuple[str, str]) -> str:
    seen = [point for point in points if key in point.results]
    if any(point.scores[key[0]].lower_is_better for point in seen):
        return "scored"
    marks = [_right(point, key) for point in seen]
    if marks[0] != marks[-1]:
        return "gained" if marks[-1] else "lost"
    return "wavered" if len(set(marks)) > 1 else "always right" if marks[0] else "always wrong"


def _by_hash(names: Sequence[Any], most: int) -> list[Any]:
    return sorted(names, key=lambda name: _hash("/".join(name) if isinstance(name, tuple) else str(name)))[:most]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spaced(values: Sequence[int], most: int) -> list[int]:
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _differ(rows: Sequence[Object]) -> bool:
    return len({row["reward"] for row in rows}) > 1


def _rule(provenance: str, source: str) -> str:
    try:
        made = json.loads(provenance or "{}")
    except json.JSONDecodeError:
        return provenance
    return str(made.get("rule") or source or "pairs") if isinstance(made, dict) else str(made)
