"""What the page says of evaluations: suites, scores with their errors, comparisons, and a sheet for every task.

Scores come from `scores.json` and `averages.json` as the eval stage wrote them; only differences are computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tercet.records import WAYS, TaskCard
from tercet.report import charts, compare, labels
from tercet.report.collect import TITLES, Checkpoint, Object, TaskScore
from tercet.report.compare import Changes, amount
from tercet.stats import Comparison

OUTCOMES = TITLES["outcomes"]
LOSSES = ("error", "timeout", "truncated", "unparsed")  # shown beside every score, the worst first
GRAVE = 0.1  # from this share of all answers on, a loss is coloured
FEW = 6  # tasks that have a card each at the head of the page
HOW = ("verifier", "judge", "think", "sampling", "layout", "shots", "prefix", "variant")
DECIDING = (*HOW, "dtype", "engine", "repeats")
TONE = {"better": "good", "worse": "bad", "unclear": "flat"}


def summary(model: str, points: Sequence[Checkpoint], opened: Mapping[str, list[str]]) -> Object:
    """Everything that the head of the page and its section of scores show."""
    tasks, found = compare.tasks_of(points), compare.changes(points)
    names = dict.fromkeys(name for point in points for name in point.averages)
    suites = [_suite(name, points, found) for name in names]
    cards = [_task_card(task, points, found[task.task]["base"]) for task in tasks] if len(tasks) <= FEW else []
    return {
        "story": compare.story(model, points, {task: rows["base"] for task, rows in found.items()}),
        "steps": compare.steps(points, {task: rows["step"] for task, rows in found.items()}),
        "suites": suites,
        "cards": [suite["card"] for suite in suites] + cards,
        "tasks": [_task(task, points) for task in tasks],
        "sheets": [_sheet(task, points) for task in tasks],
        "few": len(tasks) <= FEW,
        "compared": _pairs(tasks, found, points),
        "failed": [lost for task in tasks if (lost := _errors(task, points))],
        "opened": [{"evaluation": name, "times": len(each), "tasks": each[-1]} for name, each in opened.items()],
        "num_opened": sum(map(len, opened.values())),
        "outcome_names": OUTCOMES,
    }


def unit(score: TaskScore) -> str:
    """What a score of this task is, in a few words."""
    card = score.card
    if score.metric != "accuracy":
        return TITLES["units"][score.metric] + _macro(score)
    if score.preference:
        return "length-controlled win rate"
    if card.judge:
        return f"graded by an LLM judge{_macro(score)}"
    return (f"pass@{card.pass_k}" if card.pass_k else "items right") + _macro(score)


def plain(value: Any) -> str:
    """A setting as text: `yes`, `5e-6`, `top_p = 1`, `not set`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}".replace("e-0", "e-").replace("e+0", "e")
    if isinstance(value, dict):
        return ", ".join(f"{key} = {plain(item)}" for key, item in value.items() if item not in (None, "", []))
    if isinstance(value, list):
        return "; ".join(plain(item) for item in value) or "none"
    if isinstance(value, str) and value != value.strip():
        return repr(value)
    return "not set" if value in (None, "") else str(value)


def _macro(score: TaskScore) -> str:
    return f", mean over {score.card.num_subsets} subsets" if score.card.aggregate == "macro" else ""


def _suite(name: str, points: Sequence[Checkpoint], found: Changes) -> Object:
    """One table: the suite's rows, then its averages; the change from the first to the last checkpoint that has it."""
    wholes = [point.averages.get(name) for point in points]
    known = next(whole for whole in wholes if whole)
    rows = {label: row.get("tasks", []) for label, row in known["rows"].items()}
    lines = [_line(label, [names], "rows", wholes, found) for label, names in rows.items()]
    for label, average in known["averages"].items():
        parts = [rows[row] for row in average.get("rows", [])]
        lines.append(_line(label, parts, "averages", wholes, found))
    main = next(line for line in lines if line["average"])
    ends = [cell["score"] if cell else None for cell in main["cells"]]
    card = _card((f"{name.capitalize()} suite", f"mean of {main['label']}"), ends, "share", main["change"])
    return {"name": name, "lines": lines, "card": card, "paired": any(line["change"] for line in lines)}


def _line(
    label: str, parts: Sequence[Sequence[str]], kind: str, wholes: Sequence[Object | None], found: Changes
) -> Object:
    """One line of a suite's table; `parts` are the tasks of each row it averages, none where they are not known."""
    against = [[(found[task]["base"] or [None])[-1] for task in names] for names in parts]
    return {
        "label": label,
        "average": kind == "averages",
        "cells": [whole[kind].get(label) if whole else None for whole in wholes],
        "change": compare.average_change(against),
    }


