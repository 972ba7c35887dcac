"""Which texts the page shows: answers of evaluations side by side, rollouts and preference pairs.

Nothing is hand-picked: within each group the items with the smallest hash of their name are taken, so the choice is
the same on every machine. A long text is cut and ends in a note of how much is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tercet.records import Result, Sample
from tercet.report import collect
from tercet.report.collect import Checkpoint, Key, Object, Stage
from tercet.rows import Message, Pair, read_pairs, read_table

MOST_TEXT = 2400  # characters of one shown text
MOST_SAMPLE = 700  # characters of a further sample of an item, or of a worked example
MOST_SAMPLES = 4  # further samples shown of an item
MOST_COMMON = 40  # characters that titles of one task may begin with alike
MOST_ITEMS = 120  # evaluation items on one page, whatever the number of tasks
CHANGES = {
    "gained": ("wrong → right", 6),
    "lost": ("right → wrong", 6),
    "wavered": ("changed in between", 3),
    "always right": ("always right", 3),
    "always wrong": ("always wrong", 3),
    "failed": ("not graded", 3),
    "scored": ("likelihood only", 2),
}


@dataclass(frozen=True)
class CheckpointAnswer:
    """A checkpoint's answer to an item; `right` is None where there is no right or wrong, or no grade.

    `first` is the first sample, `others` are some further ones. `marks` has a mark for each of several samples: `✓✗!`
    is right, wrong, not graded.
    """

    label: str
    series: int
    score: float
    outcome: str
    right: bool | None
    first: Sample
    others: list[Sample]
    marks: str


@dataclass(frozen=True)
class ShownItem:
    """One item with the answers of the checkpoints, in their order (None where one was not evaluated on it).

    `shots` are the turns before the question itself: worked examples.
    """

    task: str
    item: str
    subset: str
    shots: list[Object]
    prompt: list[Object]
    reference: str
    options: list[str]
    answers: list[CheckpointAnswer | None]
    change: str = ""
    title: str = ""


def eval_samples(points: Sequence[Checkpoint]) -> list[ShownItem]:
    """A few items of each task and each kind of change, the first of every kind first."""
    groups: dict[tuple[str, str], list[Key]] = {}
    for key in _keys(points):
        groups.setdefault((key[0], _change(points, key)), []).append(key)
    tasks = dict.fromkeys(task for task, _ in groups)
    ranked = [
        (rank, key, change)
        for change, (_, most) in CHANGES.items()
        for task in tasks
        for rank, key in enumerate(by_hash(groups.get((task, change), []), most))
    ]
    ranked.sort(key=lambda one: one[0])  # so that the limit leaves items of every kind
    picked = {key: change for _, key, change in ranked[:MOST_ITEMS]}
    records = [collect.records(point, picked) for point in points]
    lines = {key: next(one[key] for one in reversed(records) if key in one) for key in picked}
    titles, seen = _titles(lines), set[str]()
    out = []
    for key, change in picked.items():
        answers = [_answer(i, points[i], key, one[key]) if key in one else None for i, one in enumerate(records)]
        card = next(point.scores[key[0]].card for point in points if key in point.results)
        item = _item(lines[key], answers, shots=2 * (card.shots or 0), show_shots=key[0] not in seen)
        out.append(replace(item, change=change, title=titles[key]))
        seen.add(key[0])
    return out


def change_counts(points: Sequence[Checkpoint]) -> dict[str, dict[str, int]]:
    """How many items of each task belong to each kind of change."""
    counts: dict[str, dict[str, int]] = {}
    for key in _keys(points):
        row = counts.setdefault(key[0], dict.fromkeys(CHANGES, 0))
        row[_change(points, key)] += 1
    return counts


def rollouts(stage: Stage, *, num_steps: int = 6, num_groups: int = 3, most: int = 8) -> list[Object]:
    """Groups of completions from evenly spaced rounds; those whose rewards differ come first: they train."""
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
    """A few preference pairs of every rule that made pairs, with their provenance."""
    path = stage.file("pairs.parquet")
    pairs = {pair.id: pair for pair in (read_pairs(path) if path else [])}
    rules: dict[str, list[str]] = {}
    for pair in pairs.values():
        rules.setdefault(_rule(pair.provenance, pair.source), []).append(pair.id)
    found = []
    for rule, names in sorted(rules.items()):
        found += [shown_pair(pairs[name], rule, len(names)) for name in by_hash(names, most)]
    return found


def shown_pair(pair: Pair, rule: str, count: int) -> Object:
    """A pair as the page shows it, one of `count` of its rule."""
    texts = {"chosen": cut(pair.chosen[-1].content), "rejected": cut(pair.rejected[-1].content)}
    return {"rule": rule, "count": count, "prompt": shown(pair.prompt), **texts, "pair": pair}


def shown(turns: Iterable[Message], most: int = MOST_TEXT) -> list[Object]:
    """Turns of a conversation with long texts cut."""
    return [{"role": turn.role, "content": cut(turn.content, most)} for turn in turns]


def cut(text: str, most: int = MOST_TEXT) -> str:
    """The text, or its first `most` characters and a note of how many are missing."""
    return text if len(text) <= most else f"{text[:most]}… [{len(text) - most} more characters]"


def clip(text: str, most: int = 110) -> str:
    """One line that begins with the text."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def middle_cut(text: str, most: int = MOST_TEXT) -> str:
    """The text, or its start and its end, which has the question, with a note of how much is missing between."""
    head = most // 4
    if len(text) <= most:
        return text
    return f"{text[:head]}… [{len(text) - most} more characters] …{text[head - most :]}"


