"""What the page and `tercet data` show of a finished data stage: its summary as tables, and texts that it removed.

Every number comes from `summary.json` of the artifact. Summaries of older versions have fewer keys; what they lack is
left out, not guessed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path

from tercet.recipe import MixtureSpec, kinds_of
from tercet.report.collect import Object, read_json
from tercet.rows_file import read_file

MOST_COPIES, MOST_OF_CELL, MOST_OTHERS = 40, 5, 4  # copies in all, of one source and task; rows of other rules


def summary(kind: str, payload: Path) -> Object:
    """Everything about one data stage in plain values; empty where its summary is gone."""
    path, removed = payload / "summary.json", payload / "removed.parquet"
    if not path.is_file():
        return {}
    stored = read_json(path)
    if kind not in kinds_of(MixtureSpec):
        return {"kind": kind, **_asked(stored)}
    return {"kind": kind, **_mixture(stored), **removed_texts(read_file(removed) if removed.is_file() else ())}


def removed_texts(rows: Iterable[Object]) -> Object:
    """Copies of benchmark items with both texts, and the first rows of every other rule; the rows are read one by one.

    Every source and task gives its copies with the largest coverage, one of each item; where they are too many, the
    best of every source and task come first.
    """
    cells: dict[tuple[str, str], dict[str, Object]] = {}  # (source, task) -> item -> the row that copies most of it
    others: dict[str, list[Object]] = {}
    number = 0
    for row in rows:
        if not row["task"]:
            kept = others.setdefault(row["rule"], [])
            kept += [row] * (len(kept) < MOST_OTHERS)
            continue
        number += 1
        own = cells.setdefault((row["source"], row["task"]), {})
        if row["item"] not in own or row["coverage"] > own[row["item"]]["coverage"]:
            own[row["item"]] = row
        if len(own) > 50 * MOST_OF_CELL:  # bounds the memory, and seldom sorts
            cells[row["source"], row["task"]] = {one["item"]: one for one in _best(own)}
    ranked = [(rank, cell, row) for cell, own in cells.items() for rank, row in enumerate(_best(own))]
    ranked = sorted(ranked, key=lambda one: one[:2])[:MOST_COPIES]
    found = [row for _, _, row in sorted(ranked, key=lambda one: (one[1], one[0]))]
    rest = [row for _, kept in sorted(others.items()) for row in kept]
    return {"copies": found, "num_copies": number, "others": rest}


def matrix(cells: Sequence[Object], benchmarks: Sequence[Object]) -> Object:
    """The layout of the paper's table 37: a line for each part, a column for each task that some part copies.

    A cell is the entry of the summary, or None. `whole` says for which tasks a part was dropped; `untouched` names
    the tasks nobody copies, of which some item was looked for; `unsearched` counts the items that were not, by task.
    """
    tasks = sorted({cell["task"] for cell in cells})
    at = {(cell["source"], cell["task"]): cell for cell in cells}
    lines = []
    for part in sorted({cell["source"] for cell in cells}):
        own = [at.get((part, task)) for task in tasks]
        whole = [cell["task"] for cell in own if cell and cell["verdict"] == "set dropped"]
        lines.append({"part": part, "cells": own, "whole": whole})
    shares = {one["task"]: one for one in benchmarks}
    lost = {one["task"]: one["unsearched"] for one in benchmarks if one.get("unsearched")}
    untouched = [one["task"] for one in benchmarks if not one["copied"] and one["items"] > lost.get(one["task"], 0)]
    return {
        "tasks": tasks,
        "lines": lines,
        "any": [shares.get(task) for task in tasks],
        "untouched": untouched,
        "unsearched": lost,
    }


def balance(labels: dict[str, int]) -> str:
    """How many answers are good and bad, and what KTO's paper advises about it."""
    good, bad = labels.get("good", 0), labels.get("bad", 0)
    if not (good and bad):
        return f"{good:,} good and {bad:,} bad answers: the kto loss tells them apart and needs both"
    return (
        f"{good:,} good and {bad:,} bad answers: good / bad is {good / bad:.2f} with equal weights; KTO's paper "
        "advises desirable_weight x good / (undesirable_weight x bad) of 1 to 1.5 (eq. 9)"
    )


def _best(own: dict[str, Object]) -> list[Object]:
    return heapq.nsmallest(MOST_OF_CELL, own.values(), key=lambda row: (-row["coverage"], row["item"], row["row"]))


def _mixture(stored: Object) -> Object:
    sources, sheet = stored.get("sources", []), stored.get("sheet", [])
    benchmarks = stored.get("benchmarks", [])
    keys = ("ngram", "threshold", "share", "exact", "where", "published")
    rule = {key: stored.get(key) for key in keys} | stored.get("rule", {})
    columns = ("entered", "sampled", "kept", "repeated", "expected")
    return {
        "of": "answers" if (of := stored.get("of", "rows")) == "unpaired" else of,
        "balance": balance(stored["labels"]) if "labels" in stored else "",
        "rows": stored.get("rows", 0),
        "counted": stored.get("counted", "words"),
        "sheet": sheet,
        "total": {key: sum(line[key] for line in sheet) for key in ("rows", "tokens")},
        "sources": sources,
        "columns": [key for key in columns if any(row.get(key) not in (None, 0) for row in sources)],
        "rules": list(dict.fromkeys(name for row in sources for name in row.get("removed", {}))),
        "skipped": any(row.get("skipped") for row in sources),
        "benchmarks": benchmarks,
        "matrix": matrix(stored["matrix"], benchmarks) if "matrix" in stored else None,
        "rule": rule,
        "licences": stored.get("licences", []),
        "expected": stored.get("expected"),
    }


def _asked(stored: Object) -> Object:
    """The summary of a stage that asked models: the largest counts first, the requests to each model as lines."""
    requests = stored.get("requests") or {}
    tallies = {
        key: dict(sorted((stored.get(key) or {}).items(), key=lambda one: (-one[1], one[0])))
        for key in ("rules", "no_pair", "dropped", "skipped", "ratings")
    }
    sides = {key: stored.get(key) or {} for key in ("mean_words", "mean_length")}
    plain = (
        "source",
        "write",
        "model",
        "read",
        "bad",
        "left",
        "seeds",
        "rows",
        "prompts",
        "repeats",
        "pairs",
        "spent",
        "budget",
    )
    return {
        **{key: stored.get(key) for key in plain},
        **tallies,
        "models": stored.get("models") or {},
        **{key: both if {"chosen", "rejected"} <= set(both) else {} for key, both in sides.items()},
        "agreement": stored.get("aspect_agreement") or {},
        "requests": {key: value for key, value in requests.items() if key != "models"},
        "accounts": [{"model": name, **line} for name, line in (requests.get("models") or {}).items()],
    }