def _task_card(task: TaskScore, points: Sequence[Checkpoint], against_base: Sequence[Comparison | None]) -> Object:
    scores = [point.scores[task.task].score if task.task in point.scores else None for point in points]
    return _card((task.title, unit(task)), scores, task.metric, against_base[-1] if against_base else None)


def _card(names: tuple[str, str], scores: Sequence[float | None], metric: str, change: Comparison | None) -> Object:
    """A card at the head of the page: the scores of the first and the last checkpoint; `names` are title and unit."""
    first, last = (None if one is None else amount(one, metric) for one in (scores[0], scores[-1]))
    ends = {"before": first or "–", "after": (last or "") if len(scores) > 1 else ""}
    return {"skill": names[0], "unit": names[1], **ends, "metric": metric, "change": change}


def _task(task: TaskScore, points: Sequence[Checkpoint]) -> Object:
    """A drawing of the scores, and the scores with what was lost."""
    scores = [point.scores.get(task.task) for point in points]
    marks = []
    for series, (point, score) in enumerate(zip(points, scores, strict=True)):
        if score:
            low, high = (amount(bound, task.metric) for bound in score.bounds)
            tip = f"{point.label}: {amount(score.score, task.metric)}, 95 % interval {low} to {high}, n = {score.n}"
            marks.append(charts.Dot(point.label, score.score, *score.bounds, tip, series))
    label = f"{task.title}: scores with 95 % intervals"
    chart = charts.dots(marks, percent=not task.lower_is_better, label=label)
    cells = [(s, _span(s), _losses(s)) if s else None for s in scores]
    return {"task": task, "unit": unit(task), "cells": cells, "chart": chart}


def _losses(score: TaskScore) -> list[tuple[str, bool]]:
    """`[("3 errors", True), ("2 % truncated", False)]`: what did not end as it should, and whether that is grave.

    Every error counts; the rest are shares of the answers, grave from a tenth on.
    """
    whole = sum(score.outcomes.values())
    return [
        (f"{count} error{'s' if count > 1 else ''}", True)
        if name == "error"
        else (f"{_share(count / whole)} {name}", count >= GRAVE * whole)
        for name in LOSSES
        if (count := score.outcomes.get(name, 0))
    ]


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _errors(task: TaskScore, points: Sequence[Checkpoint]) -> int:
    """How many answers of a task, over all checkpoints, could not be obtained or graded."""
    return sum(point.scores[task.task].outcomes.get("error", 0) for point in points if task.task in point.scores)


def _pairs(tasks: Sequence[TaskScore], found: Changes, points: Sequence[Checkpoint]) -> list[Object]:
    """One table for every two checkpoints: the last against the first, then each step, then the others."""
    last = len(points) - 2
    order = [("base", last), *(("step", i) for i in range(last + 1)), *(("base", i) for i in range(1, last))]
    rows = [one for task in found.values() for kind in task.values() for one in kind if one]
    reach = {True: 0.0, False: 0.0}  # the largest bound of all tables: in bits per byte (True), in points
    for row in rows:
        reach[row.metric == "bpb"] = max(reach[row.metric == "bpb"], abs(row.low), abs(row.high))
    out = []
    for kind, i in order if last > 0 else order[: last + 1]:
        changes = [(task, change) for task in tasks if (change := found[task.task][kind][i])]
        if not changes:
            continue
        verdicts = [one.verdict for _, one in changes]
        table = {
            "before": points[i if kind == "step" else 0].label,
            "after": points[i + 1].label,
            "rows": [_row(task, one, reach[task.lower_is_better] or 1.0) for task, one in changes],
            "counts": {name: verdicts.count(name) for name in ("better", "worse", "unclear")},
            "clustered": any(one.stderr_clustered is not None for _, one in changes),
            "alone": sum(one.p_value < 0.05 for _, one in changes),
        }
        out.append(table)
    return out


def _row(task: TaskScore, change: Comparison, reach: float) -> Object:
    drawn = charts.forest(change.difference, change.low, change.high, reach=reach, tone=TONE[change.verdict])
    kind = "bits per byte ↓" if task.lower_is_better else "plain win rate" if task.preference else ""
    return {"task": task, "change": change, "drawing": drawn, "kind": kind}