def _group(rows: Sequence[Object], most: int) -> Object:
    """One prompt with its completions, as the page shows it."""
    return {
        "step": rows[0]["step"],
        "prompt": shown([Message("user", rows[0]["prompt"])]),
        "verifier": rows[0]["verifier"],
        "signal": _differ(rows),
        "rows": [{**row, "text": cut(row["text"]), "advantage": row.get("advantage")} for row in rows[:most]],
        "more": max(0, len(rows) - most),
    }


def _keys(points: Sequence[Checkpoint]) -> list[Key]:
    return list(dict.fromkeys(key for point in points for key in point.results))


def _titles(lines: dict[Key, Result]) -> dict[Key, str]:
    """The last question of every item, without the words that all shown items of its task begin with."""
    questions: dict[str, dict[Key, str]] = {}
    for key, line in lines.items():
        text = next((turn.content for turn in reversed(line.messages) if turn.role != "assistant"), "")
        questions.setdefault(key[0], {})[key] = " ".join(text.split())
    titles: dict[Key, str] = {}
    for group in questions.values():
        first, last = min(group.values()), max(group.values())
        alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
        start = first.rfind(" ", 0, alike) + 1 if alike > MOST_COMMON else 0
        titles |= {key: ("… " if start else "") + clip(text[start:]) for key, text in group.items()}
    return titles


def _item(record: Result, answers: list[CheckpointAnswer | None], *, shots: int, show_shots: bool) -> ShownItem:
    """The item as the page shows it; its first `shots` turns are worked examples, shown once for each task."""
    options, turns = list(record.options), record.messages
    right = options[: record.gold] if record.metric == "mc2" else options[record.gold :][:1]
    return ShownItem(
        task=record.task,
        item=record.item,
        subset=record.subset,
        shots=shown(turns[:shots], MOST_SAMPLE) if show_shots else [],
        prompt=[{"role": turn.role, "content": middle_cut(turn.content)} for turn in turns[shots:]],
        reference=cut(" · ".join(right) if options else record.reference, 600),
        options=options if len(options) > 1 else [],
        answers=answers,
    )


def _answer(series: int, point: Checkpoint, key: Key, record: Result) -> CheckpointAnswer:
    samples = record.tries
    marks = ["!" if one.lost else "✓" if one.score >= 0.5 else "✗" for one in samples]
    return CheckpointAnswer(
        label=point.label,
        series=series,
        score=record.score,
        outcome=record.outcome,
        right=_right(point, key),
        first=_cut_sample(samples[0], MOST_TEXT),
        others=[_cut_sample(one, MOST_SAMPLE) for one in samples[1 : 1 + MOST_SAMPLES]],
        marks="".join(marks) if len(samples) > 1 else "",
    )


def _cut_sample(sample: Sample, most: int) -> Sample:
    output, answer, detail = cut(sample.output, most), cut(sample.answer, 200), cut(sample.detail, 300)
    return replace(sample, output=output, answer=answer, detail=detail)


def _right(point: Checkpoint, key: Key) -> bool | None:
    result = point.results[key]
    graded = point.scores[key[0]].graded and not result.lost
    return result.score >= 0.5 if graded else None


def _change(points: Sequence[Checkpoint], key: Key) -> str:
    seen = [point for point in points if key in point.results]
    if any(point.results[key].lost for point in seen):
        return "failed"
    marks = [_right(point, key) for point in seen]
    if None in marks:
        return "scored"
    if marks[0] != marks[-1]:
        return "gained" if marks[-1] else "lost"
    return "wavered" if len(set(marks)) > 1 else "always right" if marks[0] else "always wrong"


def by_hash(names: Sequence[Any], most: int) -> list[Any]:
    """The first of some names by the hash of each, so that nobody picks them and every machine picks the same."""
    return sorted(names, key=lambda name: _hash("/".join(name) if isinstance(name, tuple) else str(name)))[:most]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spaced(values: Sequence[int], most: int) -> list[int]:
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / max(1, most - 1))] for i in range(most)]


def _differ(rows: Sequence[Object]) -> bool:
    return len({row["reward"] for row in rows}) > 1


def _rule(provenance: str, source: str) -> str:
    try:
        made = json.loads(provenance or "{}")
    except json.JSONDecodeError:
        return provenance
    return str(made.get("rule") or source or "pairs") if isinstance(made, dict) else str(made)