def _sheet(task: TaskScore, points: Sequence[Checkpoint]) -> Object:
    """Every number of one task, checkpoints side by side: errors, outcomes, measures, subsets, and the task card."""
    scores = {point.label: point.scores[task.task] for point in points if task.task in point.scores}
    seen = [name for name in OUTCOMES if any(score.outcomes.get(name) for score in scores.values())]
    subsets = dict.fromkeys(name for score in scores.values() for name in score.subsets or {})
    settings = _settings({label: score.card for label, score in scores.items()})
    return {
        "task": task,
        "unit": unit(task),
        "scores": scores,
        "numbers": _numbers(scores),
        "outcomes": [(name, [_part(name, score) for score in scores.values()]) for name in seen],
        "subsets": [(name, [(s.subsets or {}).get(name) for s in scores.values()]) for name in subsets],
        "settings": settings,
        "differs": [key for key, values in settings if len(values) > 1 and key in DECIDING],
    }


def _part(outcome: str, score: TaskScore) -> tuple[int, float]:
    """How many answers ended so, and their share of all."""
    count = score.outcomes.get(outcome, 0)
    return count, count / max(1, sum(score.outcomes.values()))


def _numbers(scores: Mapping[str, TaskScore]) -> list[tuple[str, list[str]]]:
    """Lines of a sheet: name, and a text for every checkpoint; lines that hold nothing are left out."""
    values = list(scores.values())

    def line(name: str, key: str) -> tuple[str, list[str]]:
        return name, ["–" if (value := getattr(one, key)) is None else amount(value, one.metric) for one in values]

    lines = [
        line("Score", "score"),
        line("Standard error", "stderr"),
        line("Standard error, clustered", "stderr_clustered"),
        ("Clusters", [str(one.num_clusters or "–") for one in values]),
        ("95 % interval", ["–" if one.low is None else _span(one) for one in values]),
        ("Items", [f"{one.n:,}" for one in values]),
        line("Detectable, unpaired", "minimum_detectable"),
        *_measures(values),
        *(line(f"Options by {way.replace('_', ' ')}", way) for way in WAYS),
        line("Mean over items", "micro"),
        line("Mean over subsets", "macro"),
        line("Mean of the items' own", "instance_mean"),
        ("Tokens per answer", ["–" if one.mean_tokens is None else labels.number(one.mean_tokens) for one in values]),
        line("Share of thoughts in the text", "thought_share"),
        ("Verdicts that could not be read", [str(one.unread or "–") for one in values]),
    ]
    return [(name, cells) for name, cells in lines if any(cell != "–" for cell in cells)]


def _span(score: TaskScore) -> str:
    """`39.0 to 43.1`, in percent or bits per byte."""
    low, high = (amount(bound, score.metric).removesuffix(" %") for bound in score.bounds)
    return f"{low} to {high}"


def _measures(scores: Sequence[TaskScore]) -> list[tuple[str, list[str]]]:
    """Further numbers of the verifier or LLM judge (strict and loose, win rates) with their errors."""
    lines = []
    measures = [one.measures or {} for one in scores]
    for name in dict.fromkeys(name for found in measures for name in found):
        cells = [_with_error(**found[name]) if name in found else "–" for found in measures]
        lines.append((name.replace("_", " ").capitalize(), cells))
    given = [one.preference for one in scores]
    for key, name in (("win_rate", "Plain win rate"), ("discrete_win_rate", "Share of items won")):
        cells = [_with_error(p[key] / 100, p.get(f"{key}_stderr", 0.0) / 100) if p else "–" for p in given]
        lines.append((name, cells))
    lines.append(("Characters per answer", [labels.number(p["mean_length"]) if p else "–" for p in given]))
    return lines


def _with_error(value: float, stderr: float | None) -> str:
    """`41.2 % ± 1.3`."""
    return amount(value, "share") + (f" ± {100 * stderr:.1f}" if stderr else "")


def _settings(cards: Mapping[str, TaskCard]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every setting of the task card with its values, each with the checkpoints it holds for ("" where for all)."""
    out = []
    stored = {label: card.to_json() for label, card in cards.items()}
    for key in dict.fromkeys(key for card in stored.values() for key in card if key != "description"):
        values: dict[str, list[str]] = {}
        for label, card in stored.items():
            value = card.get(key)
            text = _sources(value) if key in ("data", "examples") and isinstance(value, list) else plain(value)
            values.setdefault(text, []).append(label)
        out.append((key, [(value, ", ".join(labels) if len(values) > 1 else "") for value, labels in values.items()]))
    return out


def _sources(sources: Sequence[Object]) -> str:
    """Public sources as text; those that differ only in subset or split are joined."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in sources:
        groups.setdefault((one["path"], one["revision"]), []).append(f"{one['subset']}:{one['split']}".strip(":"))
    texts = []
    for (path, revision), parts in groups.items():
        some = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        texts.append(f"{path} ({some}) at {revision[:12] or 'no pinned revision'}")
    return "; ".join(texts) or "none"
